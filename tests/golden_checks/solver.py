"""Schedules, the pretraining optimiser, resizing and repeat factors."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from golden_checks.table import Errors, Row, arrays, error
from regionclip_core.config.tree import OptimConfig, Resize
from regionclip_core.ops.image_batch import resized_shape
from regionclip_core.training.optim import clip_gradients, lr_multiplier, make_optimizer
from regionclip_core.training.sampling import repeat_factors

FILE = "misc.json"


def schedule_errors() -> Errors:
    """Learning rates at selected steps of the three official schedules."""
    found = {}
    for name, golden in arrays(FILE)["lr_schedule"].items():
        optim = OptimConfig(
            optimizer="sgd",
            lr=0.002,
            schedule="steps",
            warmup_steps=golden["warmup_iters"],
            warmup_factor=1e-3,
            drops=tuple(golden["steps"]),
        )
        wanted = golden["lr_at_iteration"]
        ours = [optim.lr * lr_multiplier(optim, int(step), golden["max_iter"]) for step in wanted]
        found[f"lr_schedule/{name}"] = max(
            abs(own / other - 1) for own, other in zip(ours, wanted.values(), strict=True)
        )
    return found


def sgd_errors() -> Errors:
    """Parameters after two steps with clipping tensor by tensor."""
    golden = arrays(FILE)["pretrain_sgd_two_steps"]
    model = nn.Module()
    for name, values in golden["init"].items():
        model.register_parameter(name, nn.Parameter(torch.tensor(values, dtype=torch.float32)))
    settings = {key: golden[key] for key in ("lr", "momentum", "weight_decay")}
    optim = OptimConfig(optimizer="sgd", clip_norm=5.0, clip_per_tensor=True, **settings)
    optimizer = make_optimizer(model, optim)
    found = {}
    for step in ("1", "2"):
        for name, values in golden[f"grads{step}"].items():
            getattr(model, name).grad = torch.tensor(values, dtype=torch.float32)
        clip_gradients(model.parameters(), optim)
        optimizer.step()
        found[f"pretrain_sgd_two_steps/after{step}"] = max(
            error(getattr(model, name), torch.tensor(values)) for name, values in golden[f"after{step}"].items()
        )
    return found


RESIZED = {
    "detection_test_hw": (800, "detection"),
    "detection_train640_hw": (640, "detection"),
    "pretrain_hw": (800, "pretraining"),
}
"""Shorter side and rule of each entry."""


def size_errors() -> Errors:
    """Images whose resized shape differs, by rule."""
    cases, found = arrays(FILE)["image_sizes"], {}
    for key, (short_side, rule) in RESIZED.items():
        ours = [resized_shape(*case["input_hw"], short_side, 1333, cast(Resize, rule)) for case in cases]
        found[f"image_sizes/{key}"] = float(sum(list(o) != c[key] for o, c in zip(ours, cases, strict=True)))
    return found


def repeat_errors() -> Errors:
    """Factors of all images; the golden ones have six decimals."""
    golden = arrays(FILE)["repeat_factors"]
    labels = [np.array(one, np.int64) for one in golden["image_category_ids"]]
    ours = torch.from_numpy(repeat_factors(lambda: labels, golden["threshold"]))
    return {"repeat_factors/repeat_factor": error(ours, torch.tensor(golden["repeat_factor"], dtype=torch.float64))}


ROWS = [
    Row(FILE, "lr_schedule/*", "optim.lr_multiplier", 1e-9, schedule_errors, "`schedule: steps`"),
    Row(FILE, "pretrain_sgd_two_steps/[!a]*", "input"),
    Row(
        FILE,
        "pretrain_sgd_two_steps/after?",
        "optim.make_optimizer, clip_gradients",
        1e-6,
        sgd_errors,
        "`optimizer: sgd`, `clip_per_tensor: true`",
    ),
    Row(FILE, "image_sizes/input_hw", "input"),
    Row(
        FILE,
        "image_sizes/detection_*_hw image_sizes/pretrain_hw",
        "image_batch.resized_shape",
        0.0,
        size_errors,
        "`resize: detection`, `resize: pretraining`",
    ),
    Row(FILE, "repeat_factors/threshold repeat_factors/image_category_ids", "input"),
    Row(
        FILE,
        "repeat_factors/repeat_factor",
        "sampling.repeat_factors",
        5e-7,
        repeat_errors,
        "`finetune.sampling: repeat_factor`; the golden factors are rounded to six decimals",
    ),
]
