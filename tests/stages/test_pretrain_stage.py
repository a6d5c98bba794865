"""pretrain starts from the teacher, or from a student that is given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import artifact, run_small, small_config
from torch import Tensor

from regionclip_core.models.clip import build_clip, load_clip, save_clip, small_architecture
from regionclip_core.pretraining.pairs import RegionPairs
from regionclip_core.storage.folder import Folder
from stages.commands.verify import verify_workspace
from stages.engine.plan import Planner

EVERYTHING = {
    "labels": {"crop_features": True, "grid_scales": [0.5]},
    "pairs": {"min_regions": 0, "other_regions": 6},
    "pretrain": {"steps": 4, "crop_weight": 1.0, "weigh_by_score": True, "weight_average": 0.7},
}
FROZEN = "visual.layer3.0.conv1.weight"


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_clip(Folder(str(folder))).model.state_dict())


def test_crops_scores_and_an_average_are_learned_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = tmp_path / "ws"
    config = small_config(workspace, **EVERYTHING)
    assert run_small(config, "pretrain").ok
    folder = artifact(workspace, "pretrain")
    assert all(row["loss_crop"] > 0 for row in json.loads((folder / "history.json").read_text()))
    samples = RegionPairs(Folder(str(artifact(workspace, "pairs"))), 0, crops=True).batch(0, 8)
    assert all((len(sample.boxes), len(sample.other_boxes)) == (4, 6) for sample in samples)
    assert [problem for *_, found in verify_workspace(Folder(str(workspace))) for problem in found] == []
    average, teacher = weights(folder), weights(artifact(workspace, "teacher"))

    # The same bytes after it was cut short in its third step.
    before = (folder / "clip.safetensors").read_bytes()
    shutil.rmtree(folder)
    plain_batch = RegionPairs.batch

    def cut(pairs: RegionPairs, step: int, *place: int) -> Any:
        if step == 2:
            raise OSError("cut short")
        return plain_batch(pairs, step, *place)

    with monkeypatch.context() as patch:
        patch.setattr(RegionPairs, "batch", cut)
        assert not run_small(config, "pretrain").ok
    assert (folder / "checkpoints" / "step-00000002.pt").exists()
    assert run_small(config, "pretrain").ok
    assert (folder / "clip.safetensors").read_bytes() == before

    # Only what is saved is averaged: the training is the same.
    alone = small_config(workspace, **{**EVERYTHING, "pretrain": {**EVERYTHING["pretrain"], "weight_average": 1.0}})
    assert run_small(alone, "pretrain").ok
    trained = weights(Path(str(Planner(alone).finished()["pretrain"].path)))
    moved = 0
    for name, tensor in average.items():
        expected = 0.7 * trained[name].double() + 0.3 * teacher[name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-6, rtol=1e-5, msg=name)
        moved += not torch.equal(tensor, trained[name])
    assert moved > 5


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
