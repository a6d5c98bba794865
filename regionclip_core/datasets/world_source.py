"""The embedded world as a source."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from regionclip_core.config.tree import WorldSplit
from regionclip_core.datasets.images import encode_png
from regionclip_core.datasets.index import IndexRow, images_name
from regionclip_core.datasets.source import Piece, ShardPlan, Source, even_pieces
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.storage.tars import TarWriter


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

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        assert store is not None, "the world's images have to be stored"
        split, size = self._split, self._split.image_size
        for number in range(plan.piece.start, plan.piece.stop):
            sample = make_sample(split.kind, self._seed, self._name, number, size, split.objects, split.object_size)
            data = encode_png(sample.image)
            boxes = np.asarray(sample.boxes, np.float32).reshape(-1, 4)
            key = f"{number:06d}"
            yield IndexRow(
                key=key,
                image_id=number,
                url=images_name(plan.shard),
                offset=store.add(f"{key}.png", data),
                size=len(data),
                width=size,
                height=size,
                captions=list(sample.captions),
                boxes=boxes,
                box_labels=np.asarray([self._ids.get(label, -1) for label in sample.labels], np.int32),
                box_crowd=np.zeros(len(boxes), np.bool_),
                box_area=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
            )
