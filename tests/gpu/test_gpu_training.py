"""A pretraining and a finetuning on the GPU, killed and gone on with, against the unbroken ones.

Not deterministic on CUDA, of what a ResNet's training does: the backward pass of RoIAlign (atomic adds; torchvision has
no deterministic kernel), of convolutions (some of cuDNN's algorithms have atomics, too) and of `gather`; for ViTs also
of the positions' `interpolate`. Indexing by masks, `bincount` without weights and the optimisers are. So, as fit()
runs, a resumed training equals an unbroken one as two unbroken ones equal each other: within rounding. With
torch.use_deterministic_algorithms(True) all of it is deterministic for ResNets (torchvision then compiles a RoIAlign
made of indexing, for which it needs Triton), and the state must be equal in every bit: on one machine, with one version
of everything.

Seen: all tests pass with the CPU in the GPU's place, where both kinds are equal in every bit. Not seen: a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_ranks import finetune_case, pretrain_case

from regionclip_core.config.tree import OptimConfig
from regionclip_core.storage.records import Folder
from regionclip_core.training.fit import fit

pytestmark = pytest.mark.gpu
DIE_AT = 5
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Of two runs whose sums come in another order: six steps of SGD, by which weights move a hundred times as far."""


State = dict[str, Tensor]


class Killed(Exception):
    pass


def case(kind: str, turn: int = 0) -> tuple[nn.Module, Any]:
    """A trainer, and one of three batches of four images of several sizes; float32."""
    rows = slice(turn, turn + 4)
    trainer, batch = pretrain_case(rows) if kind == "pretrain" else finetune_case(rows, focal_gamma=0.5)
    return trainer.float(), single(batch)


@functools.cache
def batches(kind: str) -> list[Any]:
    return [case(kind, turn)[1] for turn in range(3)]


def single(value: Any) -> Any:
    """Tensors in a batch from float64 to float32."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, list):
        return [single(one) for one in value]
    if is_dataclass(value):
        return replace(value, **{field.name: single(getattr(value, field.name)) for field in fields(value)})
    return value


def train(kind: str, folder: Path, device: str, optimizer: str, die_at: int = -1) -> tuple[State, int, list]:
    """The state after six steps, the step gone on from, the history."""

    def at(step: int) -> Any:
        if step == die_at:
            raise Killed
        return batches(kind)[step % 3]

    trainer = case(kind)[0].to(device)
    optim = OptimConfig(optimizer=optimizer, lr=0.02 if optimizer == "sgd" else 1e-3, clip_norm=1.0)
    steps = {"steps": 6, "checkpoints": Folder(str(folder)), "checkpoint_every": 2}
    try:
        result = fit(trainer, at, optim=optim, seed=0, progress=lambda *_: None, **steps)
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        pytest.skip(f"no deterministic algorithms for this training here: {error}")
    return {name: value.cpu() for name, value in trainer.state_dict().items()}, result.resumed_from, result.history


@pytest.fixture(params=[False, True], ids=["as it runs", "deterministic"])
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Torch's switch for the test's time."""
    torch.use_deterministic_algorithms(request.param)
    yield request.param
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_killed_training_goes_on_as_if_nothing_was(
    tmp_path: Path, device: str, deterministic: bool, kind: str
) -> None:
    """Bits with AdamW; within rounding SGD, since Adam divides by its size a gradient that is nothing but rounding."""
    optimizer = "adamw" if deterministic else "sgd"
    unbroken, _, history = train(kind, tmp_path / "unbroken", device, optimizer)
    with pytest.raises(Killed):
        train(kind, tmp_path / "killed", device, optimizer, DIE_AT)
    resumed, first, log = train(kind, tmp_path / "killed", device, optimizer)
    assert first == DIE_AT - 1
    if deterministic:
        assert log == history
        assert {name for name, value in unbroken.items() if not torch.equal(value, resumed[name])} == set()
        return
    assert [row["loss"] for row in log] == pytest.approx([row["loss"] for row in history], rel=1e-4)
    for name, value in unbroken.items():
        torch.testing.assert_close(resumed[name], value, **CLOSE, msg=name)
    start = case(kind)[0].state_dict()  # or the tolerance would let everything pass
    assert max(float((value - start[name]).abs().max()) for name, value in unbroken.items()) > 100 * CLOSE["atol"]
