"""Artifacts that several test files of the core read; none of them writes to these."""

from __future__ import annotations

import pytest
from small_artifacts import TRAIN, run_stage, tiny_config, write_data

from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES


@pytest.fixture(scope="session")
def boxes_data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Hand-made pictures: the split `train` in two shards, and the same again as `val`."""
    return write_data(tmp_path_factory.mktemp("boxes"), {"train": TRAIN, "val": TRAIN})


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """What the stages up to pairs make of a few images of the embedded world, by stage."""
    root = tmp_path_factory.mktemp("world")
    config = tiny_config()
    done: dict[str, Folder] = {}
    for name in ("data", "concepts", "teacher", "proposals", "labels", "pairs"):
        stage = STAGES[name]
        ctx = StageContext(config, Folder(str(root / name)), {need: done[need] for need in stage.needs(config)})
        run_stage(stage, ctx)
        done[name] = ctx.out
    return done
