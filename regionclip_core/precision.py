"""In which precision networks run, process by process: float32, or bf16 by autocast.

Weights, losses, softmax, NMS and the arithmetic of boxes are float32 in every case. bf16 has float32's range and 8 bits
of precision instead of 24, TF32 has 11 of them (in the products of NVIDIA GPUs, on float32 numbers).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_chosen = "float32"
_used: str | None = None


def set_precision(precision: str, device: str, setting: str = "execution.precision") -> None:
    """Let the networks of this process run in `precision` from now on; also sets torch's switches of TF32.

    Args:
        precision: `float32` (without TF32, which torch by itself uses in convolutions), `tf32`, `bf16`, or `auto`:
            bf16 on a GPU that has it, else float32.
        device: where they run; setting: what the user set, for messages.

    Raises:
        ValueError: if the device doesn't have it.
    """
    global _chosen, _used
    on_gpu = torch.device(device).type == "cuda"
    has_bf16 = not on_gpu or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        precision = "bf16" if on_gpu and has_bf16 else "float32"
    if (precision == "tf32" and not on_gpu) or (precision == "bf16" and not has_bf16):
        raise ValueError(f"{setting} is {precision}, which {device} here does not have; use auto or float32")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    _chosen, _used = precision, None


def networks(device: torch.device | str) -> AbstractContextManager[object]:
    """Return the context in which networks on `device` run; what comes out of them may be bf16."""
    global _used
    _used = _chosen
    return torch.autocast(torch.device(device).type, torch.bfloat16) if _chosen == "bf16" else nullcontext()


def precision_used() -> str | None:
    """Return in what networks ran since `set_precision`; None if none did."""
    return _used


def in_float32(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function work in float32, also where autocast is on: it gets its bf16 tensors converted."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return function(*map(_widened, args), **{key: _widened(value) for key, value in kwargs.items()})  # type: ignore[arg-type]

    return wrapped


def _widened(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
