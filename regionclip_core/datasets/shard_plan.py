"""Opens the source of each split, and cuts all of them into shards.

Sharding is decided here, once: shard numbers run over all splits in the order of the config, and every later stage
keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping

from regionclip_core.config.tree import CocoSplit, FolderSplit, LvisSplit, Split, TarsSplit, WorldSplit
from regionclip_core.datasets.coco_source import CocoSource
from regionclip_core.datasets.folder_source import FolderSource
from regionclip_core.datasets.source import ShardPlan, Source
from regionclip_core.datasets.tar_source import TarsSource
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.datasets.world_source import WorldSource
from regionclip_core.storage.folder import Folder


def open_source(name: str, split: Split, seed: int, vocabulary: Vocabulary, scratch: Folder) -> Source:
    """Return the source of a split. Nothing is read yet.

    Args:
        name: of the split.
        seed: of the run; the world draws from it.
        vocabulary: gives the annotated boxes their class ids.
        scratch: folder in which a source may keep what is slow to find out; all workers must be given the same one.
    """
    match split:
        case WorldSplit():
            return WorldSource(name, split, seed, vocabulary)
        case CocoSplit() | LvisSplit():
            return CocoSource(name, split, vocabulary, scratch)
        case TarsSplit():
            return TarsSource(split)
        case FolderSplit():
            return FolderSource(name, split, scratch)


def plan_shards(sources: Mapping[str, Source], shard_size: int) -> list[ShardPlan]:
    """Number all pieces of all sources, in order."""
    pieces = [(split, piece) for split, source in sources.items() for piece in source.pieces(shard_size)]
    return [ShardPlan(shard, split, piece) for shard, (split, piece) in enumerate(pieces)]
