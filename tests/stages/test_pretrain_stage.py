"""pretrain starts from the teacher, or from a student that is given."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from small_runs import artifact, run_small, small_config
from torch import Tensor

from regionclip_core.models.clip import build_clip, load_clip, save_clip, small_architecture
from regionclip_core.storage.folder import Folder
from stages.engine.plan import Planner

FROZEN = "visual.layer3.0.conv1.weight"


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_clip(Folder(str(folder))).model.state_dict())


def test_a_student_can_start_from_another_one(tmp_path: Path) -> None:
    workspace = tmp_path / "ws"
    assert run_small(small_config(workspace), "pretrain").ok
    teacher = weights(artifact(workspace, "teacher"))
    first = tmp_path / "first"
    shutil.copytree(artifact(workspace, "pretrain"), first / "student")  # as in a pretrained folder
    begun = weights(first / "student")
    assert not torch.equal(begun[FROZEN], teacher[FROZEN])

    # With all frozen but the attention pool, what it started from can still be seen.
    config = small_config(workspace, pretrain={"init": str(first), "freeze_at": 5})
    assert run_small(config, "pretrain").ok
    line = Planner(config).finished()["pretrain"]
    second = weights(Path(str(line.path)))
    assert torch.equal(second[FROZEN], begun[FROZEN])
    changed = {name for name in second if not torch.equal(second[name], begun[name])}
    assert changed and all(name.startswith("visual.attnpool.") for name in changed)
    assert all(torch.equal(second[name], teacher[name]) for name in second if not name.startswith("visual."))

    # Its content counts, not its place.
    assert set(line.raw_inputs) == {str(first / "student" / name) for name in ("clip.json", "clip.safetensors")}
    other = build_clip(small_architecture(config.teacher.architecture), "small", 9)
    save_clip(other, Folder(str(first / "student")))
    assert "pretrain" not in Planner(config).finished()

    wider = {**small_architecture(config.teacher.architecture), "embed_dim": 32}
    save_clip(build_clip(wider, "small", 9), Folder(str(first / "student")))
    refused = run_small(config, "pretrain")
    assert not refused.ok
    assert "pretrain.init: " in refused.messages["pretrain"]
    assert "the student must have the teacher's" in refused.messages["pretrain"]
