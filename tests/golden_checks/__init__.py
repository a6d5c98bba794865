"""Checks of our numbers against those of the official code: see `table.py`."""

from __future__ import annotations

from golden_checks import checkpoints, detection, features, losses, proposals, solver, text
from golden_checks.table import Row

ROWS: list[Row] = [
    row for module in (features, losses, detection, proposals, text, solver, checkpoints) for row in module.ROWS
]
"""Every array of every golden file, once."""
