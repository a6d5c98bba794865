"""Optimisers, learning-rate schedules and gradient clipping (paper section 4, official solver settings)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig

_MUON_RATE = 4.0
"""Muon's learning rate as a multiple of AdamW's beside it. Of the embedded teacher's crops, after 800 steps, 4 gave
56 % right, 1, with the better of two rates for both, 43 %."""


def lr_multiplier(optim: OptimConfig, step: int, steps: int) -> float:
    """Return the factor on `optim.lr` at 0-based `step` of `steps`.

    Warm-up rises linearly from `warmup_factor` at step 0 to 1 at `warmup_steps`. `cosine` and `one_cycle` then
    fall to 0 over the remaining steps (`one_cycle` also rises along a cosine, as its authors had it), `steps`
    falls by `drop_factor` at each of `drops`.
    """
    dropped = optim.drop_factor ** sum(step >= at for at in optim.drops) if optim.schedule == "steps" else 1.0
    if step < optim.warmup_steps:
        progress = step / optim.warmup_steps
        if optim.schedule == "one_cycle":
            progress = (1 - math.cos(math.pi * progress)) / 2
        # A drop may come before the warm-up ends; the official schedule multiplies both.
        return (optim.warmup_factor + (1 - optim.warmup_factor) * progress) * dropped
    if optim.schedule in ("cosine", "one_cycle"):
        progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
        return (1 + math.cos(math.pi * min(1.0, progress))) / 2
    return dropped


def make_optimizer(
    model: nn.Module, optim: OptimConfig, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser over the trainable parameters of `model`.

    AdamW and Muon decay matrices only (not biases, norms or single scalars). SGD decays every parameter, biases
    included, as the official code does. `lr_factors` multiplies the rate of single parameters, by name; a parameter
    group has it as `lr_factor`, with Muon's own factor in it.

    Muon is timm's (Jordan et al. 2024; its rate as in arXiv 2502.16982: an update has the size of one of AdamW's).
    Convolutions are matrices [out, in * h * w]. As its authors have it, embeddings and what is last take AdamW.

    Raises:
        ValueError: if nothing in the model is trainable.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = optim.optimizer == "sgd" or parameter.ndim >= 2
            by_muon = optim.optimizer == "muon" and _is_hidden(name, parameter)
            factor = (lr_factors or {}).get(name, 1.0) * (_MUON_RATE if by_muon else 1.0)
            groups.setdefault((optim.weight_decay if decays else 0.0, factor, by_muon), []).append(parameter)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen; lower freeze_at")
    settings = [{"params": p, "weight_decay": decay, "lr_factor": f} for (decay, f, _), p in groups.items()]
    if optim.optimizer == "muon":
        every = [one | {"use_muon": by_muon} for one, (_, _, by_muon) in zip(settings, groups, strict=True)]
        return _muon_class()(every, lr=optim.lr, momentum=optim.momentum, nesterov=True, adjust_lr_fn="match_rms_adamw")
    if optim.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=optim.lr, momentum=optim.momentum)
    return torch.optim.AdamW(settings, lr=optim.lr, fused=True)


@cache
def _muon_class() -> Callable[..., torch.optim.Optimizer]:
    """Return timm's Muon, whose iterations are in bf16; in float32 on CPUs without instructions for bf16.

    These take twelve times as long in bf16 as in float32, and those with them two thirds.
    """
    muon: Any = import_module("timm.optim.muon")  # not before it is needed: timm takes half a second
    in_float32 = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict[str, Any])()
    has_bf16 = capabilities.get("avx512_bf16", False)

    class Muon(muon.Muon):  # type: ignore[misc]
        def step(self, closure: Any = None) -> Any:
            if has_bf16 or any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
                return super().step(closure)
            with patch.object(muon, "zeropower_via_newtonschulz", in_float32):
                return super().step(closure)

    return Muon


def _is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix between others: no embedding, no convolution of pixels, no last projection.

    The attention pool's queries, keys and values, the largest matrices of a CLIP ResNet, would take three quarters of
    Muon's time, and are left out too.
    """
    sees_pixels = parameter.ndim == 4 and parameter.shape[1] == 3
    is_outer = any(part in name for part in ("embed", "text_projection", "head", "cls_token"))
    in_pool = "pool" in name and "c_proj" not in name
    is_last = name.rsplit(".", 1)[-1] == "proj"
    return parameter.ndim >= 2 and not (sees_pixels or is_outer or in_pool or is_last)


def clip_gradients(parameters: Iterable[Tensor], optim: OptimConfig) -> None:
    """Clip gradients in place to L2 norm `optim.clip_norm`: together, or each tensor on its own."""
    if optim.clip_norm is None:
        return
    with_gradient = [p for p in parameters if p.grad is not None]
    if optim.clip_per_tensor:
        for parameter in with_gradient:
            nn.utils.clip_grad_norm_([parameter], optim.clip_norm)
    else:
        nn.utils.clip_grad_norm_(with_gradient, optim.clip_norm)
