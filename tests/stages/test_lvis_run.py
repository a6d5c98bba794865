"""LVIS from the annotation file to the report: repeat factors, the mask head, and evaluation by LVIS's rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lvis_samples import BASE, NAMES, write_lvis
from metrics_layout import metric_keys, paths_of
from small_runs import artifact, run_small, small_config

from regionclip_core.config.tree import STAGE_NAMES
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.paper_tables import paper_numbers
from regionclip_core.storage.folder import Folder

GROUPS = ("base", "novel", "all", "rare", "common", "frequent")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a small LVIS-style set, on the proposals of a small trained network."""
    root = tmp_path_factory.mktemp("lvis")
    train = write_lvis(root, 14, seed=1)
    val = write_lvis(root, 8, name="lvis_v1_val", subfolder="val2017", seed=2)
    config = small_config(
        root / "ws",
        data={
            "shard_size": 6,
            "categories": str(train.instances),
            "splits": {"train": train.split(captions=str(train.captions)), "val": val.split()},
        },
        concepts={"splits": ["train"], "min_count": 1},
        proposals={"splits": ["train", "val"], "method": "rpn", "max_regions": 20},
        finetune={
            "sampling": "repeat_factor",
            "repeat_threshold": 0.3,
            "train_sizes": [48, 64],
            "mask_head": True,
            "background": "zero",
            "background_weight": 0.8,
            "focal_gamma": None,
        },
        evaluate={
            "protocol": "lvis",
            "score_threshold": 0.0,
            "max_detections": 30,
            "nms_kind": "gaussian",
            "objectness": "raw_logit",
            "finetuned_objectness": "sigmoid",
            "zero_shot_background": "zero",
        },
    )
    result = run_small(config)
    assert result.ok, result.messages
    return root / "ws"


def metrics_of(workspace: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((artifact(workspace, "evaluate") / "metrics.json").read_text())
    return metrics


def test_every_stage_is_done(finished: Path) -> None:
    assert all((artifact(finished, stage) / "manifest.json").is_file() for stage in STAGE_NAMES)


def test_rare_categories_are_novel_and_train_nothing(finished: Path) -> None:
    data = artifact(finished, "data")
    vocabulary = Vocabulary.from_json(json.loads((data / "categories.json").read_text()))
    assert (vocabulary.names, set(vocabulary.base)) == (NAMES, set(BASE))
    assert {name for name, _ in vocabulary.groups} == {"rare", "common", "frequent"}
    finetune = artifact(finished, "finetune")
    for name in ("clip", "regionclip"):
        trained_on = json.loads((finetune / f"{name}.json").read_text())["names"]
        assert trained_on == [n for n in NAMES if n in BASE]
    history = json.loads((finetune / "history-regionclip.json").read_text())
    assert {"loss_cls", "loss_box_reg", "loss_mask"} <= set(history[0])


def test_the_index_keeps_what_lvis_knows_of_each_image(finished: Path) -> None:
    data = Folder(str(artifact(finished, "data")))
    rows = [row for shard in split_shards(data, ("val",)) for row in read_index(data, shard)]
    assert len(rows) == 8
    assert all(row.neg_labels is not None and len(row.box_masks) == len(row.boxes) for row in rows)
    assert any(len(row.neg_labels) for row in rows if row.neg_labels is not None)


def test_metrics_hold_boxes_and_masks_of_every_group(finished: Path) -> None:
    metrics = metrics_of(finished)
    vocabulary = Vocabulary.from_json(json.loads((artifact(finished, "data") / "categories.json").read_text()))
    assert (metrics["protocol"], metrics["images"]) == ("lvis", 8)
    assert metric_keys(vocabulary, "lvis", masks=True) == paths_of(metrics)
    found = metrics["finetuned"]["regionclip"]
    for scores in (found, found["segm"]):
        assert set(GROUPS) <= set(scores)
        assert {"APr", "APc", "APf", "AP"} <= set(scores["lvis"])
        assert set(scores["per_category"]) == set(NAMES)
    assert all(0 <= found[group]["ap50"] <= 100 for group in GROUPS if found[group]["ap50"] is not None)
    tables = paper_numbers(metrics)
    assert any("mask" in title for title in tables)


def test_detections_carry_masks_and_the_report_is_there(finished: Path) -> None:
    rows = json.loads((artifact(finished, "evaluate") / "detections-regionclip.json").read_text())
    assert rows
    assert all(set(row["segmentation"]) == {"size", "counts"} for row in rows)
    report = artifact(finished, "report")
    assert "APr" in (report / "report.html").read_text()
    assert "finetuned on base boxes, masks" in (report / "results.txt").read_text()
