"""The report stage on a made-up workspace whose files come from the pipeline's own writers."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import escape as html_escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from browser import look
from small_artifacts import naive_iou
from typer.testing import CliRunner

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.datasets.index import read_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.pretraining.concept_truth import write_truth
from regionclip_core.pretraining.label_quality import label_quality
from regionclip_core.proposals.recall import recall_of_splits
from regionclip_core.report.comparison import build_comparison_page, compare
from regionclip_core.report.run import INITS
from regionclip_core.report.samples import Detection, correct, objects_of
from regionclip_core.storage.records import FileRecord, Folder, Manifest, ShardRecord, content_digest, write_manifest
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, LABELS, PROPOSALS
from stages.base import StageContext
from stages.cli import app
from stages.commands.comparisons.compare import find_run
from stages.data import WORK as DATA
from stages.declarations import STAGES
from stages.report import WORK as REPORT

needs = STAGES["report"].needs

SPLITS = {"scene": 12, "train": 4, "val": 12}
MARK = "0123456789ab"
PROVENANCE = {
    "git_commit": "c" * 40,
    "packages": {"regionclip": "0.1.0", "torch": "2.9.9"},
    "python": "3.11.7",
    "host": "node-7",
    "machine": "Linux x86_64, 2 CPUs",
    "started": "2026-03-01T10:20:30.000+00:00",
    "finished": "2026-03-01T10:21:30.000+00:00",
    "seconds": 60.0,
}
BAD_METRICS = {"zero_shot_gt": {}, "zero_shot_rpn": {}, "finetuned": {}, "teacher": {}, "images": 0}


def make_config(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": {"splits": {n: {"source": "world", "images": c} for n, c in SPLITS.items()}, "shard_size": 6},
        "concepts": {"splits": ["scene"]},
        "teacher": {"weights": "train", "training": {"splits": ["scene"]}},
        "proposals": {"splits": list(SPLITS)},
        "labels": {"splits": ["scene"], "threshold": 0.4},
        "evaluate": {"split": "val"},
        "report": {"images": 3},
    }
    return Config.model_validate(values | changes)


class Workspace:
    """A finished run, stage by stage; numbers are drawn, images and boxes are the world's."""

    def __init__(self, root: Path, config: Config, draw: int = 0) -> None:
        """Another `draw` has other labels and detections, of the same images."""
        self.config = config
        self.draw = draw
        self.root = root
        self.rng = np.random.default_rng(draw)
        self.inputs: dict[str, Folder] = {}
        self.digests: dict[str, str] = {}
        self.written: dict[str, list[FileRecord]] = {}
        """Of each report, by its name."""
        self.data()
        self.concepts()
        self.boxes()
        self.job("teacher", {"model": "small", "temperature": 0.06}, {"history.json": ["loss_contrastive"]})
        if config.proposals.method == "rpn":
            self.job("rpn", {"steps": 200}, {"history.json": ["loss_objectness", "loss_rpn_box_reg"]})
        self.job("pairs", {"samples": 12, "vocabulary": "0" * 64}, {})
        losses = ["loss_region_contrastive", "loss_region_distill", "loss_image_text"]
        self.job("pretrain", {"samples": 12, "steps": 200}, {"history.json": losses})
        names = ["clip", "regionclip", *(["oracle"] if config.finetune.oracle else [])]
        summary = {"detectors": {name: {"images": 4, "steps": 200, "loss": 1.5} for name in names}}
        self.job("finetune", summary, {f"history-{n}.json": ["loss_cls", "loss_box_reg"] for n in names})
        self.evaluate(names)

    def context(self, stage: str) -> StageContext:
        return StageContext(self.config, self.folder(stage), dict(self.inputs))

    def folder(self, stage: str) -> Folder:
        return Folder(str(self.root / stage / MARK))

    def finish(self, folder: Folder, stage: str, summary: dict[str, Any], counts: dict[str, int]) -> None:
        self.inputs[stage] = folder
        self.digests[stage] = digest = content_digest(folder.written)
        settings = {**STAGES[stage].settings(self.config), "seed": self.config.seed}
        made_from = {need: self.digests[need] for need in STAGES[stage].needs(self.config) if need in self.digests}
        size = sum(f.bytes for f in folder.written)
        manifest = Manifest(
            stage, 1, MARK + "f" * 52, settings, made_from, {}, summary, 1, 12, counts, len(folder.written), size,
            digest, PROVENANCE,
        )  # fmt: skip
        write_manifest(folder, manifest)

    def data(self) -> None:
        ctx = self.context("data")
        state = DATA.setup(ctx)
        records = []
        for shard in DATA.shards(ctx):
            done = DATA.process(ctx, state, shard)
            records.append(ShardRecord(shard, done.rows, done.counts, [], 0.0))
        self.finish(ctx.out, "data", DATA.merge(ctx, records), {"ok": 28, "bad_image": 2})
        self.vocabulary = Vocabulary.from_json(ctx.out.read_json("categories.json"))
        self.shards = ctx.out.read_json("splits.json")

    def concepts(self) -> None:
        folder = self.folder("concepts")
        # One category is missing from the pool, and one name has to be escaped.
        self.pool = Vocabulary((*self.vocabulary.names[1:], "a <b> & c"))
        rows = [
            {"id": i, "concept": n, "head": n, "n_words": 1, "n_captions": 900 - i, "n_images": 9, "n_mentions": 9}
            | {"surface_forms": [n], "source": "parsed"}
            for i, n in enumerate(self.pool.names)
        ]
        dropped = [
            {"concept": f"{reason} {i}", "reason": reason, "n_captions": i, "n_images": i, "n_mentions": i}
            for reason in ("rare", "time")
            for i in range(700)
        ]
        for name, found, schema in (("concepts", rows, CONCEPTS), ("dropped", dropped, DROPPED_CONCEPTS)):
            with folder.write(f"{name}.parquet") as file:
                pq.write_table(pa.Table.from_pylist(found, schema=schema), file)
        self.finish(folder, "concepts", {"parser": {"name": "rules", "version": 1}, "concepts": len(rows)}, {})

    def boxes(self) -> None:
        """Proposals around the objects, best first; labels for those of `scene`, mostly right."""
        proposals, labels = self.folder("proposals"), self.folder("labels")
        save_embeddings(labels, self.pool, torch.zeros(len(self.pool), 4))
        for split in SPLITS:
            for shard in self.shards[split]["shards"]:
                proposed = [self.propose(row) for row in read_index(self.inputs["data"], shard)]
                tables = [(proposals, "proposals", proposed, PROPOSALS)]
                if split == "scene":
                    named = [self.label(row, p) for row, p in zip(self.rows(shard), proposed, strict=True)]
                    schema = LABELS.with_metadata({"vocabulary": self.pool.digest})
                    tables.append((labels, "labels", named, schema))
                for folder, what, rows, schema in tables:
                    with folder.write(f"{what}-{shard:05d}.parquet") as file:
                        pq.write_table(pa.Table.from_pylist(rows, schema=schema), file)
        recall = {"val": {"base_recall@10": 0.714, "novel_recall@10": 0.5, "base_recall@100": 0.875}}
        self.finish(proposals, "proposals", {"recall": recall}, {"ok": 28})
        kinds = {"clean": 1234, "wrong_name": 5, "loose": 6, "off_object": 7}
        truth = dict.fromkeys(("all", "base", "novel"), kinds)
        shares = {group: dict.fromkeys(kinds, 0.437) for group in truth}
        summary = {"regions": 90, "kept": 70, "kept_share": 7 / 9, "base_accuracy": 0.681}
        _, table = label_quality(self.inputs["data"], self.folder("concepts"), labels, ("scene",))
        assert table is not None
        write_truth(labels, table)
        self.truth = table.to_pylist()
        self.finish(labels, "labels", {**summary, "truth": truth, "truth_shares": shares}, {})

    def rows(self, shard: int) -> list[Any]:
        return read_index(self.inputs["data"], shard)

    def propose(self, row: Any) -> dict[str, Any]:
        near = row.boxes + self.rng.normal(0, 1.5, row.boxes.shape)
        corners = self.rng.uniform(0, 90, (8, 2))
        far = np.concatenate([corners, corners + self.rng.uniform(10, 35, (8, 2))], axis=1)
        boxes = np.concatenate([near, far]).tolist()
        logits = np.linspace(3, -3, len(boxes)).tolist()
        return {"key": row.key, "status": "ok", "reason": None, "boxes": boxes, "objectness_logit": logits}

    def label(self, row: Any, proposed: dict[str, Any]) -> dict[str, Any]:
        names = [self.vocabulary.names[label] for label in row.box_labels]
        ids = [self.pool.names.index(name) if name in self.pool.names else 0 for name in names]
        count = len(proposed["boxes"])
        ids += self.rng.integers(0, len(self.pool), count - len(ids)).tolist()
        scores = self.rng.uniform(0.2, 1.0, count).tolist()
        return {
            **proposed,
            "concept_id": ids,
            "score": scores,
            "kept": [score > 0.4 for score in scores],
            "top_concepts": [[i] for i in ids],
            "top_probabilities": [[s] for s in scores],
            "residual_mass": [1 - s for s in scores],
        }

    def job(self, stage: str, summary: dict[str, Any], histories: dict[str, list[str]]) -> None:
        folder = self.folder(stage)
        for name, losses in histories.items():
            rows = []
            for step in range(10, 210, 10):
                parts = {loss: float(3 / (1 + step / 40) + self.rng.uniform(0, 0.2)) for loss in losses}
                rows.append({"step": step, "lr": 1e-3 * (1 - step / 210), "loss": sum(parts.values()), **parts})
            folder.write_json(name, rows)
        folder.write_json("weights.json", {})
        self.finish(folder, stage, summary, {})

    def evaluate(self, names: list[str]) -> None:
        folder = self.folder("evaluate")

        def scores(level: float, top1: bool) -> dict[str, Any]:
            groups = {"base": level, "novel": level + 2, "all": level + 1}
            result: dict[str, Any] = {
                g: {"ap50": v, "ap": v / 2, "categories": 9, "boxes": 99} | ({"top1": v + 20} if top1 else {})
                for g, v in groups.items()
            }
            result["per_category"] = {n: level + i for i, n in enumerate(self.vocabulary.names[:-1])}
            result["per_category"][self.vocabulary.names[-1]] = None
            return result

        metrics = {
            "zero_shot_gt": {"clip": scores(25, True), "regionclip": scores(38.25, True)},
            "zero_shot_rpn": {"clip": scores(20, False), "regionclip": scores(30, False)},
            "finetuned": {name: scores(29.5 + 5 * i - 3 * self.draw, False) for i, name in enumerate(names)},
            "teacher": {"crop_top1": {"base": 65.0, "novel": 66.5, "all": 65.4}},
            "images": 12,
        }
        folder.write_json("metrics.json", metrics, indent=2)
        for quality, name in enumerate(names):
            rows = [
                r
                for shard in self.shards["val"]["shards"]
                for row in self.rows(shard)
                for r in self.found(row, quality)
            ]
            folder.write_json(f"detections-{name}.json", rows)
        self.finish(folder, "evaluate", {"images": 12}, {})

    def found(self, row: Any, quality: int) -> list[dict[str, Any]]:
        result = []
        for box, label in zip(row.boxes, row.box_labels, strict=True):
            x0, y0, x1, y1 = (float(v) for v in box + self.rng.normal(0, 2 - quality, 4))
            right = self.rng.uniform() < 0.5 + 0.3 * quality
            category = int(label) if right else int(self.rng.integers(0, len(self.vocabulary)))
            result.append(
                {"image_id": row.image_id, "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
                | {"score": float(self.rng.uniform(0.1, 1))}
            )
        return result

    def report(self, name: str = "report") -> Folder:
        """The report; the next call with the same name returns the same one."""
        ctx = self.context(name)
        if not ctx.out.exists("report.html"):
            ctx.inputs = {stage: self.inputs[stage] for stage in needs(self.config)}
            assert REPORT.run(ctx) == {"report": "report.html"}
            self.written[name] = ctx.out.written
        return ctx.out


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("run"), make_config())


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Another threshold, and other numbers, on the same images."""
    return Workspace(tmp_path_factory.mktemp("other"), make_config(labels={"splits": ["scene"], "threshold": 0.5}), 1)


class Page(HTMLParser):
    """Tags in balance, ids, references, and the visible text."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.classes: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(attrs)

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.ids.append(str(values["id"]))
        self.links += [str(values[name]) for name in ("href", "src") if values.get(name)]
        self.classes += str(values.get("class", "")).split()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def test_page_is_whole_and_self_contained(workspace: Workspace) -> None:
    html = workspace.report().read_bytes("report.html").decode()
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert page.links
    for link in page.links:
        assert link.startswith(("#", "data:image/", "data:text/"))
        assert not link.startswith("#") or link[1:] in page.ids
    assert "script" not in page.tags
    # The style sheet fetches nothing either.
    assert "url(" not in html
    assert "@import" not in html
    anchors = {"results", "detections", "data", "concepts", "teacher", "rpn", "proposals", "labels", "pretrain"}
    assert anchors | {"finetune", "artifacts"} <= set(page.ids)


def test_same_inputs_give_the_same_bytes(workspace: Workspace) -> None:
    workspace.report(), workspace.report("report-2")
    first, second = workspace.written["report"], workspace.written["report-2"]
    assert [(f.name, f.sha256) for f in first] == [(f.name, f.sha256) for f in second]
    tables = {f.name for f in first if f.name.endswith(".csv")}
    assert {f.name for f in first} - tables == {"report.html", "results.txt", "results.md"}


def test_page_says_what_the_stages_measured(workspace: Workspace) -> None:
    page = Page(workspace.report().read_bytes("report.html").decode())
    for words in (
        "+13.2",  # zero-shot given boxes, RegionCLIP - CLIP: 38.25 - 25, rounded
        "71.4",  # base recall at 10
        "77.8",  # kept share
        "68.1",  # accuracy of labels
        "1,234 (43.7)",  # clean labels
        "a <b> & c",
        "holds here",
        "Bad samples, left out: image 2.",
        f"Not in it: {workspace.vocabulary.names[0]}.",
        "rare 699, rare 698",
    ):
        assert words in page.text, words


def test_page_shows_the_concepts_of_most_and_of_fewest_clean_labels(workspace: Workspace) -> None:
    html = workspace.report().read_bytes("report.html").decode()
    found = [re.findall(">([^<]*)</td>", row) for row in re.findall("<tr>(.*?)</tr>", html, re.DOTALL)]
    rows = {row[0]: row[1:4] for row in found if len(row) == 7}
    assert len(rows) == min(20, len(workspace.truth))
    for one in [*workspace.truth[:10], *workspace.truth[10:][-10:]]:
        clean = f"{one['clean']} ({100 * one['clean'] / one['kept']:.1f})"
        assert rows[html_escape(one["concept"])] == [str(one["kept"]), clean, str(one["wrong_name"])]


def test_page_says_where_labels_are_from(tmp_path: Path) -> None:
    labels = {"splits": ["scene"], "source": "made/<rows>.json", "corrections": "c.csv", "synonyms": "world"}
    given = Workspace(tmp_path, make_config(labels=labels))
    source = {"rows": 1234, "used": 1200, "rejected": {"bad_box": 30, "unknown_image": 4}}
    corrections = {"used": 1100, "without_region": []}
    kept = {"regions": 90, "kept": 70, "kept_share": 7 / 9}
    given.finish(given.inputs["labels"], "labels", {**kept, "source": source, "corrections": corrections}, {})
    text = " ".join(Page(given.report().read_bytes("report.html").decode()).text.split())
    assert (
        "Boxes, names and scores are those of made/<rows>.json. Regions with a score of at most 0.1 are not kept."
        in text
    )
    assert "The teacher compares" not in text
    assert "Of 1,234 rows of the file 1,200 could be used: bad box 30, unknown image 4." in text
    assert "A person's corrections (c.csv) won over these labels in 1,100 regions." in text


def rows_of_csv(folder: Folder, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(folder.read_bytes(f"{name}.csv").decode())))


def test_every_table_is_there_as_csv_in_the_page_and_beside_it(workspace: Workspace) -> None:
    report = workspace.report()
    html = report.read_bytes("report.html").decode()
    assert len(re.findall(r"</table></div>\s*<p class=\"csv\">", html)) == html.count("<table")
    linked = dict(re.findall(r'<a download="([^"]+\.csv)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html))
    written = {f.name for f in workspace.written["report"] if f.name.endswith(".csv")}
    assert linked.keys() == written and len(written) >= 15
    for name, text in linked.items():
        assert base64.b64decode(text) == report.read_bytes(name)
    # Unrounded, and what the page shows.
    [gain] = [
        r
        for r in rows_of_csv(report, "results")
        if (r["setting"], r["model"]) == ("zero-shot, given boxes", "difference")
    ]
    assert float(gain["top1 novel"]) == 13.25
    assert [row["seconds"] for row in rows_of_csv(report, "times")] == ["60.0"] * len(workspace.inputs)


def test_head_says_where_the_numbers_come_from(workspace: Workspace) -> None:
    html = workspace.report().read_bytes("report.html").decode()
    head = Page(html.split('<section id="origin">')[1].split("</section>")[0]).text
    words = " ".join(head.split())
    stages = len(workspace.inputs)
    for text in (
        "c" * 12,
        "2.9.9",
        "node-7: Linux x86_64, 2 CPUs",
        "2026-03-01 10:21",
        "What the seed means",
        f"{stages} min",
    ):
        assert text in words, text
    assert "git checkout " + "c" * 40 in words and "different versions" not in words
    [url] = set(re.findall(r'download="config.yaml" href="([^"]+)"', html))
    again = parse_config(parse_yaml(base64.b64decode(url.split(",")[1]).decode(), "config.yaml"))
    assert again.workspace == "runs/again" and again != workspace.config
    same = {"workspace": workspace.config.workspace, "execution": workspace.config.execution}
    assert again.model_copy(update=same) == workspace.config


def found_in(workspace: Workspace, name: str) -> dict[int, list[Detection]]:
    """Detections by image, highest score first."""
    rows = workspace.inputs["evaluate"].read_json(f"detections-{name}.json")
    found: dict[int, list[Detection]] = {}
    for row in sorted(rows, key=lambda row: -row["score"]):
        x, y, w, h = row["bbox"]
        found.setdefault(row["image_id"], []).append(Detection((x, y, x + w, y + h), row["category_id"], row["score"]))
    return found


def val_rows(workspace: Workspace) -> list[Any]:
    return [row for shard in workspace.shards["val"]["shards"] for row in workspace.rows(shard)]


def test_counts_over_all_images_and_pictures_chosen_by_them(workspace: Workspace) -> None:
    report = workspace.report()
    vocabulary, novel = workspace.vocabulary, set(workspace.vocabulary.novel_ids)
    images = {row.image_id: objects_of(row) for row in val_rows(workspace)}
    right: dict[str, dict[int, int]] = {}
    wrong: dict[str, dict[int, int]] = {}
    table = {row["detector"]: row for row in rows_of_csv(report, "detections")}
    for name, title in INITS.items():
        found, by_novel = found_in(workspace, name), 0
        for image, objects in images.items():
            counted = [one for one in found.get(image, []) if one.score >= 0.3][:8]
            hits = correct(counted, objects)
            right.setdefault(name, {})[image] = sum(hits)
            wrong.setdefault(name, {})[image] = len(hits) - sum(hits)
            by_novel += sum(hit and one.label in novel for one, hit in zip(counted, hits, strict=True))
        expected = [sum(map(len, images.values())), sum(right[name].values()), by_novel, sum(wrong[name].values())]
        columns = ("objects", "found", "novel found", "wrong boxes")
        assert [int(table[title][column]) for column in columns] == expected
    html = report.read_bytes("report.html").decode()
    section = html.split('<section id="detections">')[1].split("</section>")[0]
    gain = {i: (right["regionclip"][i] - right["clip"][i], wrong["clip"][i] - wrong["regionclip"][i]) for i in images}
    order = sorted(images, key=lambda image: (-gain[image][0], -gain[image][1], image))
    keys = {row.image_id: row.key for row in val_rows(workspace)}
    parts = re.split("<h3>", section)[1:]
    shown = [re.findall('aria-label="ground truth of ([^"]+)"', part) for part in parts]
    assert shown[0] == [keys[order[0]]] and shown[-1] == [keys[order[-1]]]  # three pictures: one of each kind
    assert f"as many in {sum(first == 0 for first, _ in gain.values())}" in " ".join(Page(section).text.split())
    assert len(re.findall('<use href="#(image-[0-9]+)"', section)) == 9  # three views of each
    assert html.count("data:image/") == len(set(re.findall('<use href="#(image-[0-9]+)"', html)))

    # Which name an object of a novel category got: of the best box on it, whatever its score.
    names: Counter[tuple[str, str]] = Counter()
    found = found_in(workspace, "regionclip")
    for image, objects in images.items():
        for box, label in objects:
            if label in novel:
                on = [one.label for one in found.get(image, []) if naive_iou(one.box, box) >= 0.5]
                names[vocabulary.names[label], vocabulary.names[on[0]] if on else "(no box)"] += 1
    told = {(r["category"], r["name given"]): int(r["objects"]) for r in rows_of_csv(report, "names-of-novel-objects")}
    assert told == names and len(told) > 3


def test_curves_are_those_of_coco_and_of_the_recall(workspace: Workspace) -> None:
    """The mean precision of a group is its AP50 by pycocotools; recall is that of the stage that counts it."""
    report = workspace.report()
    curves = rows_of_csv(report, "precision-recall")
    vocabulary = workspace.vocabulary
    for name, title in INITS.items():
        ap50 = coco_ap50(val_rows(workspace), workspace.inputs["evaluate"].read_json(f"detections-{name}.json"))
        for group, labels in (("novel", vocabulary.novel_ids), ("base", vocabulary.base_ids)):
            precision = [float(r["precision"]) for r in curves if (r["detector"], r["group"]) == (title, group)]
            assert len(precision) == 101
            there = [ap50[label] for label in labels if label in ap50]
            assert np.mean(precision) == pytest.approx(100 * np.mean(there), abs=1e-6)
    recall = recall_of_splits(workspace.inputs["data"], workspace.inputs["proposals"], ["val"])["val"]
    curve = {
        (r["group"], int(float(r["proposals"]))): float(r["recall"]) for r in rows_of_csv(report, "recall-by-proposals")
    }
    assert curve["novel", 0] == 0 and curve["novel", 1] < curve["novel", 10]
    for group in ("novel", "base"):
        assert curve[group, 10] == pytest.approx(100 * recall[f"{group}_recall@10"])


def coco_ap50(rows: list[Any], detections: list[dict[str, Any]]) -> dict[int, float]:
    """AP50 by label, 0..1, by pycocotools; labels without an object are left out."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = []
    for row in rows:
        for (x0, y0, x1, y1), label in objects_of(row):
            shape = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
            truth.append({"id": len(truth) + 1, "image_id": row.image_id, "category_id": label, **shape})
    labels = sorted({one["category_id"] for one in truth})
    common = {"images": [{"id": row.image_id} for row in rows], "categories": [{"id": label} for label in labels]}
    found = [
        {**one, "id": i + 1, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0} for i, one in enumerate(detections)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (truth, found):
            side = COCO()
            side.dataset = {**common, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return {label: float(evaluator.eval["precision"][0, :, k, 0, -1].mean()) for k, label in enumerate(labels)}


def test_labels_are_counted_by_score_objectness_and_concept(workspace: Workspace) -> None:
    report = workspace.report()
    labels = workspace.inputs["labels"]
    regions = []
    for shard in workspace.shards["scene"]["shards"]:
        with labels.open(f"labels-{shard:05d}.parquet") as file:
            for row in pq.read_table(file).to_pylist():
                columns = (row["concept_id"], row["score"], row["kept"], row["objectness_logit"])
                regions += list(zip(*columns, strict=True))
    counts = Counter(workspace.pool.names[concept] for concept, _, kept, _ in regions if kept)
    shown = {r["concept"]: int(r["kept labels"]) for r in rows_of_csv(report, "labels-per-concept")}
    assert shown == {name: counts[name] for name in workspace.pool.names}
    assert list(shown.values()) == sorted(shown.values(), reverse=True)
    for what, value in (("score", 1), ("objectness logit", 3)):
        bins = [r for r in rows_of_csv(report, "label-histograms") if r["what"] == what]
        assert sum(int(r["regions"]) for r in bins) == len(regions)
        for row in bins:
            inside = [r for r in regions if np.float32(row["from"]) <= r[value] < np.float32(row["to"])]
            if float(row["to"]) < 1 or what != "score":  # the last bin of scores has 1 itself, too
                assert int(row["regions"]) == sum(r[2] == (row["use"] == "kept") for r in inside), row


@pytest.mark.parametrize(("width", "dark"), [(390, True), (900, False), (1280, False)])
def test_page_in_a_browser(workspace: Workspace, width: int, dark: bool) -> None:
    report = workspace.report()
    seen = look(Path(report.path("report.html")), width, dark)
    assert (seen.page_width, seen.too_wide, seen.hidden) == (width, [], [])
    assert (max(seen.background) < 60) if dark else (min(seen.background) > 230)
    assert (seen.requests, seen.console, seen.broken) == ([], [], 0) and seen.images > 5
    assert seen.csv == ("times.csv", report.read_bytes("times.csv").decode())
    scale = [pixels / value for value, pixels in seen.bars if 10 < value < 100]
    assert len(scale) > 100 and scale == pytest.approx([scale[0]] * len(scale), rel=0.02)  # longer by as much as better


def test_two_runs_side_by_side(workspace: Workspace, other: Workspace, tmp_path: Path) -> None:
    out = tmp_path / "compare.html"
    done = CliRunner().invoke(app, ["compare", str(workspace.root), f"{other.root}/evaluate/{MARK}", "--out", str(out)])
    assert done.exit_code == 0, done.output
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["labels.threshold", "0.4", "0.5"] in lines
    at = next(at for at, line in enumerate(lines) if line[:1] == ["settings"])
    assert lines[at + 2] == []  # that one alone
    assert "stages with the same content: data, concepts, pairs\n" in done.stdout
    said = [" ".join(line) for line in lines]
    assert "finetuned on base boxes RegionCLIP 36.5 33.5 -3.0 34.5 31.5 -3.0 35.5 32.5 -3.0" in said
    assert "zero-shot, given boxes RegionCLIP 60.2 60.2 0.0 58.2 58.2 0.0 59.2 59.2 0.0" in said
    assert "largest losses of B" in done.stdout and "largest gains of B" not in done.stdout

    seen = look(out, 390, dark=True)
    assert (seen.page_width, seen.too_wide, seen.requests, seen.console, seen.broken) == (390, [], [], [], 0)
    assert max(seen.background) < 60 and 3 <= seen.images <= 12
    assert list(csv.reader(io.StringIO(seen.csv[1]))) == [["setting", "A", "B"], ["labels.threshold", "0.4", "0.5"]]
    html = out.read_text()
    assert len(re.findall(r"</table></div>\s*<p class=\"csv\">", html)) == html.count("<table")
    linked = dict(re.findall(r'download="([^"]+).csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html))
    tables = {name: list(csv.DictReader(io.StringIO(base64.b64decode(text).decode()))) for name, text in linked.items()}
    results = {(r["setting"], r["model"], r["metric"], r["group"]): float(r["B - A"]) for r in tables["results"]}
    assert results["finetuned on base boxes", "RegionCLIP", "ap", "novel"] == -1.5
    assert {row["B - A"] for row in tables["ap50-per-category"]} == {"-3.0", ""}
    # What each found in all images is what its own report says.
    totals = [list(row.values())[1:] for row in tables["detections"]]
    reports = [rows_of_csv(one.report(), "detections") for one in (workspace, other)]
    title = INITS["regionclip"]
    assert totals == [list(row.values())[1:] for rows in reports for row in rows if row["detector"] == title]


def test_pictures_are_compared_of_the_same_images_only(workspace: Workspace, other: Workspace) -> None:
    a, b = find_run(str(workspace.root)), find_run(str(other.root))
    evaluated = replace(b.manifests["evaluate"], inputs={"data": "0" * 64})
    elsewhere = replace(b, manifests={**b.manifests, "evaluate": evaluated})
    page = build_comparison_page(compare(a, elsewhere, pictures=True))
    assert "None are shown: the runs evaluated different images." in page and "data:image" not in page
    gone = replace(a, folders={k: v for k, v in a.folders.items() if k != "data"})
    assert "is no longer in its workspace" in compare(gone, b, pictures=True).why_no_pictures


def test_what_is_no_run_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    here, cells = str(workspace.root), tmp_path / "x.ablation.json"
    cells.write_text('{"cells": [{"variant": "paper", "seed": 0}, {"variant": "paper", "seed": 1}]}')
    lvis = tmp_path / "lvis" / "evaluate" / MARK
    shutil.copytree(workspace.folder("evaluate").url, lvis)
    (lvis / "metrics.json").write_text('{"protocol": "lvis"}')
    for given, said in (
        ([str(tmp_path), here], f"{tmp_path}: expected a workspace, an artifact of evaluate"),
        ([here, f"{here}/labels/{MARK}"], "but it is an artifact of labels"),
        ([f"{here}/evaluate/{MARK}/metrics.json", here], "but it is a file"),
        ([here, f"{cells}:papre:0"], "no variant 'papre'; variants: paper; nearest: paper"),
        ([here, f"{cells}:paper"], "its cells: paper:0, paper:1"),
        ([f"{tmp_path}/none.ablation.json:a:0", here], "no such file"),
        ([here, str(tmp_path / "lvis")], "measured by the protocol coco and"),
        ([here, here, "--out", "x.txt"], "--out: expected a file that ends in .html (came: 'x.txt')"),
        ([here, here, "--out", str(tmp_path / "no" / "x.html")], "is no folder"),
    ):
        done = CliRunner().invoke(app, ["compare", *given])
        assert done.exit_code == 2 and done.stderr.startswith("error: "), done.output
        assert said in done.stderr


def test_needs_and_settings() -> None:
    assert "rpn" in needs(make_config())
    grid = make_config(proposals={"splits": list(SPLITS), "method": "grid"})
    assert "rpn" not in needs(grid)
    settings = STAGES["report"].settings(grid)  # the page prints settings of every stage, but not where it ran
    assert settings["report"] == {"images": 3}
    assert settings["proposals"]["method"] == "grid"
    assert not {"execution", "workspace"} & set(settings)


def test_runs_without_the_optional_parts(tmp_path: Path) -> None:
    """No proposal network, no oracle, no trained teacher, no annotated boxes to check on, nothing measured."""
    config = make_config(
        proposals={"splits": list(SPLITS), "method": "grid"},
        finetune={"oracle": False},
        teacher={"weights": "random"},
        report={"images": 0},
    )
    bare = Workspace(tmp_path, config)
    bare.folder("teacher").remove("history.json")
    bare.folder("concepts").remove("dropped.parquet")
    bare.inputs["evaluate"].write_json("metrics.json", BAD_METRICS)
    for stage, summary in (("proposals", {"recall": {}}), ("labels", {"regions": 0, "kept": 0, "kept_share": 0.0})):
        bare.finish(bare.inputs[stage], stage, summary, {})
    page = Page(bare.report().read_bytes("report.html").decode())
    assert "rpn" not in page.ids
    assert "Ground truth" not in page.text  # no pictures, but the counts
    assert "Of 12 images, RegionCLIP init finds more objects than CLIP init in" in " ".join(page.text.split())
    assert page.text.count("not measured") == 3
    assert "The teacher was not trained in this run." in page.text
    assert "oracle" not in page.text.split("Finetuning")[2].split("Artifacts")[0]


def test_runs_of_published_weights(tmp_path: Path) -> None:
    """Nothing is pretrained or finetuned: there are no concepts, labels and pairs, and no curves."""
    named = Workspace(
        tmp_path,
        make_config(pretrain={"weights": "made/<student>"}, finetune={"weights": "made/detector"}),
    )
    for stage, names in (
        ("pretrain", ["history"]),
        ("finetune", [f"history-{n}" for n in ("clip", "regionclip", "oracle")]),
    ):
        [named.folder(stage).remove(f"{name}.json") for name in names]
    page = Page(named.report().read_bytes("report.html").decode())
    assert {"concepts", "labels"}.isdisjoint(page.ids)
    assert {"pretrain", "finetune"} <= set(page.ids)
    for weights in ("made/<student>", "made/detector"):
        assert f"Nothing was trained in this run: the weights are those of {weights}." in page.text


def test_unfinished_input_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    ctx = workspace.context("report-3")
    ctx.inputs = {
        **{s: workspace.inputs[s] for s in needs(workspace.config)},
        "labels": Folder(str(tmp_path)),
    }
    with pytest.raises(ValueError, match="run the labels stage first"):
        REPORT.run(ctx)
