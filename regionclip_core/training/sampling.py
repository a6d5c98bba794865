"""The order in which training sees its samples: endless, shuffled anew every epoch, addressed by position.

N images, K categories.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from regionclip_core.datasets.images import BadImage
from regionclip_core.training.image_tally import ImageTally

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key")
_log = logging.getLogger(__name__)
MOST_BAD_IN_A_ROW = 100
"""Images that a training passes over in search of one that it can read."""


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


def repeat_factors(labels: Iterable[npt.NDArray[np.integer[Any]]], threshold: float) -> npt.NDArray[np.float64]:
    """How often each image should come in an epoch, float64 [N], all at least 1 (LVIS, arXiv 1908.03195, appendix).

    A category that is in the share f of the images has the factor max(1, sqrt(threshold / f)); an image has the
    largest factor of its categories, 1 without any.

    Args:
        labels: categories of each image's objects, as whole numbers of at least 0; repeated ones count once. It is
            gone through twice and may read them anew each time: they are not held.
        threshold: share of the images below which a category is repeated.
    """
    assert iter(labels) is not labels  # an iterator would be empty the second time
    counts, images = np.zeros(0, np.int64), 0
    for one in labels:
        held = np.unique(one).astype(np.int64)
        images += 1
        if len(held) and held[-1] >= len(counts):
            counts = np.pad(counts, (0, int(held[-1]) + 1 - len(counts)))
        counts[held] += 1
    # A category in no image has no say; counting it as one keeps the division finite.
    factors = np.maximum(1.0, np.sqrt(threshold * images / np.maximum(counts, 1)))
    largest = (factors[np.asarray(one, np.int64)].max(initial=1.0) for one in labels)
    return np.fromiter(largest, np.float64, images)


class RepeatOrder:
    """As EpochOrder, but an image with the factor r comes floor(r) or ceil(r) times an epoch, r times on average.

    The fraction is rounded anew every epoch, at random by (seed, epoch), so epochs differ in length. Any position can
    be asked for: the lengths of the epochs before it are drawn once, N numbers each.
    """

    def __init__(self, factors: npt.NDArray[np.float64], seed: int) -> None:
        assert len(factors) > 0 and (factors >= 1).all()
        self.factors = factors
        self.seed = seed
        self._starts = [0]
        """Position at which each epoch so far begins, and the first one not drawn yet."""
        self._epoch = -1
        self._order = np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + int(self._counts(len(self._starts) - 1)[0].sum()))
        epoch = bisect_right(self._starts, position) - 1
        if epoch != self._epoch:
            counts, rng = self._counts(epoch)
            self._order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
            self._epoch = epoch
        return int(self._order[position - self._starts[epoch]])

    def _counts(self, epoch: int) -> tuple[npt.NDArray[np.int64], np.random.Generator]:
        """How often each image comes in this epoch, and the generator that goes on to shuffle it."""
        rng = np.random.default_rng([self.seed, epoch])
        whole = np.floor(self.factors)
        return (whole + (rng.random(len(whole)) < self.factors - whole)).astype(np.int64), rng


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


def first_readable(
    items: Sequence[Item], index: int, read: Callable[[Item], Result], tally: ImageTally | None = None
) -> tuple[Item, Result]:
    """`items[index]` and what `read` gives for it; where that is a bad image, the next item that can be read.

    The substitute depends on the data alone, so a resumed run takes the same one. Each bad image is logged, with
    `tally` once, which counts what was read and what not.

    Raises:
        BadImage: of the first, if a hundred in a row are bad, or all.
    """
    first: BadImage | None = None
    most = min(MOST_BAD_IN_A_ROW, len(items))
    for offset in range(most):
        number = (index + offset) % len(items)
        item = items[number]
        try:
            result = read(item)
        except BadImage as error:
            skip(number, error, tally)
            first = first or error
            continue
        if tally is not None:
            tally.good(number)
        return item, result
    assert first is not None
    raise none_readable(first, most) from first


def skip(number: int, error: BadImage, tally: ImageTally | None) -> None:
    """Log that a training goes on without an image, and count it."""
    if tally is None or tally.bad(number, error):
        _log.warning("skipping an image in training: %s", error)


def none_readable(first: BadImage, count: int) -> BadImage:
    """What to raise when this many images in a row, from `first` on, leave a training nothing to go on with."""
    return BadImage(
        first.status,
        f"{first.reason}; {count} images in a row can't be read, and a training can't go on without any. Mend the "
        "input and do the stage over (run it with --force)",
    )
