"""A real pipeline as small as it can be, on the embedded world with an untrained teacher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import STAGE_NAMES, Config
from stages.engine.progress import Reporter
from stages.engine.runner import Pipeline, RunResult

DETERMINISTIC = ("data", "concepts", "proposals", "labels", "pairs")
"""Stages whose artifacts are the same bytes on every backend and after any interruption."""
ARCHITECTURE = {
    "embed_dim": 16, "image_size": 32, "vision_width": 8, "text_width": 16, "text_heads": 2, "context_length": 16,
}  # fmt: skip
STEPS = {"steps": 2, "batch_size": 4, "image_size": 64, "checkpoint_every": 1}
SMALL: dict[str, Any] = {
    "seed": 3,
    "execution": {"backend": "local", "threads": 1},
    "data": {
        "shard_size": 4,
        "splits": {
            "train": {"source": "world", "images": 8, "image_size": 80},
            "val": {"source": "world", "images": 4, "image_size": 80},
        },
    },
    "concepts": {"splits": ["train", "val"], "min_count": 1, "parser": "rules"},
    "teacher": {"weights": "random", "architecture": ARCHITECTURE, "prompts": "single"},
    "rpn": {"width": 4, "image_size": 64, "anchor_sizes": [8, 16], "steps": 2, "batch_size": 2},
    "proposals": {"splits": ["train", "val"], "method": "grid", "max_regions": 6},
    "labels": {"splits": ["train"], "image_size": 64, "threshold": 0.0, "max_regions": 4, "top_k": 3},
    "pretrain": {**STEPS, "regions_per_image": 3},
    "finetune": {**STEPS, "regions_per_image": 8},
    "evaluate": {"image_size": 64, "batch_size": 4},
    "report": {"images": 1},
}


def small_tree(workspace: Path | str, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as YAML would give it; `sections` replace single settings."""
    tree = {**SMALL, "workspace": str(workspace)}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return tree


def small_config(workspace: Path | str, **sections: Mapping[str, Any]) -> Config:
    return parse_config(small_tree(workspace, **sections))


def run_small(config: Config, *stages: str) -> RunResult:
    """Run stages (all if none is named) and what they need, without showing anything."""
    return Pipeline(config, Reporter()).run(stages or None)


def artifact(workspace: Path, stage: str) -> Path:
    """The only artifact of a stage in a local workspace."""
    [folder] = (workspace / stage).iterdir()
    return folder


def manifest(workspace: Path, stage: str) -> dict[str, Any]:
    """The manifest of a stage's only artifact."""
    found: dict[str, Any] = json.loads((artifact(workspace, stage) / "manifest.json").read_text())
    return found


def content(workspace: Path, stages: tuple[str, ...] = STAGE_NAMES) -> dict[str, str]:
    """Content digest of each finished stage."""
    return {stage: manifest(workspace, stage)["content_digest"] for stage in stages if (workspace / stage).exists()}
