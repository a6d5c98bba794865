"""Which images of a split could be read, and which not and why: each counted once, over all steps and processes.

N places of a split: rows of its index, or samples of its pairs.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from regionclip_core.datasets.images import BadImage
from regionclip_core.training.distributed import largest_of_ranks, rank_count, sum_ranks, texts_of_ranks
from regionclip_core.training.error_budget import ErrorBudget, ErrorRateExceeded

STATUSES = ("", "ok", "bad_image")
"""What an image's number stands for: not asked for yet, read, can't be read. Of two the larger stays."""
SHOWN = 10
_REMEDY = "Mend the input and do the stage over (run it with --force)"


class ImageTally:
    """Counts of distinct images, with the reasons of the first few bad ones; N bytes of memory.

    Nothing in it depends on the order or the number of times in which images are read, nor on which process reads
    them: a training that was killed and goes on, or has more processes, ends with the same. Reading threads may write
    to it while another thread gathers.
    """

    def __init__(
        self,
        size: int,
        max_error_rate: float = 1.0,
        *,
        images: int | None = None,
        place_of: Callable[[int], int] = int,
        key_of: Callable[[int], str] = str,
    ) -> None:
        """Nothing read yet.

        Args:
            size: N.
            images: how many of the places are asked for at all; None: every one.
            place_of: an image's place in the split, from its number among those asked for.
            key_of: its key, from the same number; asked for of bad ones only.
        """
        self._codes = np.zeros(size, np.uint8)
        self._bad: dict[int, tuple[str, str, str]] = {}
        """Key, status and reason of the first bad ones by place, at most SHOWN."""
        self._images = size if images is None else images
        self._rate = max_error_rate
        self._place_of, self._key_of = place_of, key_of
        self._lock = threading.Lock()

    def good(self, number: int) -> None:
        """An image was read."""
        place = self._place_of(number)
        with self._lock:
            self._codes[place] = max(self._codes[place], STATUSES.index("ok"))

    def bad(self, number: int, error: BadImage, key: str | None = None) -> bool:
        """An image couldn't be read; `key` is its key, where the caller has it. Whether this is news."""
        place, code = self._place_of(number), STATUSES.index(error.status)
        with self._lock:
            if self._codes[place] >= code:
                return False
            self._codes[place] = code
            self._keep({place: (self._key_of(number) if key is None else key, error.status, error.reason)})
            return True

    def _keep(self, bad: Mapping[int, tuple[str, str, str]]) -> None:
        self._bad = dict(sorted({**self._bad, **bad}.items())[:SHOWN])

    def counts(self) -> dict[str, int]:
        """Distinct images by status."""
        numbers = np.bincount(self._codes, minlength=len(STATUSES)).tolist()
        return {name: n for name, n in zip(STATUSES, numbers, strict=True) if name and n}

    def unreadable(self) -> list[dict[str, Any]]:
        """The first bad images by place, as plain values."""
        names = ("key", "status", "reason")
        return [{"place": place, **dict(zip(names, told, strict=True))} for place, told in self._bad.items()]

    def summary(self) -> dict[str, Any]:
        """What a stage's summary says of it: `unreadable`, where there are any."""
        return {"unreadable": shown} if (shown := self.unreadable()) else {}

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"codes": torch.from_numpy(self._codes.copy()), "bad": self.unreadable()}

    def add_state(self, state: Mapping[str, Any], where: str) -> None:
        """Add what a `state` knows; `where` names its file.

        Raises:
            ValueError: if it is of a split of another size.
        """
        if len(state["codes"]) != len(self._codes):
            raise ValueError(
                f"{where} counts {len(state['codes'])} images, expected {len(self._codes)}; remove that folder to "
                "start anew"
            )
        self._add(state["codes"].numpy(), state["bad"])

    def add(self, other: ImageTally) -> None:
        """Add another's, of the same split."""
        self._add(other._codes, other.unreadable())

    def _add(self, codes: np.ndarray, bad: list[dict[str, Any]]) -> None:
        with self._lock:
            np.maximum(self._codes, codes, out=self._codes)
            self._keep({one["place"]: (one["key"], one["status"], one["reason"]) for one in bad})

    def gather(self, device: torch.device) -> None:
        """Add what all ranks know. Every rank has to call it."""
        if rank_count() == 1:
            return
        with self._lock:
            codes, bad = torch.from_numpy(self._codes.copy()), json.dumps(self.unreadable())
        codes = largest_of_ranks(codes.to(device)).cpu()
        for text in texts_of_ranks(bad, device):
            self._add(codes.numpy(), json.loads(text))

    def check(self, device: torch.device, final: bool = False) -> None:
        """Raise where more is bad than the config allows, on every rank alike. Every rank has to call it.

        Before the end only once enough images were seen to judge, or all of them: what was seen once stays.

        Raises:
            ErrorRateExceeded: names the counts, the first bad image, and what to do.
        """
        if not int(sum_ranks(torch.tensor(len(self._bad), device=device if rank_count() > 1 else None))):
            return
        self.gather(device)
        counts = self.counts()
        budget = ErrorBudget(self._rate, _REMEDY)
        budget.add(counts)
        try:
            budget.check(final or sum(counts.values()) >= self._images)
        except ErrorRateExceeded as error:
            first = self.unreadable()[0]
            told = f"The first is {first['key']!r}, number {first['place']} of the split: {first['reason']}"
            raise ErrorRateExceeded(f"{error}. {told}") from None
