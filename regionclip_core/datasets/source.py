"""What every source of images has, and the pieces that a shard plan is made of.

A source never stops at a bad sample: it yields a row that says what is wrong and goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from regionclip_core.datasets.index import IndexRow
from regionclip_core.storage.tars import TarWriter


@dataclass(frozen=True)
class Piece:
    """A shard's worth of one source: samples start to stop, or all of the file at `url`."""

    start: int = 0
    stop: int = 0
    url: str = ""
    name: str = ""
    """Prefix of the keys, where the source needs one to keep them unique."""
    ordinal: int = 0
    """Number of the piece in its split."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard: its global number, its split, and what of the split's source it holds."""

    shard: int
    split: str
    piece: Piece


@dataclass(frozen=True)
class Found:
    """One sample of a source."""

    row: IndexRow
    dropped: tuple[str, ...] = ()
    """`lost_box`, `lost_caption`, `lost_image_labels`: the row is good, but parts were left out; see its `reason`."""


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
    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        """All samples of a shard, good and bad; images go to `store` if the source stores them."""

    def lost(self, plan: ShardPlan) -> dict[str, int]:
        """What of the source belongs to none of its samples, by kind (`lost_annotations`); told by its first shard."""
        return {}


def even_pieces(count: int, shard_size: int) -> list[Piece]:
    """`count` samples in shards of `shard_size`, the last one smaller."""
    starts = range(0, count, shard_size)
    return [Piece(start, min(start + shard_size, count), ordinal=i) for i, start in enumerate(starts)]
