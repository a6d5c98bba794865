"""Images that turn out unreadable in a training or in the evaluation: named, counted, and limited."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any, TypeVar

from regionclip_core.datasets.images import BadImage
from regionclip_core.training.error_budget import ErrorRateExceeded, each_reason_once

Item = TypeVar("Item")
Result = TypeVar("Result")
ENOUGH_TO_JUDGE = 100
"""Unreadable images after which their share of the images read so far may stop the stage."""
SHOWN = 10
"""Unreadable images that messages and summaries name."""
_log = logging.getLogger(__name__)


class UnreadableImages:
    """The images that this process could not read; it goes on without them until there are too many.

    Trainings and the evaluation read images that an earlier stage has read already. So a few failures mean damaged or
    deleted files, and many mean that a disk or a bucket is missing.
    """

    def __init__(self, images: int = 0, max_error_rate: float = 1.0) -> None:
        """`images`: how many different images are read in all. Without a limit any number may be unreadable."""
        self._images, self._rate = images, max_error_rate
        self._read = 0
        self._keys: set[str] = set()
        self._first: dict[str, str] = {}
        """Reasons of the first unreadable images, by key."""
        self._notes: list[tuple[str, str | None]] | None = None

    def take_notes(self) -> list[tuple[str, str | None]]:
        """Return a new list that from now on gets the arguments of each `count`, which then neither counts nor raises.

        For a process that reads for another one, which passes the notes to its own object's `count`.
        """
        self._notes = []
        return self._notes

    def read(self, key: str, read: Callable[[Item], Result], item: Item) -> Result | None:
        """Return `read(item)`, or None after a warning if that raises BadImage.

        Raises:
            ErrorRateExceeded: if more than `max_error_rate` of all images are unreadable, or, after
                ENOUGH_TO_JUDGE of them, that share of the images read so far. Names the first and their reasons.
        """
        try:
            found = read(item)
        except BadImage as error:
            self.count(key, error.reason)
            return None
        self.count(key)
        return found

    def count(self, key: str, reason: str | None = None) -> None:
        """Count an image that was read, or why it couldn't be; raises as `read` does."""
        if self._notes is not None:
            self._notes.append((key, reason))
            return
        self._read += 1
        if reason is None or key in self._keys:  # a bad one comes again in every epoch
            return
        self._keys.add(key)
        if len(self._first) < SHOWN:
            self._first[key] = reason
        bad = len(self._keys)
        # The first is certain, however the training goes on. The second stops soon where half a large split is missing;
        # with a hundred unreadable images, their share so far is near enough to that of the split.
        certain = bad > self._rate * self._images
        if self._rate < 1 and (certain or (bad > ENOUGH_TO_JUDGE and bad > self._rate * self._read)):
            raise self.exceeded(f"{bad} of {self._images if certain else self._read} images can't be read")
        _log.warning("going on without image %s: %s", key, reason)

    def exceeded(self, what: str) -> ErrorRateExceeded:
        """Return the error to raise: `what` is wrong, what to do, and the first images with their reasons."""
        noted = islice(((key, reason) for key, reason in self._notes or () if reason), SHOWN)
        first = each_reason_once(self._first.items() or noted)
        return ErrorRateExceeded(
            f"{what}; execution.max_error_rate is {self._rate:g}. Fix the input and do the stage over (run it with "
            f"--force), or raise the limit (--max-error-rate). The first: {first}"
        )

    def counts(self) -> dict[str, int]:
        """Return the number of unreadable images as a stage's counts; empty if there are none."""
        return {"bad_image": len(self._keys)} if self._keys else {}

    def summary(self) -> dict[str, Any]:
        """Return what a stage's summary says: how many were unreadable, the first and why; empty if none were."""
        if not self._keys:
            return {}
        first = each_reason_once(list(self._first.items())[:3])
        notes = [f"{len(self._keys)} unreadable images, the first: {first}"]
        return {"unreadable": {"images": len(self._keys), "first": dict(self._first)}, "notes": notes}
