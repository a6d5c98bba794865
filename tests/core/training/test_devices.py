"""Every training on a device that is not the CPU: the same weights, and nothing left behind on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from second_device import DEVICE, second_device
from small_artifacts import run_stage
from two_ranks import job_config, run_jobs

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import Folder
from stages.base import StageContext
from stages.declarations import STAGES


def config() -> Config:
    found = job_config()
    rpn = found.rpn.model_copy(update={"steps": 2, "batch_size": 2})
    return found.model_copy(update={"rpn": rpn, "proposals": found.proposals.model_copy(update={"method": "rpn"})})


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage up to finetune, on the CPU."""
    root = tmp_path_factory.mktemp("devices")
    run_jobs(root, 0, 1)
    train(root / "jobs-1", "rpn", root / "jobs-1" / "rpn", "cpu")
    return root / "jobs-1"


def train(jobs: Path, name: str, out: Path, device: str) -> None:
    stage = STAGES[name]
    chosen = config() if name == "rpn" else job_config()
    inputs = {need: Folder(str(jobs / need)) for need in stage.needs(chosen)}
    run_stage(stage, StageContext(chosen, Folder(str(out)), inputs, device=device))


def test_the_second_device_is_seen() -> None:
    with second_device() as there:
        a, b = torch.ones(2, 3).to(DEVICE), torch.ones(2, 3)
        assert a in there and b not in there and a[0] in there and a.cpu() not in there
        assert a.device == DEVICE and (a @ a.T).device == torch.zeros(2, device=a.device).device == DEVICE
        assert (a * torch.tensor(2.0)).tolist() == [[2.0] * 3] * 2
        layer = torch.nn.Linear(3, 1).to(DEVICE)
        layer(a).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.device == DEVICE
        for mixed in (lambda: a + b, lambda: layer(b), lambda: b[torch.tensor([0]).to(DEVICE)]):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.parametrize("name", ["teacher", "rpn", "pretrain", "finetune"])
def test_a_training_is_the_same_on_another_device(jobs: Path, tmp_path: Path, name: str) -> None:
    with second_device() as there:
        train(jobs, name, tmp_path, str(DEVICE))
        assert there.count > 100
    written = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert written == sorted(path.name for path in (jobs / name).glob("*.safetensors"))
    for file in written:
        expected, found = load_file(jobs / name / file), load_file(tmp_path / file)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-5, atol=1e-6, msg=f"{file} {key}")
