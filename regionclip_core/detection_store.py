"""Ground truth and detections of a split on disk, written image by image and read back category by category.

Average precision needs all detections of a category together, while a model yields them image by image. Held at once
are `FLUSH_ROWS` rows while writing and, while reading, the rows of one bucket of categories (about 1/`BUCKETS` of all,
or whatever share its categories have). Legend: G objects and N detections of one image, n rows of one category.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from regionclip_core.schemas import STORED_DETECTIONS, STORED_TRUTH

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]

BUCKETS = 32
"""Parts that the categories are cut into; one is read at a time."""
FLUSH_ROWS = 1 << 17
"""Rows gathered before they are written."""


@dataclass(frozen=True)
class ImageTruth:
    """Ground truth of one image: `boxes` [G, 4] xyxy pixels, `labels` [G] rows of the vocabulary (-1: left out).

    `crowd` [G] (default none) marks regions in which detections count neither for nor against; `area` [G] (default
    the boxes') sorts objects into size ranges; `masks` [G] are COCO's compressed run lengths. LVIS only: `neg_labels`
    are the categories known to be absent, of `not_exhaustive_labels` some objects have no box.
    """

    image_id: int
    width: int
    height: int
    boxes: Array
    labels: Labels
    crowd: Flags | None = None
    area: Array | None = None
    masks: Sequence[bytes] | None = None
    neg_labels: Labels | None = None
    not_exhaustive_labels: Labels | None = None


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image: `boxes` [N, 4], `scores` [N], `labels` [N] rows of the vocabulary.

    `masks` [N] are COCO's compressed run lengths in the whole image; `exempt` [N] (default none) marks detections that
    count where they are right, and are no mistake where they are not.
    """

    image_id: int
    boxes: Array
    scores: Array
    labels: Labels
    masks: Sequence[bytes] | None = None
    exempt: Flags | None = None

    def take(self, rows: NDArray[Any]) -> ImageDetections:
        """The detections at `rows`: indices, or flags."""
        masks = None if self.masks is None else take_masks(self.masks, np.arange(len(self.labels))[rows])
        exempt = None if self.exempt is None else self.exempt[rows]
        return ImageDetections(self.image_id, self.boxes[rows], self.scores[rows], self.labels[rows], masks, exempt)


@dataclass(frozen=True)
class CategoryRows:
    """Boxes of one category, by image id and, in an image, in the order they were added in."""

    image_id: NDArray[np.int64]
    """[n]"""
    boxes: Array
    """[n, 4]"""
    columns: Mapping[str, NDArray[Any]]
    """Truth: `crowd` and `area`; detections: `score` and `exempt`; [n] each."""
    masks: list[bytes] | None
    """[n], where they were asked for."""

    def __len__(self) -> int:
        return len(self.image_id)


class BucketFile:
    """A Parquet file with a row group for every flush and bucket of categories, so that a bucket is read alone."""

    def __init__(self, path: Path, schema: pa.Schema, categories: int, flush_rows: int = FLUSH_ROWS) -> None:
        self._path, self._schema, self._flush_rows = path, schema, flush_rows
        self._count = min(categories, BUCKETS)
        self._bucket_of = np.arange(categories) * self._count // max(categories, 1)
        self._groups: list[list[int]] = [[] for _ in range(self._count)]
        self._pending: list[Mapping[str, Any]] = []
        self._rows = self._written = 0
        self._writer: pq.ParquetWriter | None = pq.ParquetWriter(str(path), schema, compression="zstd")

    def buckets(self) -> list[list[int]]:
        """The labels of each bucket, ascending."""
        return [np.flatnonzero(self._bucket_of == number).tolist() for number in range(self._count)]

    def add(self, columns: Mapping[str, Any]) -> None:
        """Rows by column, numpy arrays of one length (`mask`: a list); `label` says where they go."""
        self._pending.append(columns)
        self._rows += len(columns["label"])
        if self._rows >= self._flush_rows:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        assert self._writer is not None  # nothing is added after the first read
        table = pa.table({field.name: self._joined(field) for field in self._schema}, schema=self._schema)
        bucket = self._bucket_of[table["label"].to_numpy()]
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self._count + 1))
        for number in range(self._count):
            rows = order[bounds[number] : bounds[number + 1]]
            if len(rows):
                self._writer.write_table(table.take(rows), row_group_size=len(rows))
                self._groups[number].append(self._written)
                self._written += 1
        self._pending, self._rows = [], 0

    def _joined(self, field: pa.Field) -> pa.Array:
        parts = [columns[field.name] for columns in self._pending]
        if field.name == "mask":
            return pa.array([mask for part in parts for mask in part], field.type)
        return pa.array(np.concatenate(parts), field.type)

    def read(self, bucket: int, masks: bool) -> Bucket:
        """The rows of a bucket in the order they were added in; nothing can be added after the first call."""
        if self._writer is not None:
            self._flush()
            self._writer.close()
            self._writer = None
        names = [name for name in self._schema.names if masks or name != "mask"]
        with pq.ParquetFile(str(self._path), pre_buffer=False) as file:
            return Bucket(file.read_row_groups(self._groups[bucket], columns=names, use_threads=False))

    def delete(self) -> None:
        """Remove the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._path.unlink()


class Bucket:
    """Rows of some categories in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._label = table["label"].to_numpy()
        # By label, then by image; lexsort is stable, so an image's rows stay in their order.
        self._order = np.lexsort((table["image_id"].to_numpy(), self._label))

    def category(self, label: int) -> CategoryRows:
        """The rows of one category."""
        start, stop = np.searchsorted(self._label[self._order], [label, label + 1])
        rows = self._table.take(self._order[start:stop])
        columns = {name: rows[name].to_numpy() for name in rows.column_names if name != "mask"}
        boxes = np.stack([columns.pop(name) for name in ("x0", "y0", "x1", "y1")], axis=1)
        columns.pop("label")
        masks = rows["mask"].to_pylist() if "mask" in rows.column_names else None
        return CategoryRows(columns.pop("image_id"), boxes, columns, masks)


class TruthStore:
    """The ground truth of a split. In memory stay the sizes of its images and the number of boxes by category."""

    def __init__(self, path: Path, categories: int, flush_rows: int = FLUSH_ROWS) -> None:
        self._file = BucketFile(path, STORED_TRUTH, categories, flush_rows)
        self._missing_masks = False
        self.sizes: dict[int, tuple[int, int]] = {}
        """(height, width) by image id."""
        self.counts: NDArray[np.int64] = np.zeros(categories, np.int64)
        """Objects by label, crowds left out."""

    @property
    def has_masks(self) -> bool:
        """Whether there are objects, and each has a mask."""
        return not self._missing_masks and bool(self.counts.any())

    def add(self, image: ImageTruth) -> None:
        """ValueError when the image's id is there already."""
        if image.image_id in self.sizes:
            raise ValueError(f"evaluation: two images of the ground truth have the same image_id {image.image_id}")
        self.sizes[image.image_id] = (image.height, image.width)
        known = image.labels >= 0
        count = int(known.sum())
        if not count:
            return
        crowd = np.zeros(count, np.bool_) if image.crowd is None else image.crowd[known]
        boxes = np.asarray(image.boxes, np.float64)[known]
        area = _box_area(boxes) if image.area is None else image.area[known]
        labels = image.labels[known]
        masks: list[bytes | None] = [None] * count
        if image.masks:
            masks = list(take_masks(image.masks, np.flatnonzero(known)))
        self._missing_masks |= not image.masks
        self.counts += np.bincount(labels[~crowd], minlength=len(self.counts))
        self._file.add({**_places(image.image_id, labels, boxes), "crowd": crowd, "area": area, "mask": masks})

    def buckets(self) -> list[list[int]]:
        """The labels of each bucket; those of a DetectionStore of as many categories are the same."""
        return self._file.buckets()

    def read(self, bucket: int, masks: bool) -> Bucket:
        """One bucket's objects; ends the writing."""
        return self._file.read(bucket, masks)


class DetectionStore:
    """The detections of one model on the images of a TruthStore."""

    def __init__(self, path: Path, truth: TruthStore, flush_rows: int = FLUSH_ROWS) -> None:
        self._truth = truth
        self._file = BucketFile(path, STORED_DETECTIONS, len(truth.counts), flush_rows)
        self._images = self._with_masks = 0

    @property
    def has_masks(self) -> bool:
        """Whether every image came with masks, of however many detections."""
        return 0 < self._images == self._with_masks

    def add(self, found: ImageDetections) -> None:
        """Each image once. ValueError for an image that the truth lacks, or labels outside the vocabulary."""
        self._check(found)
        self._images += 1
        self._with_masks += found.masks is not None
        exempt = np.zeros(len(found.labels), np.bool_) if found.exempt is None else found.exempt
        masks = [None] * len(found.labels) if found.masks is None else list(found.masks)
        boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
        place = _places(found.image_id, found.labels, boxes)
        self._file.add({**place, "score": found.scores, "exempt": exempt, "mask": masks})

    def _check(self, found: ImageDetections) -> None:
        if found.image_id not in self._truth.sizes:
            raise ValueError(f"evaluation: detections of image {found.image_id}, which the ground truth doesn't have")
        last = len(self._truth.counts) - 1
        if len(found.labels) and not 0 <= int(found.labels.min()) <= int(found.labels.max()) <= last:
            raise ValueError(
                f"evaluation: image {found.image_id} has detections outside the vocabulary's rows "
                f"0..{last}: {int(found.labels.min())}..{int(found.labels.max())}"
            )

    def read(self, bucket: int, masks: bool) -> Bucket:
        """One bucket's detections; ends the writing."""
        return self._file.read(bucket, masks)

    def delete(self) -> None:
        """Remove the file."""
        self._file.delete()


def take_masks(masks: Sequence[bytes], rows: NDArray[Any]) -> list[bytes]:
    """The masks at some indices."""
    return [masks[row] for row in rows.tolist()]


def _places(image_id: int, labels: Labels, boxes: Array) -> dict[str, NDArray[Any]]:
    corners = dict(zip(("x0", "y0", "x1", "y1"), boxes.T, strict=True))
    return {"label": labels, "image_id": np.full(len(labels), image_id, np.int64), **corners}


def _box_area(boxes: Array) -> Array:
    area: Array = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
