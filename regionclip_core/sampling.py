"""The order in which training sees its samples: endless, shuffled anew every epoch, addressed by position."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from regionclip_core.images import BadImage

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key")
_log = logging.getLogger(__name__)
_MOST_BAD_IN_A_ROW = 100


class EpochOrder:
    """Maps a position of the endless stream to an item: epoch e is one permutation seeded by (seed, e)."""

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:  # positions rise, so one permutation at a time is enough
            self._permutation = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            self._epoch = epoch
        return int(self._permutation[offset])


class ImageCache(Generic[Key]):
    """Decoded images kept in memory up to a budget: small training images come again every epoch.

    Nothing is thrown out once the budget is full, so an epoch in random order still finds a fixed share here.
    """

    def __init__(self, read: Callable[[Key], npt.NDArray[np.uint8]], budget_bytes: int) -> None:
        self._read = read
        self._left = budget_bytes
        self._kept: dict[int, npt.NDArray[np.uint8]] = {}

    def read(self, number: int, key: Key) -> npt.NDArray[np.uint8]:
        """The image that `read(key)` gives; `number` stands for `key`. The caller must not write into it."""
        image = self._kept.get(number)
        if image is None:
            image = self._read(key)
            if image.nbytes <= self._left:
                self._left -= image.nbytes
                self._kept[number] = image
        return image


def first_readable(items: Sequence[Item], index: int, read: Callable[[Item], Result]) -> tuple[Item, Result]:
    """`items[index]` and what `read` gives for it; where that is a bad image, the next item that can be read.

    The substitute depends on the data alone, so a resumed run takes the same one. Each bad image is logged.

    Raises:
        BadImage: of the first, if a hundred in a row are bad.
    """
    first: BadImage | None = None
    for offset in range(_MOST_BAD_IN_A_ROW):
        item = items[(index + offset) % len(items)]
        try:
            return item, read(item)
        except BadImage as error:
            _log.warning("skipping an image in training: %s", error)
            first = first or error
    assert first is not None
    raise first
