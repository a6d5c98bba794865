"""The order in which a training sees its samples: endless, shuffled in every epoch, and addressed by position.

N images; a position counts the samples of all global batches before it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from regionclip_core.training.unreadable_images import UnreadableImages

MOST_IN_A_ROW = 100
"""Unreadable images in a row that a training skips before it gives up."""


class Keyed(Protocol):
    """A sample with a name for messages."""

    @property
    def key(self) -> str:
        """The image's key in its split."""


Item = TypeVar("Item", bound=Keyed)
Result = TypeVar("Result")


def rank_positions(batch_size: int, rank: int, world_size: int) -> range:
    """Return the positions in a global batch of `batch_size` images that a rank reads.

    Raises:
        ValueError: if `batch_size` is not a multiple of `world_size`.
    """
    if batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} does not divide among {world_size} workers")
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


class EpochOrder:
    """Maps a position to a sample's number: epoch e is one permutation of N, seeded by (seed, e)."""

    def __init__(self, count: int, seed: int) -> None:
        assert count > 0
        self.count = count
        self.seed = seed
        self._epoch = -1
        self._permutation = np.zeros(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:  # positions rise, so it is enough to keep one permutation
            self._permutation = self.shuffled(epoch)
            self._epoch = epoch
        return int(self._permutation[offset])

    def shuffled(self, epoch: int) -> npt.NDArray[np.int64]:
        """Return the permutation of an epoch, int64[N]."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.count)


def repeat_factors(
    labels: Callable[[], Iterable[npt.NDArray[np.integer[Any]]]], threshold: float
) -> npt.NDArray[np.float64]:
    """Return how often each image should come in an epoch, float64[N] >= 1 (LVIS, arXiv 1908.03195, appendix).

    A category that is in the share f of the images has the factor max(1, sqrt(threshold / f)); an image has the
    largest factor of its categories, or 1 if it has none.

    Args:
        labels: yields the categories of each image's objects as numbers >= 0, in any order and with repetitions. It
            is called twice, so that the labels of all images are never in memory together.
        threshold: share of the images below which a category is repeated.
    """
    counts, images = np.zeros(0, np.int64), 0
    for one in labels():
        present = np.unique(one).astype(np.int64)
        images += 1
        if len(present) and present[-1] >= len(counts):
            counts = np.pad(counts, (0, int(present[-1]) + 1 - len(counts)))
        counts[present] += 1
    # A category in no image is never looked up; counting it as one only avoids a division by 0.
    factors = np.maximum(1.0, np.sqrt(threshold * images / np.maximum(counts, 1)))
    largest = (factors[np.asarray(one, np.int64)].max(initial=1.0) for one in labels())
    return np.fromiter(largest, np.float64, images)


class RepeatOrder:
    """As EpochOrder, but an image with the factor r comes floor(r) or ceil(r) times per epoch, r times on average.

    The fraction is rounded at random in each epoch, by (seed, epoch), so epochs differ in length. To find a position,
    the lengths of all epochs before it are drawn once, N numbers each.
    """

    def __init__(self, factors: npt.NDArray[np.float64], seed: int) -> None:
        assert len(factors) > 0 and (factors >= 1).all()
        self.factors = factors
        self.seed = seed
        self._starts = [0]
        """First position of each epoch drawn so far, and of the next one."""
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
        """Return how often each image comes in this epoch, and the generator, which then shuffles them."""
        rng = np.random.default_rng([self.seed, epoch])
        whole = np.floor(self.factors)
        return (whole + (rng.random(len(whole)) < self.factors - whole)).astype(np.int64), rng


def first_readable(
    sample_at: Callable[[int], Item], position: int, read: Callable[[Item], Result], unreadable: UnreadableImages
) -> tuple[Item, Result]:
    """Return the sample at `position` and what `read` gives for it, or the next sample that can be read.

    Which sample replaces an unreadable one depends on the data and the seed alone: a resumed training, or one of
    several processes, takes the same. The next one in the shuffled order is taken, not in the index: there neighbours
    often fail together (a folder that was not copied), and one image would replace them all.

    Raises:
        ErrorRateExceeded: if too many images are unreadable, see `UnreadableImages`, or MOST_IN_A_ROW in a row.
    """
    for place in range(position, position + MOST_IN_A_ROW):
        sample = sample_at(place)
        found = unreadable.read(sample.key, read, sample)
        if found is not None:
            return sample, found
    raise unreadable.exceeded(f"{MOST_IN_A_ROW} images in a row can't be read")
