"""Labels from elsewhere against a loop over the file's rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from label_runs import IDS, POOL, LabelRun
from small_artifacts import pillow_crop, tear, tiny_clip

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.pretraining.label_source import check_source, source_rows
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import REJECTED

Row = dict[str, Any]
SPELLED = {**{name: name for name in POOL}, "cat": "kitty"}


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> LabelRun:
    return LabelRun(tmp_path_factory.mktemp("labels"))


def drawn(labels: LabelRun, seed: int = 0) -> list[Row]:
    """Results in COCO's form, some of which can't be used; several have one score."""
    rng, rows = np.random.default_rng(seed), []
    for _ in range(60):
        image = labels.images[int(rng.integers(len(labels.images)))]
        x, y, w, h = rng.uniform(-5, 60, 4).round(2).tolist()
        row: Row = {"image_id": image.image_id, "bbox": [x, y, w, h], "score": round(float(rng.uniform()), 1)}
        which = int(rng.integers(4))
        name = ["red cup", "cat", "Kitty ", "zebra"][which]
        rows.append(row | ({"name": name} if rng.uniform() < 0.6 else {"category_id": [17, 18, "18", 90][which]}))
    bad: list[Row] = [
        {"image_id": 999},
        {"key": "train/0000", "image_id": 999, "bbox": [1, 2, 3]},
        {"image_id": [1]},
        {"image_id": 1, "bbox": [1, 2, "3", 4]},
        {"image_id": 1, "bbox": [1, 2, 1e400, 4]},  # as Python writes it: Infinity
        {"image_id": 1, "bbox": [1, 2, math.nan, 4]},
        {"image_id": 1, "bbox": [10**400, 2, 3, 4]},
        {"image_id": 1, "bbox": [1, 2, 3, 4], "score": 1.5},
        {"image_id": 1, "bbox": [1, 2, 3, 4], "score": True},
        {"image_id": 1, "bbox": [1, 2, 3, 4], "name": " "},
        {"image_id": 1, "bbox": [1, 2, 3, 4], "name": 3},
        {"image_id": 1, "bbox": [1, 2, 3, 4]},
    ]
    rows += [{"image_id": 0, "bbox": [0, 0, 5, 5], "score": 0.5, "name": "dog", **one} for one in bad[:-1]]
    return [*rows, bad[-1], {"image_id": 1, "bbox": [2, 2, 9, 9], "name": "tree"}]  # a person's: no score


def naive(rows: list[Row], images: list[IndexRow], add: bool = False) -> tuple[dict[str, list[Any]], list[str]]:
    """(box, name, score) by key, highest score first, and the status of each row."""
    found: dict[str, list[Any]] = {image.key: [] for image in images}
    by_id, by_key = {image.image_id: image for image in images}, {image.key: image for image in images}
    statuses = []
    for row in rows:
        where = row.get("key", row.get("image_id"))
        image = None if isinstance(where, list) else (by_key if "key" in row else by_id).get(where)
        name = {number: name for name, number in IDS.items()}.get(int(row.get("category_id", 0)))
        name = row.get("name", name)
        score = row.get("score", 1.0)
        box = row.get("bbox", [])
        status = "ok"
        if image is None:
            status = "unknown_image"
        elif not image.ok:
            status = "unusable_image"
        elif len(box) != 4 or not all(type(one) in (int, float) and abs(one) < 1e9 for one in box):
            status = "bad_box"
        else:
            x, y = max(box[0], 0), max(box[1], 0)
            corners = [x, y, min(box[0] + box[2], image.width), min(box[1] + box[3], image.height)]
            spelled = SPELLED.get(name, SPELLED.get(str(name).strip().lower()))
            if corners[2] <= corners[0] or corners[3] <= corners[1]:
                status = "bad_box"
            elif isinstance(score, bool) or score > 1:
                status = "bad_score"
            elif name is None:
                status = "unknown_category"
            elif not isinstance(name, str) or not name.strip():
                status = "bad_name"
            elif spelled is None and not add:
                status = "unknown_name"
            else:
                found[image.key].append((corners, spelled or name, score))
        statuses.append(status)
    return {key: sorted(several, key=lambda one: -one[2]) for key, several in found.items()}, statuses


def pool_of(labels: LabelRun) -> list[str]:
    return list(load_embeddings(labels.out)[0].names)


@pytest.mark.parametrize("unknown", ["drop", "add"])
@pytest.mark.parametrize("seed", [0, 1])
def test_coco_results_against_a_loop(labels: LabelRun, unknown: str, seed: int) -> None:
    rows = drawn(labels, seed)
    file = labels.root / f"results-{seed}.json"
    file.write_text(json.dumps(rows))
    found, summary = labels.run(f"{unknown}-{seed}", source=str(file), unknown_names=unknown)
    expected, statuses = naive(rows, labels.images, unknown == "add")
    pool = pool_of(labels)
    assert pool == [*POOL, *(["zebra"] * (unknown == "add"))]
    for image in labels.images:
        one, best = found[image.key], expected[image.key][:4]
        assert one["status"] == image.status
        np.testing.assert_array_equal(
            np.array(one["boxes"], np.float32).reshape(-1, 4),
            np.array([b for b, _, _ in best], np.float32).reshape(-1, 4),
        )
        scores = [float(np.float32(score)) for _, _, score in best]
        assert [pool[number] for number in one["concept_id"]] == [name for _, name, _ in best]
        assert one["score"] == scores and one["kept"] == [score > np.float32(0.3) for score in scores]
        assert one["top_concepts"] == [[number] for number in one["concept_id"]]
        assert one["top_probabilities"] == [[score] for score in scores]
        np.testing.assert_allclose(one["residual_mass"], [1 - score for score in scores], atol=1e-6)
        assert one["objectness_logit"] == [0.0] * len(best)
    assert any(len(several) > 4 for several in expected.values())
    with labels.out.open("rejected.parquet") as stream:
        rejected = pq.read_table(stream)
    assert rejected.schema.equals(REJECTED)
    wrong = [(number, status) for number, status in enumerate(statuses, start=1) if status != "ok"]
    assert list(zip(rejected["row"].to_pylist(), rejected["status"].to_pylist(), strict=True)) == wrong
    counts = {status: [one for _, one in wrong].count(status) for _, status in wrong}
    source = summary["source"]
    assert source["rows"] == len(rows) and source["used"] == statuses.count("ok") and source["rejected"] == counts
    zebras = sum(name == "zebra" for several in expected.values() for _, name, _ in several)
    zebras = zebras if unknown == "add" else counts["unknown_name"]
    what = "unknown_names_added" if unknown == "add" else "unknown_names_dropped"
    assert (source[what], source["most_frequent_unknown"]) == (1, {"zebra": zebras})
    assert not labels.out.child("scan").folders() and not labels.out.child("scan").names()


def test_a_table_is_the_same_as_results(labels: LabelRun) -> None:
    rows = [row for row in drawn(labels) if not isinstance(row["image_id"], list)]
    _, statuses = naive(rows, labels.images)
    keys = {image.image_id: image.key for image in labels.images}
    rows = [row for row, status in zip(rows, statuses, strict=True) if status in ("ok", "unknown_name")]
    names = {number: name for name, number in IDS.items()}
    table = []
    for row in rows:
        x, y, w, h = row["bbox"]
        name = row.get("name") or names[int(row["category_id"])]
        table.append(
            {"key": keys[row["image_id"]], "box": [x, y, x + w, y + h], "name": name, "score": row.get("score")}
        )
    (labels.root / "same.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(table), labels.root / "same.parquet")
    found, summary = labels.run("json", source=str(labels.root / "same.json"))
    other, again = labels.run("parquet", source=str(labels.root / "same.parquet"))
    assert found == other and summary == again and summary["source"]["used"] >= 20


def test_the_teachers_probabilities_of_the_files_boxes(labels: LabelRun) -> None:
    """As in labels of proposals at the same places; the name, its score and what is kept are the file's."""
    plain, _ = labels.run("proposed", max_regions=1)
    rows = [
        {"key": key, "bbox": [x0, y0, x1 - x0, y1 - y0], "name": "tree", "score": 0.7}
        for key, row in plain.items()
        for x0, y0, x1, y1 in row["boxes"]
    ]
    (labels.root / "trees.json").write_text(json.dumps(rows))
    found, _ = labels.run("trees", source=str(labels.root / "trees.json"), source_probabilities="teacher")
    regions = 0
    for key, row in found.items():
        assert row["boxes"] == plain[key]["boxes"]
        for name in ("top_concepts", "top_probabilities", "residual_mass"):
            assert row[name] == plain[key][name]
        assert row["concept_id"] == [3] * len(row["boxes"]) and row["kept"] == [True] * len(row["boxes"])
        np.testing.assert_allclose(row["score"], 0.7, rtol=1e-6)
        regions += len(row["boxes"])
    assert regions == 7


def test_crops_grid_and_corrections_of_the_files_boxes(labels: LabelRun) -> None:
    image = labels.images[0]
    rows = [{"key": image.key, "bbox": [4, 6, 16, 24], "name": "cat", "score": 0.9}]
    (labels.root / "one.json").write_text(json.dumps(rows))
    (labels.root / "one.csv").write_text(f"key,box,name\n{image.key},4 6 20 31,dog\n")
    settings = {"source": str(labels.root / "one.json"), "corrections": str(labels.root / "one.csv")}
    found, summary = labels.run("crops", **settings, crop_features=True, grid_scales=[1.0])
    one = found[image.key]
    assert one["boxes"] == [[4, 6, 20, 30], [0, 0, 48, 48], [16, 0, 64, 48]]
    assert (one["concept_id"], one["score"], one["kept"]) == ([1, 0, 0], [1, 0, 0], [True, False, False])
    assert (one["top_concepts"][0], one["top_probabilities"][0], one["residual_mass"][0]) == ([1], [1.0], 0.0)
    assert summary["corrections"] == {"used": 1, "without_region": []} and summary["kept"] == 1
    clip, pixels = tiny_clip(), ImageReader(labels.inputs["data"]).read(image)
    for box, crop in zip(one["boxes"], one["crops"], strict=True):
        with torch.no_grad():
            feature = clip.model.encode_image(pillow_crop(pixels, box, 1.2, clip)[None])[0]
        np.testing.assert_allclose(crop, (feature / feature.norm()).numpy(), atol=1e-3)


def test_no_image_is_read_unless_the_teacher_looks(labels: LabelRun, tmp_path: Path) -> None:
    torn = LabelRun(tmp_path)
    tear(torn.inputs["data"], torn.images[0])
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 0, "bbox": [1, 2, 9, 9], "name": "cup", "score": 1}]))
    found, _ = torn.run("blind", source=str(tmp_path / "r.json"))
    assert found[torn.images[0].key]["status"] == "ok" and found[torn.images[0].key]["kept"] == [True]
    found, _ = torn.run("seen", source=str(tmp_path / "r.json"), source_probabilities="teacher")
    assert found[torn.images[0].key]["status"] == "bad_image" and not found[torn.images[0].key]["kept"]


def test_an_id_of_two_splits_is_ambiguous_and_a_file_of_no_use_stops_the_stage(labels: LabelRun) -> None:
    (labels.root / "far.json").write_text(json.dumps([{"image_id": 77, "bbox": [1, 2, 9, 9], "name": "cup"}] * 3))
    with pytest.raises(ValueError, match=r"none of its 3 rows can be used: 3 unknown_image .*images of train$"):
        labels.run("far", source=str(labels.root / "far.json"))
    (labels.root / "none.json").write_text(" [ ]")
    with pytest.raises(ValueError, match=r"none of its 0 rows can be used: it has no rows"):
        labels.run("none", source=str(labels.root / "none.json"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{"annotations": []}', "expected a JSON list of results"),
        ("a.json", b"[]", "it has no rows"),
        ("a.json", b"\xff\xfe[\0]\0", "it has no rows"),
        ("a.json", b"\x1f\x8b[]", "compressed"),
        ("a.json", b"[{]", "not valid JSON"),
        ("a.csv", b"", r"expected a \.json or \.parquet file"),
        ("a.parquet", b"PAR1", "no whole Parquet file"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^labels.source: {tmp_path}/{name}.*{message}"):
        check_source(str(tmp_path / name))


def test_something_after_the_list_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1, 2] 3")
    rows = source_rows(str(tmp_path / "a.json"))
    assert [next(rows), next(rows)] == [1, 2]
    with pytest.raises(
        ValueError, match=r"^labels.source: .*something follows the list .* expected one list of entries"
    ):
        next(rows)


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "boxes": [[1.0]], "name": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"expected the columns `key` or `image_id`, `box` .* found \['boxes', 'key'"):
        next(source_rows(str(tmp_path / "a.parquet")))


def test_where_the_boxes_wait_is_no_content(labels: LabelRun) -> None:
    (labels.root / "r.json").write_text(json.dumps([{"image_id": 0, "bbox": [1, 2, 9, 9], "name": "cup"}]))
    labels.run("content", source=str(labels.root / "r.json"))
    names = {file.name for file in labels.out.written}
    pool = {"concept_embeddings.json", "concept_embeddings.safetensors"}
    assert names == {"labels-00000.parquet", "labels-00001.parquet", "rejected.parquet", "source.json", *pool}
    assert isinstance(labels.out, Folder)
