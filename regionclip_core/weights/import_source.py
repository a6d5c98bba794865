"""What all importers share: the file's tensors with the user's words about them, and the checks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regionclip_core.models.checkpoint_files import misfits
from regionclip_core.models.official_keys import why_left_over
from regionclip_core.weights.import_report import ImportReport, shorten


@dataclass(frozen=True)
class Source:
    """A file of weights on its way in."""

    name: str
    """For messages."""
    tensors: dict[str, Tensor]
    """By the file's names."""
    others: dict[str, Any]
    """What stands among the tensors and is none."""
    names: str | None = None
    """`--names`."""
    model: str | None = None
    """`--model`."""


def check_fit(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], part: str, source: Source) -> None:
    """ValueError unless `state` is exactly what a module holds (counters of norms may be absent), and all finite."""
    problems = misfits(expected, state)
    if problems:
        raise ValueError(
            f"{source.name}: its {part} is incomplete or of another architecture: {'; '.join(problems)}. Get the file "
            "again, or the one that was meant"
        )
    broken = [name for name, t in state.items() if t.is_floating_point() and not bool(torch.isfinite(t).all())]
    if broken:
        raise ValueError(f"{source.name}: its {part} holds NaN or infinite numbers in {shorten(broken)}: it is damaged")


def leave_over(report: ImportReport, names: Iterable[str], reason: str) -> None:
    """Record tensors that are not taken; known constants and counters get a reason of their own."""
    for name in names:
        report.left_over[name] = why_left_over(name) or reason
