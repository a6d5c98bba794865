"""Golden files, and rows that say which function of ours meets which arrays, and how closely.

A row measures one error for each array that it names; the table in docs/GOLDENS.md and tests/test_goldens.py are both
made from the rows, so that every array is accounted for and the table has nothing that isn't tested.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "golden"
Errors = Mapping[str, float]
"""Error of ours by array name."""


@dataclass(frozen=True)
class Row:
    """Arrays of one golden file and what of ours must be equal to them."""

    file: str
    arrays: str
    """Patterns of array names, separated by spaces."""
    ours: str
    """The functions that the pipeline uses, or `input` for what goes into them."""
    tolerance: float = 0.0
    """Largest error allowed; see `error`."""
    measure: Callable[[], Errors] | None = None
    """Errors of exactly the arrays that the row names; None for inputs."""
    note: str = ""
    needs: str = ""
    """Environment variable with the path of a file that is no part of this project; "" where none is needed."""

    def names(self) -> set[str]:
        """The arrays of the file that the patterns name."""
        patterns = self.arrays.split()
        return {name for name in names(self.file) if any(fnmatchcase(name, p) for p in patterns)}

    @property
    def can_be_measured(self) -> bool:
        """False for inputs, and where the needed file is not on this machine."""
        return self.measure is not None and (not self.needs or self.needs in os.environ)

    def measured(self) -> float | None:
        """The largest error; None where nothing can be measured."""
        return max(self.measure().values()) if self.measure and self.can_be_measured else None


@functools.cache
def arrays(file: str) -> dict[str, Any]:
    """The content of a golden file by name: tensors of an .npz, the entries of a .json."""
    if file.endswith(".npz"):
        stored = np.load(FOLDER / file)
        return {name: torch.from_numpy(stored[name]) for name in stored.files}
    return json.loads((FOLDER / file).read_text())  # type: ignore[no-any-return]


def names(file: str) -> set[str]:
    """What there is to be compared: arrays of an .npz, keys of a .json, in it one level deeper where that has keys."""
    found = arrays(file)
    if file.endswith(".npz"):
        return set(found)
    return {name for key, value in found.items() for name in ([f"{key}/{k}" for k in _keys(value)] or [key])}


def _keys(value: Any) -> list[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return list(value[0])  # a list of cases, each with the same keys
    return list(value) if isinstance(value, dict) else []


def error(ours: Any, golden: Any) -> float:
    """How far ours is from the golden value: 0 is equal.

    Floating-point tensors: the largest difference over the golden array's largest magnitude (over 1 where the golden
    is all zero). Whole numbers, truth values and text: the number of entries that differ. Infinite for other shapes
    and where either isn't finite.
    """
    if not isinstance(golden, Tensor):
        return float(ours != golden)
    ours = torch.as_tensor(ours).detach()
    if ours.shape != golden.shape:
        return float("inf")
    if not golden.dtype.is_floating_point:
        return float((ours != golden).sum())
    if not golden.numel():
        return 0.0
    difference = (ours.double() - golden.double()).abs().max().item()
    scale = golden.double().abs().max().item() or 1.0
    return difference / scale if np.isfinite(difference) and np.isfinite(scale) else float("inf")
