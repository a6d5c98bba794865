"""Schedules, optimisers and clipping against the official solver's numbers and torch's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from places import GOLDEN
from timm.optim import muon as timm_muon
from torch import nn

from regionclip_core.config.tree import OptimConfig
from regionclip_core.training import optim
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


class Hidden(nn.Module):
    """Names and shapes as CLIP's towers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, bias=False)
        self.layer1 = nn.Conv2d(4, 6, 3)
        self.mlp = nn.Linear(6, 20)
        self.token_embedding = nn.Embedding(30, 6)
        self.attnpool = nn.ModuleDict({"q_proj": nn.Linear(6, 6), "c_proj": nn.Linear(6, 6, bias=False)})
        self.text_projection = nn.Parameter(torch.randn(6, 6))
        self.proj = nn.Parameter(torch.randn(6, 6))


MUON = OptimConfig(optimizer="muon", lr=1e-3, weight_decay=0.1)


def test_muon_takes_the_matrices_between_the_first_and_the_last_layer() -> None:
    model = Hidden()
    optimizer = make_optimizer(model, MUON, {"mlp.weight": 0.5})
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    keys = ("use_muon", "lr_factor", "weight_decay")
    found = {name: tuple(groups[id(p)][key] for key in keys) for name, p in model.named_parameters()}
    matrix, vector = (False, 1.0, 0.1), (False, 1.0, 0.0)
    assert found == {
        "conv1.weight": matrix,
        "layer1.weight": (True, 4.0, 0.1),
        "layer1.bias": vector,
        "mlp.weight": (True, 2.0, 0.1),
        "mlp.bias": vector,
        "token_embedding.weight": matrix,
        "attnpool.q_proj.weight": matrix,
        "attnpool.q_proj.bias": vector,
        "attnpool.c_proj.weight": (True, 4.0, 0.1),
        "text_projection": matrix,
        "proj": matrix,
    }


def test_an_update_of_muon_is_orthogonal_and_as_large_as_one_of_adamw() -> None:
    """Against the singular value decomposition: a convolution is a matrix [out, in * h * w]."""
    torch.manual_seed(0)
    model = Hidden()
    optimizer = make_optimizer(model, MUON)
    for group in optimizer.param_groups:
        group["lr"] = MUON.lr * group["lr_factor"]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name in ("layer1.weight", "mlp.weight"):
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        update = (parameter.detach() - before[name] * (1 - 4e-3 * 0.1)).flatten(1)
        left, values, right = torch.linalg.svd(parameter.grad.flatten(1), full_matrices=False)
        size = 4e-3 * 0.2 * max(update.shape) ** 0.5
        turned = left.T @ update @ right.T / -size  # would be the identity
        assert turned.diagonal().min() > 0.65 and turned.diagonal().max() < 1.35
        assert (turned - turned.diagonal().diag()).abs().max() < 0.1
        assert values.max() / values.min() > 1.5  # the gradient was not orthogonal
    for name in ("token_embedding.weight", "attnpool.q_proj.bias"):  # the first step of Adam is the gradient's sign
        step = model.get_parameter(name).detach() - before[name]
        assert 0.4e-3 < step.abs().median() < 2.2e-3


@pytest.mark.parametrize("has_bf16", [False, True])
def test_muon_s_precision_is_one_that_the_cpu_has(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    used = []
    iterate = timm_muon.zeropower_via_newtonschulz

    def noted(*args: Any, dtype: torch.dtype = torch.bfloat16, **options: Any) -> Any:
        used.append(dtype)
        return iterate(*args, dtype=dtype, **options)

    monkeypatch.setattr(timm_muon, "zeropower_via_newtonschulz", noted)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16}, raising=False)
    optim._muon_class.cache_clear()
    model = Hidden()
    optimizer = make_optimizer(model, MUON)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optim._muon_class.cache_clear()
    assert used == [torch.bfloat16 if has_bf16 else torch.float32] * 3
    assert timm_muon.zeropower_via_newtonschulz is noted


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(ValueError, match="every parameter is frozen"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())
