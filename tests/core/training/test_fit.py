"""fit() against a loop written out, and a resumed run against an unbroken one."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.storage.records import Folder
from regionclip_core.training import fit as training
from regionclip_core.training.fit import FitResult, NonFiniteLoss, fit, save_checkpoint, step_seed

OPTIM = OptimConfig(lr=0.02, schedule="cosine", warmup_steps=3, clip_norm=1.0, weight_decay=0.01)


class Points(NamedTuple):
    """x [B, 4] and what to make of them, y [B]."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device | str) -> Points:
        return Points(self.x.to(device), self.y.to(device))


class Toy(nn.Module):
    """Batch statistics and dropout: state beyond parameters, and randomness inside the step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, batch: Points) -> Mapping[str, Tensor]:
        x, y = batch
        error = self.net(x)[:, 0] - y
        return {"loss_square": error.square().mean(), "loss_abs": 0.1 * error.abs().mean()}


def batch_at(step: int) -> Points:
    generator = torch.Generator().manual_seed(step_seed(7, step))
    x = torch.randn(16, 4, generator=generator)
    return Points(x, x.sum(1))


class Killed(Exception):
    pass


def run(folder: Path, steps: int = 25, every: int = 4, die_at: int | None = None) -> tuple[Toy, FitResult]:
    def at(step: int) -> Points:
        if step == die_at:
            raise Killed
        return batch_at(step)

    model = Toy().train()
    result = fit(
        model,
        at,
        optim=OPTIM,
        steps=steps,
        seed=3,
        checkpoints=Folder(str(folder)),
        checkpoint_every=every,
        progress=lambda *_: None,
    )
    return model, result


def test_matches_a_loop_written_out(tmp_path: Path) -> None:
    trained, _ = run(tmp_path / "a")
    model = Toy().train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], lr=0.02
    )
    for step in range(25):
        torch.manual_seed(step_seed(3, step))
        warm = 1e-3 + (1 - 1e-3) * step / 3
        cosine = (1 + torch.cos(torch.tensor(torch.pi * (step - 3) / 22))).item() / 2
        for group in reference.param_groups:
            group["lr"] = 0.02 * (warm if step < 3 else cosine)
        reference.zero_grad()
        sum(model(batch_at(step)).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        reference.step()
    for (name, a), b in zip(trained.state_dict().items(), model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("die_at", [5, 8, 13, 24])
def test_a_killed_run_goes_on_bit_equal(tmp_path: Path, die_at: int) -> None:
    unbroken, expected = run(tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(tmp_path / "killed", die_at=die_at)
    resumed, result = run(tmp_path / "killed")
    assert result.resumed_from == {5: 4, 8: 8, 13: 12, 24: 24}[die_at]
    assert result.history == expected.history
    for name, tensor in unbroken.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, expected = run(tmp_path)
    again, result = run(tmp_path, die_at=0)
    assert result.resumed_from == 25
    assert result.history == expected.history
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_at=14)
    newest = max(tmp_path.glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:100])
    resumed, result = run(tmp_path)
    assert result.resumed_from == 8
    unbroken, _ = run(tmp_path / "unbroken")
    assert all(
        torch.equal(a, b) for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_checkpoint_from_a_gpu_goes_on_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint says on which device each tensor was; here it is one that this machine hasn't."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:7")
        with pytest.raises(Killed):
            run(tmp_path, die_at=14)
    newest = max(tmp_path.glob("step-*.pt"))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(newest, weights_only=True)
    resumed, result = run(tmp_path)
    assert result.resumed_from == 12
    unbroken, _ = run(tmp_path / "unbroken")
    assert all(
        torch.equal(a, b) for a, b in zip(unbroken.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_checkpoint_with_a_changed_byte_falls_back_to_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_at=14)
    newest = max(tmp_path.glob("step-*.pt"))
    weights = torch.load(newest, weights_only=True)["parameters"]["net.0.weight"].numpy().tobytes()
    data = newest.read_bytes()
    assert weights in data
    newest.write_bytes(data.replace(weights, bytes(len(weights))))  # torch.load would take the zeros
    assert run(tmp_path)[1].resumed_from == 8


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("driver")])
def test_a_whole_checkpoint_that_cannot_be_loaded_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_at=14)
    kept = {path.name for path in tmp_path.iterdir()}

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        with pytest.raises(type(error)) as raised:
            run(tmp_path)
    assert "step-00000012.pt" in str(raised.value.__notes__)
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert run(tmp_path)[1].resumed_from == 12


def test_another_models_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(ValueError, match="another model"):
        fit(
            _Wrapped(),
            batch_at,
            optim=OPTIM,
            steps=30,
            seed=3,
            checkpoints=Folder(str(tmp_path)),
            checkpoint_every=4,
            progress=lambda *_: None,
        )


class _Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.toy = Toy()

    def forward(self, batch: Points) -> Mapping[str, Tensor]:
        return self.toy(batch)


def test_a_loss_that_is_not_finite_stops_with_its_parts(tmp_path: Path) -> None:
    class Broken(Toy):
        def forward(self, batch: Points) -> Mapping[str, Tensor]:
            losses = dict(super().forward(batch))
            return losses | {"loss_abs": losses["loss_abs"] * float("nan")}

    with pytest.raises(NonFiniteLoss, match=r"step 0.*loss_abs"):
        fit(
            Broken(),
            batch_at,
            optim=OPTIM,
            steps=5,
            seed=0,
            checkpoints=Folder(str(tmp_path)),
            checkpoint_every=5,
            progress=lambda *_: None,
        )


class TwoNumbers(nn.Module):
    """The slope of the loss is 1 in both."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.fast = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def forward(self, batch: Points) -> dict[str, Tensor]:
        return {"loss_sum": self.slow + self.fast}


def test_single_parameters_can_learn_faster(tmp_path: Path) -> None:
    model, batch = TwoNumbers(), Points(torch.zeros(1, 4), torch.zeros(1))
    fit(
        model,
        lambda step: batch,
        optim=OptimConfig(optimizer="sgd", lr=0.01, weight_decay=0.0, warmup_steps=0, clip_norm=None),
        steps=1,
        seed=0,
        checkpoints=Folder(str(tmp_path)),
        checkpoint_every=5,
        progress=lambda *_: None,
        lr_factors={"fast": 10.0},
    )
    assert (model.slow.item(), model.fast.item()) == (pytest.approx(0.99), pytest.approx(0.9))


def test_checkpoints_that_cannot_be_read_do_not_push_out_new_ones(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_at=14)
    for torn in tmp_path.glob("step-*.pt"):
        torn.write_bytes(b"torn")
    with pytest.raises(Killed):
        run(tmp_path, every=3, die_at=7)  # before the torn ones' steps, 8 and 12
    assert run(tmp_path)[1].resumed_from == 6


def test_a_checkpoint_that_cannot_be_fetched_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, die_at=14)

    def away(self: Folder, name: str) -> bytes:
        raise ConnectionError(f"{name}: the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_bytes", away)
        with pytest.raises(ConnectionError, match="step-00000012"):
            run(tmp_path)
    assert run(tmp_path)[1].resumed_from == 12


class _BadGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * float("nan")


class _BadAt(Toy):
    """A finite loss whose gradient is not, at one step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.left = step

    def forward(self, batch: Points) -> Mapping[str, Tensor]:
        self.left -= 1
        losses = super().forward(batch)
        return {k: _BadGradient.apply(v) for k, v in losses.items()} if self.left < 0 else losses


@pytest.mark.parametrize("bad_step", [7, 9])  # the step of a checkpoint, and the last one
def test_weights_that_are_not_finite_are_never_kept(tmp_path: Path, bad_step: int) -> None:
    with pytest.raises(NonFiniteLoss, match=f"not finite after step {bad_step}"):
        fit(
            _BadAt(bad_step),
            batch_at,
            optim=OPTIM,
            steps=10,
            seed=3,
            checkpoints=Folder(str(tmp_path)),
            checkpoint_every=4,
            progress=lambda *_: None,
        )
    assert run(tmp_path, steps=10)[1].resumed_from == (4 if bad_step == 7 else 8)


def test_ranks_that_see_different_checkpoints_do_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "all_ranks", lambda own: torch.cat([own, own + 8]))  # the second saw one more
    with pytest.raises(RuntimeError, match=r"different steps \[0, 8\]"):
        run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_during_a_checkpoint_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not torch's complaint about positions in its archive, behind which the file's own error is."""
    opened = os.fdopen

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            if self.tell() + len(data) > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data) or 0

    monkeypatch.setattr(
        os, "fdopen", lambda fd, mode="r", *a, **k: io.BufferedWriter(Full(fd, "wb")) if "w" in mode else opened(fd)
    )
    model = nn.Linear(500, 500)
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_checkpoint(
            Folder(str(tmp_path)),
            1,
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            dict(model.named_parameters()),
            [],
            [],
        )
    assert caught.value.errno == errno.ENOSPC and not list(tmp_path.glob("step-*"))
