"""The detections of a run on COCO-style files, read by pycocotools with the annotation file that the user gave."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metrics_layout import COCO_NUMBERS
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from small_inputs import NAMES, write_coco
from small_runs import artifact, manifest, run_small, small_config

from regionclip_core.datasets.index import category_ids
from regionclip_core.report.samples import read_detections
from regionclip_core.storage.folder import Folder

ABSENT = NAMES[5]
"""A category of the vocabulary that the evaluated split's file doesn't have."""


def renumber(url: str, first: int, without: str | None = None) -> dict[str, Any]:
    """Give an annotation file other ids, in another order than the vocabulary's, and a category outside of it."""
    body: dict[str, Any] = json.loads(Path(url).read_text())
    id_of = {one["id"]: first + 3 * (len(NAMES) - one["id"]) for one in body["categories"]}
    body["categories"] = [{**one, "id": id_of[one["id"]]} for one in body["categories"] if one["name"] != without]
    body["categories"].append({"id": 1, "name": "nothing we know"})
    known = {one["id"] for one in body["categories"]}
    for number, one in enumerate(body["annotations"]):
        one["category_id"] = id_of[one["category_id"]] if id_of[one["category_id"]] in known and number % 9 else 1
        one["id"] += 1  # 0 is "not matched" to pycocotools
        one["image_id"] = 1000 + 7 * one["image_id"]
        one["bbox"] = [value + 0.3 for value in one["bbox"]]
    for one in body["images"]:
        one["id"] = 1000 + 7 * one["id"]
    Path(url).write_text(json.dumps(body))
    return body


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished workspace, and the annotation file that it was evaluated on."""
    root = tmp_path_factory.mktemp("coco")
    splits = {name: write_coco(Folder(str(root / name)), images, name) for name, images in (("train", 4), ("val", 6))}
    renumber(splits["train"]["instances"], 500)
    truth = renumber(splits["val"]["instances"], 20, ABSENT)
    for split in splits.values():
        del split["captions"]
    config = small_config(
        root / "ws",
        data={"splits": {**splits, "texts": {"source": "world", "images": 4, "image_size": 80}}},
        concepts={"splits": ["texts"]},
        proposals={"splits": ["train", "val", "texts"], "method": "given"},
        labels={"splits": ["texts"]},
        evaluate={"split": "val"},
    )
    result = run_small(config)
    assert result.ok, result.messages
    return root / "ws", truth


def test_pycocotools_gives_the_numbers_of_metrics_json(run: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    workspace, truth = run
    folder = artifact(workspace, "evaluate")
    metrics = json.loads((folder / "metrics.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    files = {f"detections-{name}.json": ("finetuned", name) for name in metrics["finetuned"]}
    for setting in ("zero_shot_gt", "zero_shot_rpn"):
        files |= {f"detections-{setting.replace('_', '-')}-{name}.json": (setting, name) for name in metrics[setting]}
    assert len(files) == 7
    assert {file.name for file in folder.glob("detections-*")} == set(files)
    for file, (setting, name) in files.items():
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(tmp_path / "truth.json"))
            evaluation = COCOeval(coco, coco.loadRes(str(folder / file)), "bbox")
            evaluation.params.catIds = coco.getCatIds(catNms=NAMES)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        scores = metrics[setting][name]
        expected = [100 * value if value > -1 else None for value in evaluation.stats.tolist()]
        assert [scores["coco"][name] for name in COCO_NUMBERS] == pytest.approx(expected, abs=1e-9), file
        assert scores["coco"]["AP"] > 0
        ap50 = evaluation.eval["precision"][0, :, :, 0, -1].mean(axis=0)
        for row, category in enumerate(evaluation.params.catIds):
            ours = scores["per_category"][coco.cats[category]["name"]]
            assert (-1 if ours is None else ours / 100) == pytest.approx(ap50[row], abs=1e-9)


def test_values_are_float32_and_ids_are_the_files_own(run: tuple[Path, dict[str, Any]]) -> None:
    workspace, truth = run
    data = Folder(str(artifact(workspace, "data")))
    rows = json.loads((artifact(workspace, "evaluate") / "detections-zero-shot-gt-clip.json").read_text())
    numbers = [number for row in rows for number in (row["score"], *row["bbox"])]
    assert [float(str(np.float32(number))) for number in numbers] == numbers
    assert {row["image_id"] for row in rows} <= {one["id"] for one in truth["images"]}
    name_of = {one["id"]: one["name"] for one in truth["categories"]}
    ids = category_ids(data, "val")
    assert [name_of.get(number) for number in ids] == [None if name == ABSENT else name for name in NAMES]
    assert ids[5] == -6
    assert {row["category_id"] for row in rows} <= set(ids)
    assert category_ids(data, "train")[0] == 500 + 3 * (len(NAMES) - 1)
    assert category_ids(data, "texts") == list(range(len(NAMES)))
    found = dict(read_detections(Folder(str(artifact(workspace, "evaluate"))), "clip", ids))[1000]
    assert {0 <= one.label < len(NAMES) for one in found} == {True}


def test_boxes_outside_the_vocabulary_are_counted(run: tuple[Path, dict[str, Any]]) -> None:
    workspace, truth = run
    outside = sum(one["category_id"] == 1 for one in truth["annotations"])
    assert outside > 0
    assert manifest(workspace, "evaluate")["summary"]["boxes_outside_the_vocabulary"] == outside
    proposals = manifest(workspace, "proposals")
    assert proposals["counts"]["outside_the_vocabulary"] > outside  # those of the other split, too
    assert proposals["summary"]["given_boxes_outside_the_vocabulary"] == proposals["counts"]["outside_the_vocabulary"]
