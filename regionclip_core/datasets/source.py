"""What every source of images has, and what a shard plan says.

A source never stops at a bad sample: it yields a row that says what is wrong and goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from regionclip_core.datasets.index import IndexRow
from regionclip_core.storage.tars import TarWriter

ODD_BOXES = {
    "odd_past_edge": "reach past the edge of their image. They look like corners [x1, y1, x2, y2]",
    "odd_under_pixel": "are of a pixel or less. They look like shares of the image, 0 to 1",
}
"""Kinds of boxes that are kept and counted, and what it means if most boxes of a split are like that."""


@dataclass(frozen=True)
class Piece:
    """What one shard holds of its source: samples start to stop, or all of the file at `url`."""

    start: int = 0
    stop: int = 0
    url: str = ""
    name: str = ""
    """Prefix of the keys, where the source needs one to keep them unique."""
    ordinal: int = 0
    """Number of the piece in its split."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its global number, its split, and its piece of the split's source."""

    shard: int
    split: str
    piece: Piece


class Source(ABC):
    """Images of one split, in an order that never changes."""

    stores_images: ClassVar[bool] = False
    """True when there are no image files to point to, so that the data stage has to write them."""

    @abstractmethod
    def pieces(self, shard_size: int) -> list[Piece]:
        """Cut the source into shards.

        Raises:
            ValueError, FileNotFoundError: the source is not what the config says.
        """

    @abstractmethod
    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        """Yield all samples of a shard, good and bad; images go to `store` if the source stores them."""

    def check(self, first: Piece) -> None:  # noqa: B027 (not every source has something to check)
        """Raise ValueError or FileNotFoundError for what makes all samples useless; `first` is the first piece."""

    def categories(self) -> dict[str, int]:
        """Return how many boxes the files have of each of their categories; empty for a source without boxes."""
        return {}

    def category_ids(self) -> dict[str, Any]:
        """Return the annotation file's category ids by name of the vocabulary; none without such a file."""
        return {}

    def lost(self, plan: ShardPlan) -> dict[str, int]:
        """Count what belongs to no sample of the source, by kind (`lost_annotations`); for its first shard only."""
        return {}


def even_pieces(count: int, shard_size: int) -> list[Piece]:
    """Cut `count` samples into shards of `shard_size`; the last one may be smaller."""
    starts = range(0, count, shard_size)
    return [Piece(start, min(start + shard_size, count), ordinal=i) for i, start in enumerate(starts)]
