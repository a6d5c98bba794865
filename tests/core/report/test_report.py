"""The report's parts: tables and verdicts from metrics, sampling, matching, streaming, charts, pictures."""

from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.report.csv_tables import CsvTables
from regionclip_core.report.curves import chart, charts, thin, tick, ticks
from regionclip_core.report.detections import choose
from regionclip_core.report.label_counts import outline
from regionclip_core.report.page import TEMPLATES, format_markdown
from regionclip_core.report.pictures import MAX_SIDE, Drawn, PictureBook, View, data_url
from regionclip_core.report.results import (
    DIFFERENCE,
    GROUPS,
    MARGIN,
    WIDTH,
    format_results,
    judge,
    number,
    result_rows,
    shift_rows,
    verdict,
)
from regionclip_core.report.results_sections import results
from regionclip_core.report.run import Run
from regionclip_core.report.samples import Detection, Sample, correct, read_detections, spread
from regionclip_core.storage.records import Folder


def scores(novel: float | None, base: float, top1: float | None = None) -> dict[str, Any]:
    values = {"novel": novel, "base": base, "all": base}
    result: dict[str, Any] = {g: {"ap50": v, "ap": None if v is None else v / 2} for g, v in values.items()}
    for group in GROUPS:
        if top1 is not None:
            result[group]["top1"] = top1
    return result


METRICS = {
    "zero_shot_gt": {"clip": scores(20, 25, 45.0), "regionclip": scores(31.5, 36, 60.0)},
    "zero_shot_rpn": {"clip": scores(18, 20), "regionclip": scores(29, 30)},
    "finetuned": {"clip": scores(29, 29), "regionclip": scores(28.6, 36), "oracle": scores(50, 48)},
    "teacher": {
        "crop_top1": {"novel": 66.0, "base": 64.0, "all": 65.0},
        "whole_image_top1": {"novel": 81.0, "base": 79.0, "all": 80.0},
    },
}


def test_bad_samples_and_lost_parts_are_kept_apart() -> None:
    counts = {"ok": 9000, "bad_image": 1200, "lost_annotations": 40, "lost_box": 3, "lost_caption": 0, "skipped": 5}
    no_config: Any = None  # the line needs none
    manifests: Any = {"data": SimpleNamespace(counts=counts), "labels": SimpleNamespace(counts={"ok": 1})}
    run = Run(no_config, {}, manifests, Vocabulary(("a",)))
    assert run.left_out("data") == [
        "Bad samples, left out: image 1,200.",
        "Images used without a bad part: box 3.",
        "Annotations whose image is not listed: 40.",
    ]
    assert run.left_out("labels") == run.left_out("pairs") == []


# ---------------------------------------------------------------- tables


def test_rows_and_differences() -> None:
    rows = result_rows(METRICS)
    assert [(r.setting, r.model) for r in rows] == [
        (setting, model)
        for setting in ("zero-shot, given boxes", "zero-shot, proposals", "finetuned on base boxes")
        for model in ("CLIP", "RegionCLIP", DIFFERENCE)
    ] + [("finetuned on all boxes", "RegionCLIP")]
    for clip, ours, difference in (rows[0:3], rows[3:6], rows[6:9]):
        for key, value in difference.values.items():
            pair = ours.values[key], clip.values[key]
            assert value == (None if None in pair else pytest.approx(pair[0] - pair[1]))
    assert rows[1].values["top1", "novel"] == 60.0
    assert rows[4].values["top1", "novel"] is None


def test_missing_numbers_stay_missing() -> None:
    assert result_rows({}) == []
    assert shift_rows({}) == {}
    only = {"finetuned": {"clip": scores(None, 3)}}
    rows = result_rows(only)
    assert [r.model for r in rows] == ["CLIP"]
    assert rows[0].values["ap50", "novel"] is None
    both = result_rows({"finetuned": {"clip": scores(None, 3), "regionclip": scores(4, 3)}})
    assert both[2].values["ap50", "novel"] is None
    assert both[2].values["ap50", "base"] == 0


def test_plain_table_is_aligned_and_narrow() -> None:
    text = format_results(METRICS)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= WIDTH
    block = lines[1 : lines.index("")]
    ends = [m.end() for m in re.finditer(r"novel|base|all", block[0])]
    # Every cell of every row ends where its heading ends.
    for line in block[2:]:
        cells = [m.end() for m in re.finditer(r"\S+", line[37:])]
        assert [37 + end for end in cells] == ends
    assert "+11.5" in text
    assert re.search(r"finetuned on all boxes +RegionCLIP +50\.0 +48\.0 +48\.0 +- +- +-", text)


def test_fused_rows_and_the_students_whole_images_are_shown() -> None:
    whole = {"whole_image_top1": {"novel": 71.0, "base": 72.0, "all": 71.7}}
    fused = {"finetuned_fused": {"clip": scores(41.5, 50.0), "regionclip": scores(45.25, 51.0)}, "student": whole}
    rows = {(row.setting, row.model): row for row in result_rows(METRICS | fused)}
    title = "finetuned on base boxes, fused"
    assert rows[title, "RegionCLIP"].values["ap50", "novel"] == 45.25
    assert rows[title, "difference"].values["ap50", "novel"] == 3.75
    assert list(shift_rows(METRICS | fused))[1] == "RegionCLIP, whole images"
    text = format_results(METRICS | fused)
    assert title in text and max(map(len, text.splitlines())) <= 100


def lvis_scores(rare: float, frequent: float, top1: float | None = None) -> dict[str, Any]:
    values = {"rare": rare, "common": frequent, "frequent": frequent, "novel": rare, "base": frequent, "all": 9.0}
    result: dict[str, Any] = {g: {"ap50": 2 * v, "ap": v} for g, v in values.items()}
    for group in values if top1 is not None else ():
        result[group]["top1"] = top1
    names = ("AP", "APr", "APc", "APf", "AR@300")
    return {**result, "lvis": dict.fromkeys(names, rare), "per_category": {"a": 2 * rare}}


LVIS = {
    "protocol": "lvis",
    "zero_shot_gt": {"clip": lvis_scores(20, 25, 45.0), "regionclip": lvis_scores(31.5, 36, 60.0)},
    "finetuned": {
        "clip": {**lvis_scores(14, 15), "segm": lvis_scores(12, 14)},
        "regionclip": {**lvis_scores(17, 27), "segm": lvis_scores(16.5, 26)},
        "oracle": {**lvis_scores(40, 41), "segm": lvis_scores(39, 40)},
    },
    "teacher": {"crop_top1": dict.fromkeys(("rare", "common", "frequent", "novel", "base", "all"), 61.0)},
}


def test_lvis_tables_show_frequencies_and_masks() -> None:
    rows = {(row.setting, row.model): row.values for row in result_rows(LVIS)}
    assert [setting for setting, model in rows if model != DIFFERENCE] == [
        *["zero-shot, given boxes"] * 2,
        *["finetuned on base boxes"] * 2,
        *["finetuned on base boxes, masks"] * 2,
        "finetuned on all boxes",
        "finetuned on all boxes, masks",
    ]
    assert rows["finetuned on base boxes, masks", "RegionCLIP"]["ap", "rare"] == 16.5
    assert rows["finetuned on base boxes, masks", DIFFERENCE]["ap", "frequent"] == 12
    text = format_results(LVIS)
    assert max(len(line) for line in text.splitlines()) <= WIDTH
    assert text.splitlines()[1].split() == ["percent", "rare", "common", "frequent", "all"]
    assert re.search(r"finetuned on all boxes, masks +RegionCLIP +39\.0 +40\.0 +40\.0 +9\.0", text)
    assert re.search(r"CLIP, crops of given boxes +61\.0 +61\.0 +61\.0 +61\.0", text)
    first = format_markdown(LVIS).split("\n\n")[0]
    assert "| AP50 rare | AP50 common | AP50 frequent | AP50 all | AP rare |" in first
    assert "| finetuned on base boxes, masks | RegionCLIP | 33.0 | 52.0 | 52.0 | 18.0 | 16.5 |" in first


def results_section(metrics: dict[str, Any], vocabulary: Vocabulary, folder: Path) -> str:
    """The section of the page, as HTML."""
    evaluate = Folder(str(folder))
    evaluate.write_json("metrics.json", metrics)
    no_config: Any = None
    run = Run(no_config, {"evaluate": evaluate}, {}, vocabulary)
    return TEMPLATES.get_template("sections/results.html").render(section=results(run), run=run)


def test_lvis_section(tmp_path: Path) -> None:
    vocabulary = Vocabulary(("a", "b"), ("b",), (("rare", ("a",)), ("common", ()), ("frequent", ("b",))))
    page = results_section(LVIS, vocabulary, tmp_path)
    assert "by LVIS's rules" in page
    assert "IoU is measured between masks" in page
    assert "LVIS's own numbers" in page
    heads = re.search(r"<tr><th class=\"text\">setting</th><th class=\"text\">model</th>.*?</tr>", page)
    assert heads is not None
    assert re.findall(r">([^<]+)</th>", heads[0])[2:] == ["of", *sorted(LVIS["finetuned"]["clip"]["lvis"])]
    assert page.count(">masks</td>") == 3
    assert '<td class="text">a</td><td class="text">rare</td>' in page


def test_restricted_vocabularies_are_rows_of_the_page_and_not_of_the_terminal(tmp_path: Path) -> None:
    only = {"novel": {"ap50": 43.3, "ap": 20.0}}
    metrics = {**METRICS, "finetuned_novel_only": {"clip": {"novel": {"ap50": 40.0, "ap": 19.0}}, "regionclip": only}}
    rows = [row for row in result_rows(metrics) if row.setting == "finetuned, novel names"]
    assert [row.model for row in rows] == ["CLIP", "RegionCLIP", DIFFERENCE]
    assert rows[2].values["ap50", "novel"] == pytest.approx(3.3)
    assert rows[2].values["ap50", "all"] is None
    assert format_results(metrics) == format_results(METRICS)
    assert "| finetuned, novel names | RegionCLIP | 43.3 | - | - |" in format_markdown(metrics)
    assert "given only the names of that group" in results_section(metrics, Vocabulary(("a",)), tmp_path)
    masked = {**metrics, "finetuned_novel_only": {"clip": {"segm": {"novel": {"ap50": 40.0}}}}}
    assert "novel names" not in format_results(masked)


def test_markdown_columns_fit() -> None:
    first, second, claims = format_markdown(METRICS).strip().split("\n\n")
    for block in (first, second):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "| zero-shot, given boxes | RegionCLIP - CLIP | **+11.5** | **+11.0** |" in first
    assert "| CLIP, whole images | 81.0 | 79.0 | 80.0 |" in second
    assert claims.count("\n") == 2


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [(None, True, "-"), (12.34, False, "12.3"), (3.0, True, "+3.0"), (-0.04, True, "0.0"), (-0.04, False, "0.0")],
)
def test_number(value: float | None, signed: bool, text: str) -> None:
    assert number(value, signed) == text


def test_tables_need_no_heavy_import() -> None:
    code = (
        "import sys, regionclip_core.report.results\n"
        "print([m for m in ('torch', 'pyarrow', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- claims


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([MARGIN, 5.0], "holds here"),
        ([MARGIN, None], "holds here"),
        ([5.0, MARGIN - 0.01], "holds in part"),
        ([5.0, -5.0], "holds in part"),
        ([MARGIN - 0.01], "does not hold here"),
        ([-9.0, None], "does not hold here"),
        ([None, None], "not measured"),
        ([], "not measured"),
    ],
)
def test_verdict(differences: list[float | None], expected: str) -> None:
    assert verdict(differences) == expected


def test_claims_follow_the_numbers() -> None:
    shift, pretraining, transfer = judge(METRICS)
    assert [c.verdict for c in (shift, pretraining, transfer)] == ["holds here", "holds here", "does not hold here"]
    assert "whole images at 80.0 %" in shift.evidence
    assert "region features of the same objects at 45.0 %" in shift.evidence
    assert pretraining.evidence.endswith(
        "Top-1 over all categories: the teacher's region features 45.0 %, the student's 60.0 %, the teacher's crops, "
        "one pass of CLIP per box, 65.0 %."
    )
    assert "29.0 -> 28.6 (-0.4)" in transfer.evidence
    assert "Finetuned on novel boxes as well: 50.0" in transfer.evidence
    no_gap = METRICS | {"teacher": {"crop_top1": {"all": 45.5}}}
    assert judge(no_gap)[0].verdict == "does not hold here"
    assert "over all categories" not in judge({k: v for k, v in METRICS.items() if k != "teacher"})[1].evidence
    assert {c.verdict for c in judge({})} == {"not measured"}


# ---------------------------------------------------------------- samples


def test_spread() -> None:
    items = list(range(100))
    assert spread(items, 4) == [12, 37, 62, 87]
    assert spread(items, 200) == items
    assert spread(items, 0) == []
    for count in range(1, 100):
        chosen = spread(items, count)
        gaps = np.diff([-1, *chosen, 100])
        assert len(set(chosen)) == count
        assert gaps.max() - gaps[1:-1].min(initial=100) <= 100 / count


def test_read_detections(tmp_path: Any) -> None:
    folder = Folder(str(tmp_path))
    rng = np.random.default_rng(0)
    rows = [
        {"image_id": int(i), "category_id": 3, "bbox": [1.0, 2.0, 3.0, 4.0], "score": float(s)}
        for i, s in zip(rng.integers(0, 4, 50), rng.uniform(0, 1, 50), strict=True)
    ]
    folder.write_json("detections-clip.json", rows)
    ids = [18, 3, 44]
    rows.sort(key=lambda row: row["image_id"])  # the evaluation writes image by image
    folder.write_json("detections-clip.json", rows)
    found = dict(read_detections(folder, "clip", ids))
    expected = sorted((r["score"] for r in rows if r["image_id"] == 1), reverse=True)
    assert [d.score for d in found[1]] == expected and found.keys() == {r["image_id"] for r in rows}
    assert found[1][0].box == (1.0, 2.0, 4.0, 6.0)
    assert {d.label for d in found[1]} == {1}
    with pytest.raises(ValueError, match=r"detections-clip\.json is damaged: run the evaluate stage again"):
        list(read_detections(folder, "clip", [18, 44]))
    for damage in (b"", b'[{"image_id": 1, "bbox"', b"<html>"):
        folder.write_bytes("detections-clip.json", damage)
        with pytest.raises(ValueError, match=r"detections-clip\.json is damaged: run the evaluate stage again"):
            list(read_detections(folder, "clip", ids))


@pytest.mark.parametrize("count", range(8))
def test_chosen_pictures_are_the_first_the_middle_and_the_last(count: int) -> None:
    gains = {3: 0, 5: 2, 7: -1, 9: 0, 11: 2, 13: 1, 15: -4}
    order = [5, 11, 13, 3, 9, 7, 15]  # by gain, then by id
    chosen = choose(list(gains), lambda image: (gains[image], 0), count)
    best, middle, worst = (chosen[kind] for kind in ("best", "middle", "worst"))
    assert best == order[: len(best)] and worst == order[::-1][: len(worst)]
    assert sorted([len(best), len(middle), len(worst)], reverse=True) == [
        (count + 2) // 3,
        (count + 1) // 3,
        count // 3,
    ]
    assert len({*best, *middle, *worst}) == count
    if middle:
        start = order.index(middle[0])
        assert order[start : start + len(middle)] == middle
        before, after = start - len(best), len(order) - len(worst) - start - len(middle)
        assert abs(before - after) <= 1
    assert choose(list(gains), lambda image: (0, gains[image]), 1) == {"best": [5], "middle": [], "worst": []}


def test_tables_as_csv_read_back(tmp_path: Path) -> None:
    tables = CsvTables()
    rows = [['a, "b"\nc', 0.1 + 0.2, None], ["ü", 3, "="]]
    tables.add("t", ["name", "x", "y"], rows)
    with urllib.request.urlopen(tables.url("t")) as opened:
        text = opened.read().decode(opened.headers.get_content_charset())
    found = list(csv.reader(io.StringIO(text)))
    assert found == [["name", "x", "y"], ['a, "b"\nc', "0.30000000000000004", ""], ["ü", "3", "="]]
    with pytest.raises(AssertionError, match="3 cells, 2 heads"):
        tables.add("other", ["a", "b"], [[1, 2, 3]])


# ---------------------------------------------------------------- right or wrong


def test_correct_agrees_with_coco() -> None:
    """True positives at IoU 0.5 are those that pycocotools matches, with duplicates, crowds and near misses."""
    pytest.importorskip("pycocotools")
    rng = np.random.default_rng(1)
    for _ in range(20):
        corners = rng.uniform(0, 60, (6, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(10, 40, (6, 2))], axis=1).astype(np.float32)
        labels = rng.integers(0, 3, 6).astype(np.int32)
        row = IndexRow(
            "a", 1, width=100, height=100, boxes=boxes, box_labels=labels, box_crowd=np.zeros(6, bool),
            box_area=np.ones(6, np.float32),
        )  # fmt: skip
        near = boxes[rng.integers(0, 6, 15)] + rng.normal(0, 4, (15, 4))
        detections = [
            Detection((float(a), float(b), float(c), float(d)), int(label), float(score))
            for (a, b, c, d), label, score in zip(
                near, rng.integers(0, 3, 15), sorted(rng.uniform(0, 1, 15), reverse=True), strict=True
            )
        ]
        assert correct(detections, sample_of(row).objects) == coco_matches(detections, row)


def coco_matches(detections: list[Detection], row: IndexRow) -> list[bool]:
    import contextlib

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def entry(number: int, box: Any, label: int) -> dict[str, Any]:
        x0, y0, x1, y1 = (float(v) for v in box)
        shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
        return {"id": number + 1, "image_id": 1, "category_id": label + 1, **shape}

    common = {"images": [{"id": 1}], "categories": [{"id": i} for i in (1, 2, 3)]}
    truth = [entry(i, b, int(label)) for i, (b, label) in enumerate(zip(row.boxes, row.box_labels, strict=True))]
    found = [entry(i, d.box, d.label) | {"score": d.score} for i, d in enumerate(detections)]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (truth, found):
            side = COCO()
            side.dataset = {**common, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, "bbox")
        evaluator.evaluate()
    matched = set()
    for result in evaluator.evalImgs[: 3 * 4 : 4]:  # three categories; of four area ranges the first, "all"
        if result is not None:
            matched |= {i for i, gt in zip(result["dtIds"], result["dtMatches"][0], strict=True) if gt}
    return [i + 1 in matched for i in range(len(detections))]


def sample_of(row: IndexRow, image: Any = None) -> Sample:
    return Sample("val", 0, row, np.zeros((100, 100, 3), np.uint8) if image is None else image)


def test_crowds_and_names_outside_of_the_vocabulary_are_no_objects() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 30, 30]], np.float32)
    row = IndexRow("a", 1, boxes=boxes, box_labels=np.array([0, -1], np.int32), box_crowd=np.array([True, False]))
    objects = sample_of(row).objects
    found = [Detection((0, 0, 10, 10), 0, 0.9), Detection((20, 20, 30, 30), -1, 0.8)]
    assert correct(found, objects) == [False, False]
    assert correct([], objects) == []
    assert sample_of(row).object_at((0, 0, 10, 10)) is None


def test_the_object_under_a_box() -> None:
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10]], np.float32)
    row = IndexRow("a", 1, boxes=boxes, box_labels=np.array([5, 7], np.int32), box_crowd=np.zeros(2, bool))
    assert sample_of(row).object_at((0, 0, 11, 10)) == 5
    assert sample_of(row).object_at((5, 0, 14, 10)) == 7
    assert sample_of(row).object_at((0, 0, 10, 21)) is None  # IoU 100 / 210


# ---------------------------------------------------------------- charts


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.5, 7.3), (2.31, 2.33), (-3, 4), (0, 250_000), (1e-7, 5e-4), (4, 4), (0, 0)]
)
def test_ticks_enclose_and_are_even(low: float, high: float) -> None:
    marks = ticks(low, high, 4)
    assert marks[0] <= low + 1e-9
    assert marks[-1] >= high - 1e-9
    assert 2 <= len(marks) <= 7
    steps = np.diff(marks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5)) < 1e-6


def test_marks_are_short() -> None:
    values = [0, 0.00015, 2.8e-4, 0.0015, 0.30000000000000004, 2.25, 250_000, -0.5, 1e-07, 8000, 12_500]
    texts = ["0", "1.5e-4", "2.8e-4", "0.0015", "0.3", "2.25", "250k", "-0.5", "1e-7", "8000", "12.5k"]
    assert [tick(v) for v in values] == texts


def test_thin_keeps_short_ones_and_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    assert thin(points[:50], 50) == points[:50]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert np.mean(thinned, axis=0) == pytest.approx(np.mean(points, axis=0))


def drawn(macro: str, *values: Any) -> str:
    """What a macro of drawing.html writes."""
    names = "abc"[: len(values)]
    source = f'{{% from "drawing.html" import {macro} %}}{{{{ {macro}({", ".join(names)}) }}}}'
    return TEMPLATES.from_string(source).render(dict(zip(names, values, strict=True)))


def test_chart_places_the_extremes() -> None:
    made = chart({"run <1>": [(0.0, 0.0), (50.0, 2.0), (100.0, 4.0)]}, "loss")
    x, y = np.array(made.lines["run <1>"]).T
    # Straight in, straight out, rising to the right and upwards, from edge to edge.
    assert np.diff(x) == pytest.approx([x[1] - x[0]] * 2)
    assert np.diff(y) == pytest.approx([y[1] - y[0]] * 2)
    assert (x[0], x[2]) == (made.left, made.right)
    assert (y[0], y[2]) == (made.bottom, made.top)
    assert [text for _, text in made.y_ticks] == ["0", "1", "2", "3", "4"]
    markup = drawn("curves", [made], "")
    assert f'points="{x[0]},{y[0]} {x[1]},{y[1]} ' in markup
    assert "<title>run &lt;1&gt;</title>" in markup
    assert drawn("curves", [], "<none>") == '<p class="note">&lt;none&gt;</p>\n'


def test_chart_of_an_area_and_of_powers_of_ten() -> None:
    counts, edges = np.array([3, 0, 5]), np.array([-1.0, 0.0, 1.0, 2.0])
    area = chart({"all": outline(counts, edges)}, "t", first=-1.0, filled=True)
    assert [x for x, _ in area.lines["all"][::2]] == pytest.approx(
        np.linspace(area.left, area.right, 4).tolist()  # each bin as wide as the others
    )
    assert {text for _, text in area.x_ticks} >= {"-1", "0", "1", "2"}
    assert area.lines["all"][0][1] == area.lines["all"][-1][1] == area.bottom
    assert 'class="area line-0"' in drawn("curves", [area], "")
    powers = chart({"n": [(1.0, 1000.0), (2.0, 10.0), (3.0, 1.0)]}, "t", powers=True)
    assert [text for _, text in powers.y_ticks] == ["1", "10", "100", "1,000"]
    assert [y for _, y in powers.lines["n"]] == [powers.y_ticks[power][0] for power in (3, 1, 0)]
    fixed = chart({"p": [(0.0, 40.0), (100.0, 20.0)]}, "t", top=100)
    assert fixed.lines["p"][0][1] == pytest.approx(fixed.bottom - 0.4 * (fixed.bottom - fixed.top))


def test_charts_of_histories() -> None:
    rows = [{"step": s, "lr": 1e-3, "loss": 3.0, "loss_a": 1.0, "loss_b": 2.0} for s in (10, 20)]
    assert [made.title for made in charts({"clip": rows, "oracle": rows})] == ["total loss", "a", "b", "learning rate"]
    single = [{"step": 1, "lr": 1e-3, "loss": 3.0, "loss_a": 3.0}]
    assert [made.title for made in charts({"teacher": single})] == ["total loss", "learning rate"]
    assert charts({}) == charts({"teacher": []}) == []


# ---------------------------------------------------------------- markup and pictures


def from_tables(call: str, **values: Any) -> str:
    """What a call of macros of tables.html writes."""
    return TEMPLATES.from_string('{% from "tables.html" import facts, some, table %}{{ ' + call + " }}").render(values)


def test_text_is_escaped() -> None:
    made = from_tables("table([x], [[x]]) + facts({x: {x: [x]}})", x="<script>")
    assert made.count("&lt;script&gt;") == 5
    assert "<script>" not in made
    view = PictureBook().whole(picture(10, 20), [Drawn((1, 1, 5, 5), "<b>", hint="</title>")], 'a "quoted" title')
    markup = drawn("picture", view)
    assert "<b>" not in markup
    assert markup.count("</title>") == 1
    assert 'aria-label="a &#34;quoted&#34; title"' in markup


def test_facts_are_shown_by_their_type() -> None:
    values = {
        "n_images": 12345,
        "parser": {"name": "rules", "on": True},
        "loss": 0.123456,
        "top": ["a", "b"],
        "x": None,
    }
    found = re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", from_tables("facts(v)", v=values))
    assert found == [
        ("n images", "12,345"),
        ("parser.name", "rules"),
        ("parser.on", "yes"),
        ("loss", "0.1235"),
        ("top", "a, b"),
        ("x", "-"),
    ]
    assert from_tables("facts({})").strip() == ""
    assert from_tables("some(['a', 'b', 'c'], 2)") == "a, b and 1 more"
    assert from_tables("some(['a'], 2)") == "a"


def picture(height: int, width: int, key: str = "a") -> Sample:
    return sample_of(IndexRow(key, 1), np.zeros((height, width, 3), np.uint8))


def test_small_images_are_embedded_as_they_are_and_large_ones_reduced() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (90, 128, 3), dtype=np.uint8)
    url = data_url(small)
    assert url.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))), small)
    large = data_url(np.zeros((600, 1200, 3), np.uint8))
    assert large.startswith("data:image/jpeg;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(large.split(",")[1]))).size == (MAX_SIDE, MAX_SIDE // 2)


def test_an_image_is_embedded_once() -> None:
    book = PictureBook()
    first = book.whole(picture(8, 8), [], "t")
    assert book.crop(picture(8, 8), (0, 0, 4, 4), 1.0, "t").picture is first.picture
    book.whole(picture(8, 8, "b"), [], "t")
    assert [one.id for one in book.pictures] == ["image-0", "image-1"]


def test_boxes_are_scaled_and_crops_square() -> None:
    book = PictureBook()
    view = book.whole(picture(50, 100), [Drawn((10, 20, 30, 25), kind="novel", dashed=True)], "t")
    assert view.window == (0, 0, 360, 180)
    markup = drawn("picture", view)
    assert 'transform="scale(3.6)"' in markup
    assert '<rect class="box novel dashed" x="36.0" y="72.0" width="72.0" height="18.0">' in markup
    # Longer side 20, context 1.5: a square of 30 around (20, 22.5).
    assert book.crop(picture(50, 100), (10, 20, 30, 25), 1.5, "t").window == (5, 7.5, 30, 30)


def labels_of(view: View) -> Any:
    """Places of the labels, by text."""
    return np.array([box.tag for box in sorted(view.boxes, key=lambda box: box.text)])


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    boxes = [Drawn((40 + 2 * i, 40, 70 + 2 * i, 70), f"name {i}") for i in range(3)]
    rects = labels_of(PictureBook().whole(picture(128, 128), boxes, "t"))
    assert len(rects) == 3
    for i in range(3):
        for j in range(i):
            gap = np.maximum(rects[i, :2] - rects[j, 2:], rects[j, :2] - rects[i, 2:])
            assert gap.max() >= -1e-6


def test_labels_stay_in_the_picture_and_cover_little_where_there_is_no_room() -> None:
    places = labels_of(PictureBook().whole(picture(128, 128), [Drawn((0, 0, 20, 6), f"a {i}") for i in range(9)], "t"))
    assert places.min() >= 0
    assert places.max() <= 360
    assert len({tuple(place) for place in places}) >= 4  # all the places that such a corner has
