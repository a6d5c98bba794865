"""Whole trainings with worker processes that read: killed and run again, they leave the same bytes and counts."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from small_artifacts import run_stage, tiny_config

from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def torn(world: dict[str, Folder], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    """The world, with two images that can no longer be decoded."""
    root = tmp_path_factory.mktemp("torn")
    for name in ("data", "pairs"):
        folder = Folder(str(root / name))
        for file in world[name].names():
            data = bytearray(world[name].read_bytes(file))
            if file.endswith("00000.tar"):
                with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
                    images = [member for member in tar.getmembers() if not member.name.endswith("json")]
                for member in (images[0], images[2]):
                    data[member.offset_data + 20 : member.offset_data + member.size] = bytes(member.size - 20)
            folder.write_bytes(file, bytes(data))
    return {**world, **{name: Folder(str(root / name)) for name in ("data", "pairs")}}


def train(name: str, inputs: dict[str, Folder], root: Path, workers: int, die_at: int) -> tuple[Any, ...]:
    """Run a training that dies and is run again; return what it leaves and says."""
    steps = {"steps": 13, "checkpoint_every": 4, "batch_size": 4}
    config = tiny_config(
        teacher={"weights": "train", "training": {**steps, "splits": ["train", "val"], "min_crop": 0.3}},
        pretrain=steps,
        finetune={**steps, "sampling": "repeat_factor"},
        execution={"max_error_rate": 0.9},
    )

    def context(die_at: int) -> StageContext:
        def progress(done: int, total: int, *_: Any) -> None:
            if done == die_at:
                raise Killed

        ctx = StageContext(config, Folder(str(root)), {**inputs, "pretrain": inputs["teacher"]}, progress=progress)
        ctx.loader_workers = workers
        return ctx

    with pytest.raises(Killed):
        run_stage(STAGES[name], context(die_at))
    ctx = context(-1)
    summary = run_stage(STAGES[name], ctx)
    checkpoints = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("step-*.pt")}
    return {file.name: file.sha256 for file in ctx.out.written}, checkpoints, summary, ctx.counts


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("stage", ["teacher", "pretrain", pytest.param("finetune", marks=pytest.mark.slow)])
def test_a_training_is_the_same_with_any_number_of_workers(torn: dict[str, Folder], tmp_path: Path, stage: str) -> None:
    alone, three = (train(stage, torn, tmp_path / str(workers), workers, 10) for workers in (0, 3))
    assert alone[0]
    assert alone[1]
    assert alone[3] == {"bad_image": 2}
    assert alone == three
