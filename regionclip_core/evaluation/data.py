"""The images that the evaluate stage measures on, read shard by shard.

In memory at once: one shard's rows and proposals, and one batch with its pixels. Legend: G annotated boxes of an
image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow, read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.evaluator import require_protocol
from regionclip_core.evaluation.truth import ImageTruth
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.proposals.rpn import Proposals
from regionclip_core.storage.records import Folder
from regionclip_core.training.unreadable_images import UnreadableImages


@dataclass(frozen=True)
class EvaluationImage:
    """One image of the validation split, boxes in original pixels."""

    row: IndexRow
    pixels: Tensor
    """uint8[3, H, W]"""
    boxes: Tensor
    """float32[G, 4]: annotated, no crowds, categories of the vocabulary only."""
    labels: Tensor
    """int64[G]"""
    proposals: Proposals


@dataclass(frozen=True)
class EvaluationData:
    """The validation split: images with proposals, in the order of the index."""

    data: Folder
    proposals: Folder
    vocabulary: Vocabulary
    shards: tuple[int, ...]
    count: int
    """Images."""
    annotated_only: bool = False
    """Leave out images without an object of the vocabulary, as the official COCO open-vocabulary file does."""
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)
    """Takes the images that a pass can't read."""

    @classmethod
    def read(cls, config: Config, data: Folder, proposals: Folder, *, annotated_only: bool = False) -> EvaluationData:
        """The images of `evaluate.split`, counted and looked at once.

        Raises:
            ValueError: no image, boxes of another vocabulary, or annotations that don't fit `evaluate.protocol`.
        """
        vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
        split = config.evaluate.split
        found = cls(data, proposals, vocabulary, tuple(split_shards(data, (split,))), 0, annotated_only)
        count = 0
        for row in found.rows():
            require_protocol(config.evaluate.protocol, truth_of(row), f"{row.key} of split {split!r}")
            count += 1
        if not count:
            raise ValueError(f"evaluate.split {split!r} has no readable image with proposals")
        return cls(
            data,
            proposals,
            vocabulary,
            found.shards,
            count,
            annotated_only,
            UnreadableImages(count, config.execution.max_error_rate),
        )

    def rows(self) -> Iterator[IndexRow]:
        """The index row of every image."""
        for shard in self.shards:
            yield from self._shard_rows(shard, _proposed(self.proposals, shard))

    def _shard_rows(self, shard: int, keys: set[str]) -> list[IndexRow]:
        rows = [row for row in read_index(self.data, shard, self.vocabulary.digest) if row.key in keys]
        return [row for row in rows if (row.box_labels >= 0).any()] if self.annotated_only else rows

    def truth(self) -> Iterator[ImageTruth]:
        """The annotated boxes in the evaluator's form; crowds are ignored regions."""
        return (truth_of(row) for row in self.rows())

    def batches(self, size: int) -> Iterator[list[EvaluationImage]]:
        """Images with their pixels, at most `size` at a time; one that can't be read is left out and counted."""
        reader = ImageReader(self.data)
        waiting: list[tuple[IndexRow, Proposals]] = []
        for shard in self.shards:
            proposals = read_proposals(self.proposals, shard)
            waiting += [(row, proposals[row.key]) for row in self._shard_rows(shard, set(proposals))]
            while len(waiting) >= size:
                yield from self._read(reader, waiting[:size])
                waiting = waiting[size:]
        if waiting:
            yield from self._read(reader, waiting)

    def _read(self, reader: ImageReader, rows: list[tuple[IndexRow, Proposals]]) -> Iterator[list[EvaluationImage]]:
        """One batch, or none when no image of it can be read."""
        batch = []
        for row, proposals in rows:
            pixels = self.unreadable.read(row.key, reader.read_tensor, row)
            if pixels is None:  # its objects stay in the truth, as missed ones
                continue
            use = (row.box_labels >= 0) & ~row.box_crowd
            boxes, labels = torch.from_numpy(row.boxes[use]), torch.from_numpy(row.box_labels[use]).long()
            batch.append(EvaluationImage(row, pixels, boxes, labels, proposals))
        if batch:
            yield batch


def truth_of(row: IndexRow) -> ImageTruth:
    """An index row's objects of the vocabulary."""
    known = row.box_labels >= 0
    lvis = row.neg_labels is not None and row.not_exhaustive_labels is not None
    return ImageTruth(
        row.image_id,
        row.width,
        row.height,
        row.boxes[known].astype(np.float64),
        row.box_labels[known].astype(np.int64),
        row.box_crowd[known],
        row.box_area[known].astype(np.float64),
        [row.box_masks[i] for i in np.flatnonzero(known).tolist()] if row.box_masks else None,
        _labels(row.neg_labels) if lvis else None,
        _labels(row.not_exhaustive_labels) if lvis else None,
    )


def _labels(values: np.ndarray | None) -> np.ndarray:
    assert values is not None
    return values[values >= 0].astype(np.int64)


def _proposed(proposals: Folder, shard: int) -> set[str]:
    """Keys of a shard's images that have proposals; boxes are not read."""
    with proposals.open_table(f"proposals-{shard:05d}.parquet") as file:
        table = pq.read_table(file, columns=["key", "status"])
    return {
        k for k, status in zip(table["key"].to_pylist(), table["status"].to_pylist(), strict=True) if status == "ok"
    }
