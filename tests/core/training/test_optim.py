"""Schedules, optimisers and clipping against the official solver's numbers and torch's own."""

from __future__ import annotations

import json

import pytest
import torch
from places import GOLDEN
from torch import nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.training.optim import clip_gradients, lr_multiplier, make_optimizer

MISC = json.loads((GOLDEN / "misc.json").read_text())


@pytest.mark.parametrize("name", sorted(MISC["lr_schedule"]))
def test_step_schedule_is_the_official_one(name: str) -> None:
    golden = MISC["lr_schedule"][name]
    optim = OptimConfig(
        optimizer="sgd",
        lr=0.002,
        schedule="steps",
        warmup_steps=golden["warmup_iters"],
        warmup_factor=1e-3,
        drops=tuple(golden["steps"]),
    )
    for step, lr in golden["lr_at_iteration"].items():
        assert optim.lr * lr_multiplier(optim, int(step), golden["max_iter"]) == pytest.approx(lr, rel=1e-9)


def test_cosine_matches_torch() -> None:
    optim = OptimConfig(lr=0.1, schedule="cosine")
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(reference, T_max=50)
    for step in range(50):
        assert optim.lr * lr_multiplier(optim, step, 50) == pytest.approx(reference.param_groups[0]["lr"], abs=1e-9)
        reference.step()
        schedule.step()


def test_two_official_sgd_steps_with_per_tensor_clipping() -> None:
    golden = MISC["pretrain_sgd_two_steps"]
    model = nn.Module()
    for name, values in golden["init"].items():
        model.register_parameter(name, nn.Parameter(torch.tensor(values, dtype=torch.float32)))
    optim = OptimConfig(
        optimizer="sgd",
        lr=golden["lr"],
        momentum=golden["momentum"],
        weight_decay=golden["weight_decay"],
        clip_norm=5.0,
        clip_per_tensor=True,
    )
    optimizer = make_optimizer(model, optim)
    for step in ("1", "2"):
        for name, values in golden[f"grads{step}"].items():
            getattr(model, name).grad = torch.tensor(values, dtype=torch.float32)
        clip_gradients(model.parameters(), optim)
        optimizer.step()
        for name, values in golden[f"after{step}"].items():
            torch.testing.assert_close(getattr(model, name).detach(), torch.tensor(values), rtol=0, atol=1e-6)


def test_adamw_decays_matrices_only() -> None:
    model = nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decay[id(model.weight)] == 0.1
    assert decay[id(model.bias)] == 0.0


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="every parameter is frozen"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())
