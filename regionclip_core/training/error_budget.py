"""How many samples of a stage may be bad, the share `execution.max_error_rate`, and what is wrong with the first."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from regionclip_core.storage.records import Folder, ShardRecord

ENOUGH_TO_JUDGE = 1000
"""Samples after which the error rate may stop a shard stage before its end."""
SHOWN = 3
"""Reasons in a message."""
PARTLY = ("lost_", "odd_")
"""Beginnings of the counts of good samples that lost a part, or have one that is hardly right."""


def is_bad(status: str) -> bool:
    """Return whether a status in a stage's counts is one of bad samples."""
    return status.startswith("bad_")


def each_reason_once(samples: Iterable[tuple[str, str]]) -> str:
    """Return "KEY, KEY: REASON; ..." of samples and their reasons."""
    keys: dict[str, list[str]] = {}
    for key, reason in samples:
        keys.setdefault(reason, []).append(key)
    return "; ".join(f"{', '.join(of_one)}: {reason}" for reason, of_one in keys.items())


def first_reasons(folder: Folder, records: Sequence[ShardRecord], *kinds: str | tuple[str, ...]) -> str:
    """Return "KEY: REASON; ..." of the first samples of each kind, `bad_` or PARTLY, in an artifact's shards.

    Empty where its tables say nothing.
    """
    import pyarrow.parquet as pq  # `status` needs none of it

    found: list[tuple[str, str]] = []
    for kind in kinds:
        for record in records:
            if len(found) >= SHOWN or not any(n and status.startswith(kind) for status, n in record.counts.items()):
                continue
            for name in (file.name for file in record.files if file.name.endswith(".parquet")):
                with folder.open_table(name) as file:
                    rows = pq.read_table(file, columns=["key", "status", "reason"]).to_pylist()
                for key, status, reason in (row.values() for row in rows if row["reason"]):
                    if is_bad(status) == (kind == "bad_"):
                        found.append((f"{key:.100}", f"{reason.removeprefix(f'{status}: '):.200}"))
    return each_reason_once(found[:SHOWN])


class ErrorRateExceeded(ValueError):
    """More samples of a stage, or of one `split`, are bad than the config allows."""

    def __init__(self, message: str, split: str = "") -> None:
        super().__init__(message)
        self.split = split


class ErrorBudget:
    """Counts samples by status: `ok` is good, `bad_...` is bad; other counts (`lost_...`) don't count samples.

    Each split is judged by itself: a small one that is wholly bad must not be hidden by a large one.
    """

    def __init__(self, rate: float) -> None:
        """`rate`: the share of bad samples that is allowed."""
        self._rate = rate
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def add(self, counts: Mapping[str, int], split: str = "") -> None:
        """Add counts, for example those of one shard."""
        self._counts[split].update(counts)

    def check(self, final: bool = False) -> None:
        """Raise ErrorRateExceeded if too many are bad; before the end only once there are ENOUGH_TO_JUDGE samples.

        At the end also if a split has no good one, whatever the limit.
        """
        for split, counts in self._counts.items():
            bad = {status: n for status, n in sorted(counts.items()) if n and is_bad(status)}
            total = counts["ok"] + sum(bad.values())
            too_many = total >= (1 if final else ENOUGH_TO_JUDGE) and sum(bad.values()) / total > self._rate
            if too_many or (final and bad and not counts["ok"]):
                named = ", ".join(f"{n} {status}" for status, n in bad.items())
                limit = f"; execution.max_error_rate is {self._rate:g}" if counts["ok"] else ", and none is good"
                advice = ", or raise the limit (--max-error-rate)" if counts["ok"] else ""  # no limit lets none pass
                raise ErrorRateExceeded(
                    f"{sum(bad.values()) / total:.1%} of {total} samples{f' of split {split!r}' if split else ''} are "
                    f"bad ({named}){limit}. Fix the input (shards with bad samples are then done again){advice}",
                    split,
                )
