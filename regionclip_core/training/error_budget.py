"""How many samples of a stage may be bad: the share `execution.max_error_rate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

ENOUGH_TO_JUDGE = 1000
"""Samples after which the error rate may stop a shard stage before its end."""


def is_bad(status: str) -> bool:
    """Return whether a status in a stage's counts is one of bad samples."""
    return status.startswith("bad_")


class ErrorRateExceeded(ValueError):
    """More of a stage's samples are bad than the config allows."""


class ErrorBudget:
    """Counts samples by status: `ok` is good, `bad_...` is bad; other counts (`lost_...`) don't count samples."""

    def __init__(self, rate: float) -> None:
        """`rate`: the share of bad samples that is allowed."""
        self._rate = rate
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts, for example those of one shard."""
        self._counts.update(counts)

    def check(self, final: bool = False) -> None:
        """Raise ErrorRateExceeded if too many are bad; before the end only once there are ENOUGH_TO_JUDGE samples."""
        bad = {status: n for status, n in self._counts.items() if is_bad(status)}
        total = self._counts["ok"] + sum(bad.values())
        if bad and (final or total >= ENOUGH_TO_JUDGE) and sum(bad.values()) / total > self._rate:
            named = ", ".join(f"{n} {status}" for status, n in sorted(bad.items()))
            raise ErrorRateExceeded(
                f"{sum(bad.values()) / total:.1%} of {total} samples are bad ({named}); execution.max_error_rate is "
                f"{self._rate:g}. Fix the input (shards with bad samples are then done again), or raise the limit "
                "(--max-error-rate)"
            )
