"""Optimisers, learning-rate schedules and gradient clipping (paper section 4, official solver settings)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import OptimConfig


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

    AdamW decays matrices only (not biases, norms or single scalars). SGD decays every parameter, biases
    included, as the official code does. `lr_factors` multiplies the rate of single parameters, by name; a parameter
    group has it as `lr_factor`.

    Raises:
        ValueError: if nothing in the model is trainable.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = optim.optimizer == "sgd" or parameter.ndim >= 2
            factor = (lr_factors or {}).get(name, 1.0)
            groups.setdefault((optim.weight_decay if decays else 0.0, factor), []).append(parameter)
    if not groups:
        raise ValueError("nothing to train: every parameter is frozen; lower freeze_at")
    settings = [{"params": p, "weight_decay": decay, "lr_factor": f} for (decay, f), p in groups.items()]
    if optim.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=optim.lr, momentum=optim.momentum)
    return torch.optim.AdamW(settings, lr=optim.lr, fused=True)


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
