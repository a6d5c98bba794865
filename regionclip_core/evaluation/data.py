"""The images and objects that the evaluate stage measures on. Legend: G annotated boxes of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import (
    IndexRow,
    category_ids,
    read_index,
    read_index_table,
    require_same_images,
    split_shards,
)
from regionclip_core.datasets.read_ahead import read_ahead
from regionclip_core.datasets.synonyms import synonym_names
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.average_precision import Evaluator
from regionclip_core.evaluation.image_boxes import ImageTruth
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.proposals.rpn import Proposals
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import read_proposal_table
from regionclip_core.training.unreadable_images import UnreadableImages


@dataclass(frozen=True)
class EvaluationImage:
    """One image of the split, boxes in original pixels."""

    row: IndexRow
    pixels: Tensor
    """uint8[3, H, W], or resized, as `batches` was asked for."""
    boxes: Tensor
    """float32[G, 4]: annotated, no crowds, categories of the vocabulary only."""
    labels: Tensor
    """int64[G]"""
    proposals: Proposals
    masks: Sequence[bytes] = ()
    """[G], COCO's compressed run lengths of the whole image; empty where none were read."""


class EvaluationData:
    """The images of `evaluate.split` that have proposals, in the order of the index.

    In memory at once: one shard's rows and proposals, and one batch with its pixels.
    """

    def __init__(self, config: Config, data: Folder, proposals: Folder, readers: int = 0) -> None:
        """Read the index once, and add all objects to `evaluator`. `readers`: threads that read images ahead.

        Raises:
            ValueError: no image, boxes of another vocabulary, or annotations that don't fit `evaluate.protocol`.
        """
        settings = config.evaluate
        self.data, self.proposals, self.readers = data, proposals, readers
        self.vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
        self.category_ids = category_ids(data, settings.split)
        """Of each row of the vocabulary, in what is written for others."""
        self.shards = split_shards(data, (settings.split,))
        self.synonyms = None if settings.synonyms is None else synonym_names(settings.synonyms, self.vocabulary)
        """By row of the vocabulary, for rows of their own."""
        self._annotated_only = settings.annotated_only
        self.evaluator = Evaluator(self.vocabulary, settings.protocol, settings.fixed_ap)
        """Holds the ground truth; crowds are ignored regions."""
        self.count = 0
        """Number of images."""
        self.outside = 0
        """Annotated boxes of categories outside the vocabulary, without crowds: nothing is measured on them."""
        for row in self.rows():
            self.evaluator.add_truth(truth_of(row), f"{row.key} of split {settings.split!r}")
            self.count += 1
            self.outside += int(((row.box_labels < 0) & ~row.box_crowd).sum())
        if not self.count:
            raise ValueError(f"evaluate.split {settings.split!r} has no readable image with proposals")
        self.unreadable = UnreadableImages(self.count, config.execution.max_error_rate)
        """The images that a pass could not read."""

    def rows(self) -> Iterator[IndexRow]:
        """Yield the index row of every image."""
        for shard in self.shards:
            table = read_proposal_table(self.proposals, shard, ("key", "status"))  # the boxes are not needed here
            keys, statuses = table["key"].to_pylist(), table["status"].to_pylist()
            indexed = read_index_table(self.data, shard, columns=["key"])["key"].to_pylist()
            require_same_images(keys, indexed, f"the proposals of shard {shard}")
            yield from self._shard_rows(shard, {k for k, status in zip(keys, statuses, strict=True) if status == "ok"})

    def _shard_rows(self, shard: int, keys: set[str]) -> list[IndexRow]:
        rows = [row for row in read_index(self.data, shard, self.vocabulary.digest) if row.key in keys]
        # The official COCO open-vocabulary file, too, leaves out images without an object of the vocabulary.
        return [row for row in rows if (row.box_labels >= 0).any()] if self._annotated_only else rows

    def batches(self, size: int, resize: Callable[[Tensor], Tensor] | None = None) -> Iterator[list[EvaluationImage]]:
        """Yield images with their pixels, at most `size` at a time; unreadable ones are left out and counted."""
        found = ((shard, read_proposals(self.proposals, shard)) for shard in self.shards)
        rows = ((row, own[row.key]) for shard, own in found for row in self._shard_rows(shard, set(own)))
        batch: list[EvaluationImage] = []
        with ImageReader(self.data) as reader:

            def read(item: tuple[IndexRow, Proposals]) -> Tensor:
                pixels = reader.read_tensor(item[0])
                return pixels if resize is None else resize(pixels)

            with closing(read_ahead(read, rows, self.readers, size)) as ahead:
                for (row, proposals), image in ahead:
                    pixels = self.unreadable.read(row.key, lambda get: get(), image)
                    if pixels is None:  # its objects stay in the ground truth, as missed ones
                        continue
                    use = (row.box_labels >= 0) & ~row.box_crowd
                    boxes, labels = torch.from_numpy(row.boxes[use]), torch.from_numpy(row.box_labels[use]).long()
                    masks = [row.box_masks[i] for i in np.flatnonzero(use).tolist()] if row.box_masks else []
                    batch.append(EvaluationImage(row, pixels, boxes, labels, proposals, masks))
                    if len(batch) == size:
                        yield batch
                        batch = []
        if batch:
            yield batch


def truth_of(row: IndexRow) -> ImageTruth:
    """Return an index row's objects of the vocabulary."""
    known = row.box_labels >= 0
    # LVIS's lists may name categories outside the vocabulary, as -1.
    absent, partly = (
        None if labels is None else labels[labels >= 0].astype(np.int64)
        for labels in (row.neg_labels, row.not_exhaustive_labels)
    )
    return ImageTruth(
        row.image_id,
        row.width,
        row.height,
        row.boxes[known].astype(np.float64),
        row.box_labels[known].astype(np.int64),
        row.box_crowd[known],
        row.box_area[known].astype(np.float64),
        [row.box_masks[i] for i in np.flatnonzero(known).tolist()] if row.box_masks else None,
        absent,
        partly,
    )
