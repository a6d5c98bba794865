"""The preset `coco_tiny` on a few COCO images: RN50 in its true size, random weights, the open-vocabulary rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metrics_layout import metric_keys, paths_of
from places import TINY_COCO
from small_runs import artifact
from typer.testing import CliRunner

from regionclip_core.config.loading import load_config
from regionclip_core.datasets.categories import load_categories
from regionclip_core.evaluation.paper_tables import paper_numbers
from stages.cli import app


@pytest.mark.slow
@pytest.mark.skipif(not TINY_COCO.is_dir(), reason="no tiny_coco beside the repository")
def test_coco_tiny_gives_every_number_of_the_papers_tables(tmp_path: Path) -> None:
    settings = ["concepts.min_count=1", "data.splits.val.masks=true", "evaluate.masks=true"]
    for split, limit in (("train", 10), ("val", 6)):
        settings += [
            f"data.splits.{split}.limit={limit}",
            f"data.splits.{split}.images={TINY_COCO / f'{split}2017'}",
            f"data.splits.{split}.instances={TINY_COCO / f'annotations/instances_{split}2017.json'}",
            f"data.splits.{split}.captions={TINY_COCO / f'annotations/captions_{split}2017.json'}",
        ]
    sets = [part for setting in settings for part in ("--set", setting)]
    common = ["--config", "coco_tiny", "--workspace", str(tmp_path / "ws"), "--backend", "local", *sets]
    result = CliRunner().invoke(app, ["run", *common])
    assert result.exit_code == 0, result.output
    metrics = json.loads((artifact(tmp_path / "ws", "evaluate") / "metrics.json").read_text())
    vocabulary = load_categories(load_config("coco_tiny").data.categories)
    expected = metric_keys(vocabulary, "coco", detectors=("clip", "regionclip"), given_masks=True)
    assert expected == paths_of(metrics)
    for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned"):
        assert set(metrics[setting]["regionclip"]["per_category"]) == set(vocabulary.names)
    assert len(vocabulary) == 65
    assert {"clip", "regionclip"} == set(next(iter(paper_numbers(metrics).values())))
