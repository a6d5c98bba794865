"""The report stage on a made-up workspace whose files come from the pipeline's own writers."""

from __future__ import annotations

import re
from html import escape as html_escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from regionclip_core.config.tree import Config
from regionclip_core.datasets.index import read_index
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import save_embeddings
from regionclip_core.pretraining.concept_truth import write_truth
from regionclip_core.pretraining.label_quality import label_quality
from regionclip_core.storage.records import Folder, Manifest, ShardRecord, content_digest, write_manifest
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, LABELS, PROPOSALS
from stages.base import StageContext
from stages.data import WORK as DATA
from stages.declarations import STAGES
from stages.report import WORK as REPORT

needs = STAGES["report"].needs

SPLITS = {"scene": 12, "train": 4, "val": 12}
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

    def __init__(self, root: Path, config: Config) -> None:
        self.config = config
        self.root = root
        self.rng = np.random.default_rng(0)
        self.inputs: dict[str, Folder] = {}
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
        return StageContext(self.config, Folder(str(self.root / stage)), dict(self.inputs))

    def finish(self, folder: Folder, stage: str, summary: dict[str, Any], counts: dict[str, int]) -> None:
        self.inputs[stage] = folder
        digest = content_digest(folder.written)
        settings = {"seed": self.config.seed}
        size = sum(f.bytes for f in folder.written)
        manifest = Manifest(
            stage, 1, "f" * 64, settings, {}, {}, summary, 1, 12, counts, len(folder.written), size, digest
        )
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
        folder = Folder(str(self.root / "concepts"))
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
        proposals, labels = Folder(str(self.root / "proposals")), Folder(str(self.root / "labels"))
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
        _, table = label_quality(self.inputs["data"], Folder(str(self.root / "concepts")), labels, ("scene",))
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
        folder = Folder(str(self.root / stage))
        for name, losses in histories.items():
            rows = []
            for step in range(10, 210, 10):
                parts = {loss: float(3 / (1 + step / 40) + self.rng.uniform(0, 0.2)) for loss in losses}
                rows.append({"step": step, "lr": 1e-3 * (1 - step / 210), "loss": sum(parts.values()), **parts})
            folder.write_json(name, rows)
        folder.write_json("weights.json", {})
        self.finish(folder, stage, summary, {})

    def evaluate(self, names: list[str]) -> None:
        folder = Folder(str(self.root / "evaluate"))

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
            "finetuned": {name: scores(29.5 + 5 * i, False) for i, name in enumerate(names)},
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
        ctx = self.context(name)
        ctx.inputs = {stage: self.inputs[stage] for stage in needs(self.config)}
        assert REPORT.run(ctx) == {"report": "report.html"}
        return ctx.out


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("run"), make_config())


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
        assert link.startswith(("#", "data:image/"))
        assert not link.startswith("#") or link[1:] in page.ids
    assert "script" not in page.tags
    # The style sheet fetches nothing either.
    assert "url(" not in html
    assert "@import" not in html
    anchors = {"results", "detections", "data", "concepts", "teacher", "rpn", "proposals", "labels", "pretrain"}
    assert anchors | {"finetune", "artifacts"} <= set(page.ids)


def test_same_inputs_give_the_same_bytes(workspace: Workspace) -> None:
    first, second = workspace.report("report-1"), workspace.report("report-2")
    assert [(f.name, f.sha256) for f in first.written] == [(f.name, f.sha256) for f in second.written]
    assert {f.name for f in first.written} == {"report.html", "results.txt", "results.md"}


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


def test_pictures_show_validation_images_with_novel_objects(workspace: Workspace) -> None:
    html = workspace.report().read_bytes("report.html").decode()
    detections = html.split('<section id="detections">')[1].split("</section>")[0]
    counts = [int(n) for n in re.findall(r"<b>Ground truth</b> \d+ objects, (\d+) novel", detections)]
    novel = set(workspace.vocabulary.novel_ids)
    images = [row for shard in workspace.shards["val"]["shards"] for row in workspace.rows(shard)]
    with_novel = sum(bool(novel & set(row.box_labels.tolist())) for row in images)
    assert len(counts) == 3
    assert sum(count > 0 for count in counts) == min(3, with_novel)
    # Three views of each image, which is in the page once.
    assert len(re.findall('<use href="#(image-[0-9]+)"', detections)) == 9
    assert len(set(re.findall('<use href="#(image-[0-9]+)"', detections))) == 3
    assert html.count("data:image/") == len(set(re.findall('<use href="#(image-[0-9]+)"', html)))


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
    Folder(str(tmp_path / "teacher")).remove("history.json")
    Folder(str(tmp_path / "concepts")).remove("dropped.parquet")
    bare.inputs["evaluate"].write_json("metrics.json", BAD_METRICS)
    for stage, summary in (("proposals", {"recall": {}}), ("labels", {"regions": 0, "kept": 0, "kept_share": 0.0})):
        bare.finish(bare.inputs[stage], stage, summary, {})
    page = Page(bare.report().read_bytes("report.html").decode())
    assert {"rpn", "detections"}.isdisjoint(page.ids)
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
        [Folder(str(tmp_path / stage)).remove(f"{name}.json") for name in names]
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
