"""The images of a split that rpn and finetune learn from, as a sequence that lies on disk.

N images, n objects of one image, G of them that training may see, P proposals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from regionclip_core.datasets.index import read_index_table, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import INDEX, PROPOSED, read_proposal_table
from regionclip_core.training.box_batches import BoxedImage, labelled_boxes, usable_boxes
from regionclip_core.training.image_tally import ImageTally
from regionclip_core.training.row_table import RowTable

_PLACE = "place"
"""Column beside an index's own: the image's row in the split, from 0."""


@dataclass(frozen=True)
class BoxedImages(Sequence[BoxedImage]):
    """N images, made from their rows as they are asked for: nothing that grows with the split is in memory."""

    rows: RowTable
    allowed: tuple[int, ...]
    """Labels of the boxes that training may see, rows of the vocabulary."""
    masks: bool = False
    """Whether the boxes' masks come too."""
    proposals: bool = False
    """Whether the rows have proposals."""
    numbers: Mapping[int, int] | None = None
    """What each allowed label is called here; None: as in the vocabulary."""
    split_rows: int = 0
    """Images of the whole split, trained on or not."""

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> BoxedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[BoxedImage]: ...
    def __getitem__(self, index: int | slice) -> BoxedImage | Sequence[BoxedImage]:
        """The image at a position, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        row = self.rows[index]
        boxes, labels = labelled_boxes(row, self.allowed)
        if self.numbers is not None:
            labels = torch.tensor([self.numbers[label] for label in labels.tolist()])
        extra = torch.zeros(0, 4)
        if self.proposals:
            extra = torch.from_numpy(self.rows.boxes(PROPOSED.name, index))
        coded = None
        if self.masks:
            coded = [row.box_masks[i] for i in np.flatnonzero(usable_boxes(row, self.allowed)).tolist()]
        return BoxedImage(replace(row, box_masks=()), boxes, labels, extra, coded)

    def tally(self, max_error_rate: float) -> ImageTally:
        """Counts the images that a training reads, by their row in the split."""
        return ImageTally(
            self.split_rows,
            max_error_rate,
            images=len(self),
            place_of=lambda number: int(self.rows.value(_PLACE, number)),
            key_of=lambda number: str(self.rows.value("key", number)),
        )

    def labels(self) -> Iterable[npt.NDArray[np.int32]]:
        """int32[G] of each image in order, as in the vocabulary; read anew each time it is gone through."""
        return _Labels(self)


@dataclass(frozen=True)
class _Labels:
    images: BoxedImages

    def __iter__(self) -> Iterator[npt.NDArray[np.int32]]:
        rows = self.images.rows
        for labels, crowd in zip(rows.lists("box_labels"), rows.lists("box_crowd"), strict=True):
            yield labels[np.isin(labels, self.images.allowed) & ~crowd]


def boxed_images(
    data: Folder, split: str, allowed: Collection[int], masks: bool = False, proposals: Folder | None = None
) -> BoxedImages:
    """Readable images of `split` with at least one usable box, in the order of the index.

    Only boxes whose label is in `allowed` exist for the caller: objects of other categories stay in the picture,
    unlabelled, as novel ones must. Crowd boxes are left out. With `masks`, the boxes' masks come too. With
    `proposals`, an image's proposals are its `extra` boxes, and images without any (unreadable ones) are left out.
    One shard's rows and proposals are in memory at a time.

    Raises:
        ValueError: if no image is left, the index was written with another vocabulary, or masks are wanted that the
            data stage has not read.
    """
    selection = _Selection(data, split, tuple(sorted(allowed)), masks, proposals)
    rows = RowTable(selection.tables())
    if not selection.with_boxes:
        raise ValueError(f"split {split!r} has no image with a box of the wanted categories; training needs some")
    if not len(rows):
        raise ValueError(f"split {split!r}: no image with boxes could be read for proposals")
    return BoxedImages(rows, selection.allowed, masks, proposals is not None, split_rows=selection.split_rows)


@dataclass
class _Selection:
    """Which rows of a split are trained on."""

    data: Folder
    split: str
    allowed: tuple[int, ...]
    masks: bool
    proposals: Folder | None
    with_boxes: int = 0
    """Readable images with a usable box so far, with or without proposals."""
    split_rows: int = 0
    """Rows so far, of whatever kind."""

    def tables(self) -> Iterator[pa.Table]:
        """One shard's rows at a time."""
        digest = Vocabulary.from_json(self.data.read_json("categories.json")).digest
        # Masks are most of an index; where nobody asks for them, they needn't be read.
        columns = [name for name in INDEX.names if self.masks or name != "box_masks"]
        for shard in split_shards(self.data, (self.split,)):
            table = read_index_table(self.data, shard, digest, columns)
            places = np.arange(self.split_rows, self.split_rows + table.num_rows)
            self.split_rows += table.num_rows
            table = table.append_column(_PLACE, pa.array(places))
            table = table.take(np.flatnonzero(_has_box(table, self.allowed)))
            self.with_boxes += table.num_rows
            if self.masks:
                _require_masks(table, self.split)
            yield table if self.proposals is None else _with_proposals(table, self.proposals, shard)


def _has_box(table: pa.Table, allowed: Sequence[int]) -> npt.NDArray[np.bool_]:
    """bool[rows]: readable, with a box of the allowed categories that is no crowd."""
    usable = np.isin(_flat(table["box_labels"]), allowed) & ~_flat(table["box_crowd"])
    before = np.concatenate([[0], np.cumsum(usable)])
    ends = np.cumsum(_lengths(table["box_labels"]))
    counts = before[ends] - before[ends - _lengths(table["box_labels"])]
    readable = np.array([status == "ok" for status in table["status"].to_pylist()], np.bool_)
    result: npt.NDArray[np.bool_] = readable & (counts > 0)
    return result


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """The values of all rows' lists, one after another."""
    return cast("npt.NDArray[Any]", pc.list_flatten(column).to_numpy())


def _lengths(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """int64[rows]: how long each row's list is."""
    return cast("npt.NDArray[np.int64]", pc.list_value_length(column).to_numpy().astype(np.int64))


def _require_masks(table: pa.Table, split: str) -> None:
    boxes, masks = _lengths(table["boxes"]), _lengths(table["box_masks"])
    for row in np.flatnonzero(boxes != masks).tolist()[:1]:
        raise ValueError(
            f"split {split!r}: image {table['key'][row].as_py()!r} has {boxes[row]} boxes and {masks[row]} masks, but "
            f"a mask head learns from a mask a box; set data.splits.{split}.masks: true (coco and lvis splits have it) "
            "and run the data stage again, or set finetune.mask_head: false"
        )


def _with_proposals(table: pa.Table, proposals: Folder, shard: int) -> pa.Table:
    """The rows that have proposals, with these beside them."""
    found = read_proposal_table(proposals, shard, ("key", "status", "boxes"))
    status = found["status"].to_pylist()
    place = {key: row for row, key in enumerate(found["key"].to_pylist()) if status[row] == "ok"}
    keys = table["key"].to_pylist()
    kept = [row for row, key in enumerate(keys) if key in place]
    boxes = found["boxes"].take(np.array([place[keys[row]] for row in kept], np.int64))
    return table.take(np.array(kept, np.int64)).append_column(PROPOSED, boxes)
