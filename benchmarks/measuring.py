"""CPU seconds and memory of two ways to compute the same, in alternating runs of one process."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from bench_scale import MIB, status
from torch import Tensor

from regionclip_core.threads import available_cpus

_libc = ctypes.CDLL(None)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Cost:
    """What one call takes."""

    seconds: float
    """CPU seconds of this process."""
    memory: float
    """MiB above what the process had before: models and inputs are not in it."""


@dataclass(frozen=True)
class Compared:
    """A piece of work as the plain reference does it and as we do, round by round."""

    work: str
    plain: Sequence[Cost]
    ours: Sequence[Cost]
    difference: float = 0.0
    """Largest difference of the two results, relative to the largest value of the plain one."""

    @property
    def ratios(self) -> list[float]:
        """How many times the CPU time of ours the plain way takes, per round."""
        return [plain.seconds / ours.seconds for plain, ours in zip(self.plain, self.ours, strict=True)]

    def after(self, first: Compared, work: str) -> Compared:
        """Return the cost of `first` and this together, and the larger of their differences."""
        return replace(
            self,
            work=work,
            plain=_both(first.plain, self.plain),
            ours=_both(first.ours, self.ours),
            difference=max(first.difference, self.difference),
        )


@dataclass(frozen=True)
class Growth:
    """What the same work takes at several sizes."""

    what: str
    """With the unit of the sizes."""
    sizes: Sequence[int]
    costs: Sequence[Cost]


@dataclass(frozen=True)
class Figure:
    """A number by itself, over the rounds."""

    what: str
    values: Sequence[float]
    unit: str
    memory: float | None = None
    """MiB, as in `Cost`."""


def cost_of(call: Callable[[], _T]) -> tuple[Cost, _T]:
    """Run a call; return what it took and gave (Linux only)."""
    _libc.malloc_trim(0)  # freed memory that is still the process's would hide what the call takes
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts over
    before, start = status("VmRSS"), time.process_time()
    result = call()
    return Cost(time.process_time() - start, (status("VmHWM") - before) / MIB), result


def compare(
    work: str, plain: Callable[[], Tensor], ours: Callable[[], Tensor], rounds: int
) -> tuple[Compared, Tensor, Tensor]:
    """Run both `rounds` times, the first of a round being the second of the next; return the last results too."""
    calls, costs, results = {"plain": plain, "ours": ours}, {"plain": [], "ours": []}, {}
    for turn in range(rounds):
        for name in sorted(calls, reverse=bool(turn % 2)):
            cost, results[name] = cost_of(calls[name])
            costs[name].append(cost)
    expected, found = results["plain"], results["ours"]
    assert expected.shape == found.shape, (work, expected.shape, found.shape)
    difference = float((found - expected).abs().max() / expected.abs().max())
    return Compared(work, costs["plain"], costs["ours"], difference), expected, found


def _both(first: Sequence[Cost], second: Sequence[Cost]) -> list[Cost]:
    return [Cost(a.seconds + b.seconds, max(a.memory, b.memory)) for a, b in zip(first, second, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the median, and least and most in brackets."""
    middle, low, high = (f"{f(values):,.{digits}f}" for f in (statistics.median, min, max))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def machine() -> str:
    """Name the processor and the versions that count."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {available_cpus()} CPUs, Python {platform.python_version()}, torch {torch.__version__}"


def load() -> float:
    """Return the number of processes that ran or waited over the last minute, this one among them."""
    return os.getloadavg()[0]
