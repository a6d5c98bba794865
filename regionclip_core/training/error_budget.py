"""How much of a stage's samples may be bad: one rule for shards, trainings and the evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

ENOUGH_TO_JUDGE = 1000
"""Samples before the error rate may stop a stage halfway."""
_SHARDS_DONE_ANEW = "Mend the input (shards with bad samples are then done anew)"


def is_bad(status: str) -> bool:
    """Whether a status of a stage's counts is that of bad samples."""
    return status.startswith("bad_")


class ErrorRateExceeded(ValueError):
    """More of a stage's samples are bad than the config allows."""


class ErrorBudget:
    """Counts samples by status: `ok` is good, `bad_...` is bad; any other count (`lost_...`) is no sample's status."""

    def __init__(self, rate: float, remedy: str = _SHARDS_DONE_ANEW) -> None:
        """`remedy`: what to do about the bad samples, as the beginning of a sentence."""
        self._rate = rate
        self._remedy = remedy
        self._counts: Counter[str] = Counter()

    def add(self, counts: Mapping[str, int]) -> None:
        """Add counts, those of one shard for instance."""
        self._counts.update(counts)

    def check(self, final: bool = False) -> None:
        """Raise ErrorRateExceeded; halfway only when enough samples were seen to judge."""
        total = sum(n for status, n in self._counts.items() if status == "ok" or is_bad(status))
        bad = {status: n for status, n in self._counts.items() if is_bad(status)}
        if not bad or not (final or total >= ENOUGH_TO_JUDGE):
            return
        share = sum(bad.values()) / total
        if share > self._rate:
            named = ", ".join(f"{n} {status}" for status, n in sorted(bad.items()))
            raise ErrorRateExceeded(
                f"{share:.1%} of {total} samples are bad ({named}); execution.max_error_rate is {self._rate:g}. "
                f"{self._remedy}, or raise it (--max-error-rate)"
            )
