"""Where images come from: one class a source, and the plan that cuts them into shards.

Sharding is decided here, once: shard numbers run over all splits in the order of the config, and every later stage
keeps them. A source never stops at a bad sample: it yields a row that says what is wrong and goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from regionclip_core.config.tree import CocoSplit, DataConfig, FolderSplit, LvisSplit, Split, TarsSplit, WorldSplit
from regionclip_core.datasets.index import IndexRow, images_name
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import Folder
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


def open_source(name: str, split: Split, seed: int, vocabulary: Vocabulary, scratch: Folder | None = None) -> Source:
    """The source of a split. Nothing is read yet.

    Args:
        name: of the split.
        seed: of the run; the world draws from it.
        vocabulary: gives the annotated boxes their class ids.
        scratch: folder in which a source may keep what is slow to find out; all workers should be given the same.
    """
    match split:
        case WorldSplit():
            return WorldSource(name, split, seed, vocabulary)
        case CocoSplit():
            from regionclip_core.datasets.coco_source import CocoSource

            return CocoSource(name, split, vocabulary, scratch)
        case LvisSplit():
            from regionclip_core.datasets.source_lvis import LvisSource

            return LvisSource(name, split, vocabulary, scratch)
        case TarsSplit():
            from regionclip_core.datasets.tar_source import TarsSource

            return TarsSource(name, split)
        case FolderSplit():
            from regionclip_core.datasets.folder_source import FolderSource

            return FolderSource(name, split, scratch)


def open_sources(
    data: DataConfig, seed: int, vocabulary: Vocabulary, scratch: Folder | None = None
) -> dict[str, Source]:
    """The sources of all splits, by name."""
    return {name: open_source(name, split, seed, vocabulary, scratch) for name, split in data.splits.items()}


def plan_shards(sources: Mapping[str, Source], shard_size: int) -> list[ShardPlan]:
    """Number all pieces of all sources, in order."""
    pieces = [(split, piece) for split, source in sources.items() for piece in source.pieces(shard_size)]
    return [ShardPlan(shard, split, piece) for shard, (split, piece) in enumerate(pieces)]


class WorldSource(Source):
    """The embedded world: drawn on demand, stored as PNG.

    A sample depends on (seed, split name, its number) alone, so that shards may be drawn in any order.
    """

    stores_images = True

    def __init__(self, name: str, split: WorldSplit, seed: int, vocabulary: Vocabulary) -> None:
        self._name, self._split, self._seed = name, split, seed
        self._ids = {label: i for i, label in enumerate(vocabulary.names)}

    def pieces(self, shard_size: int) -> list[Piece]:
        return even_pieces(self._split.images, shard_size)

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        from regionclip_core.datasets.images import encode_png
        from regionclip_core.datasets.world import make_sample

        assert store is not None, "the world's images have to be stored"
        split = self._split
        for number in range(plan.piece.start, plan.piece.stop):
            sample = make_sample(
                split.kind, self._seed, self._name, number, split.image_size, split.objects, split.object_size
            )
            data = encode_png(sample.image)
            boxes = np.asarray(sample.boxes, np.float32).reshape(-1, 4)
            height, width = sample.image.shape[:2]
            key = f"{number:06d}"
            yield Found(
                IndexRow(
                    key=key,
                    image_id=number,
                    url=images_name(plan.shard),
                    offset=store.add(f"{key}.png", data),
                    size=len(data),
                    width=width,
                    height=height,
                    captions=list(sample.captions),
                    boxes=boxes,
                    box_labels=np.asarray([self._ids.get(label, -1) for label in sample.labels], np.int32),
                    box_crowd=np.zeros(len(boxes), np.bool_),
                    box_area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
                )
            )
