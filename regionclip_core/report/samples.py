"""A few samples of large artifacts, which are not read whole.

Samples are the same for the same artifacts, and their choice doesn't depend on results: they are spread evenly over
shards and rows. (Pictures of detections are chosen by results, see `detections.py`.) Boxes are xyxy pixels of the
original image.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import ijson
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import IndexRow, read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.storage.records import Folder

Box = tuple[float, float, float, float]
T = TypeVar("T")

MAX_SHARDS = 4
"""Shards of a split that samples are taken from."""
MATCH_IOU = 0.5
"""A box is on an object from this IoU on, as AP50 counts."""


@dataclass(frozen=True)
class Sample:
    """An image of a split: its index row, and its pixels, uint8 [H, W, 3]."""

    split: str
    shard: int
    row: IndexRow
    pixels: npt.NDArray[np.uint8]

    @property
    def objects(self) -> list[tuple[Box, int]]:
        """Boxes and labels of the annotated objects that count."""
        return objects_of(self.row)

    def object_at(self, box: Box) -> int | None:
        """Return the label of the object that `box` overlaps most, None below MATCH_IOU."""
        if not self.objects:
            return None
        overlap = box_ops.iou(torch.tensor([box]), torch.tensor([b for b, _ in self.objects]))[0]
        best = int(overlap.argmax())
        return self.objects[best][1] if float(overlap[best]) >= MATCH_IOU else None


@dataclass(frozen=True)
class Detection:
    """One box of a detector, its row of the vocabulary, and its score."""

    box: Box
    label: int
    score: float


def objects_of(row: IndexRow) -> list[tuple[Box, int]]:
    """Return boxes and labels of the annotated objects that count: in the vocabulary, no crowds."""
    return [
        (as_box(box), int(label))
        for box, label, crowd in zip(row.boxes, row.box_labels, row.box_crowd, strict=True)
        if label >= 0 and not crowd
    ]


def as_box(values: Sequence[float]) -> Box:
    """Return four numbers as a box of plain floats."""
    x0, y0, x1, y1 = (float(v) for v in values)
    return x0, y0, x1, y1


def kind_of(name: str, vocabulary: Vocabulary) -> str:
    """Return `base` or `novel` for the name of a category, `other` for any other name."""
    if name in vocabulary.base:
        return "base"
    return "novel" if name in vocabulary.names else "other"


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items (or all) at equal distances."""
    if count >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def sample_images(data: Folder, split: str, count: int, labels: Collection[int] | None = None) -> list[Sample]:
    """Return `count` readable images of a split: those with an object of `labels` first, where labels are given."""
    found = [
        (shard, row)
        for shard in spread(split_shards(data, (split,)), MAX_SHARDS)
        for row in read_index(data, shard)
        if row.ok
    ]
    wanted = [labels is None or bool(np.isin(row.box_labels[~row.box_crowd], list(labels)).any()) for _, row in found]
    chosen = spread([entry for entry, first in zip(found, wanted, strict=True) if first], count)
    chosen += spread([entry for entry, first in zip(found, wanted, strict=True) if not first], count - len(chosen))
    return read_samples(data, split, chosen)


def read_samples(data: Folder, split: str, chosen: Iterable[tuple[int, IndexRow]]) -> list[Sample]:
    """Return images with their pixels, by shard and row; unreadable ones are left out, as later stages did."""
    samples = []
    with ImageReader(data) as reader:
        for shard, row in chosen:
            try:
                samples.append(Sample(split, shard, row, reader.read(row)))
            except BadImage:
                continue
    return samples


def rows_of(folder: Folder, what: str, samples: Sequence[Sample]) -> list[tuple[Sample, dict[str, Any]]]:
    """Return the samples with their rows of `<what>-<shard>.parquet`; those whose row is bad are left out."""
    found = {}
    for shard in sorted({sample.shard for sample in samples}):
        keys = [sample.row.key for sample in samples if sample.shard == shard]
        with folder.open(f"{what}-{shard:05d}.parquet") as file:
            table = pq.read_table(file, filters=[("key", "in", keys), ("status", "==", "ok")])
        found.update({(shard, row["key"]): row for row in table.to_pylist()})
    keyed = ((sample, found.get((sample.shard, sample.row.key))) for sample in samples)
    return [(sample, row) for sample, row in keyed if row is not None]


def read_detections(
    evaluate: Folder, detector: str, category_ids: Sequence[Any]
) -> Iterator[tuple[int, list[Detection]]]:
    """Yield image id and detections, highest score first, of `detections-<detector>.json`, which is streamed.

    The file has the detections of an image one after the other, so that one image's are in memory.
    `category_ids`: of each row of the vocabulary, in that file.

    Raises:
        ValueError: the file is damaged, or has other category ids.
    """
    name = f"detections-{detector}.json"
    label_of = {category: label for label, category in enumerate(category_ids)}
    try:
        with evaluate.open(name) as file:
            for image, rows in groupby(ijson.items(file, "item", use_float=True), lambda row: row["image_id"]):
                found = []
                for row in rows:
                    x, y, w, h = row["bbox"]
                    found.append(Detection((x, y, x + w, y + h), label_of[row["category_id"]], row["score"]))
                yield image, sorted(found, key=lambda d: (-d.score, d.label, d.box))
    except (ijson.JSONError, KeyError) as error:
        raise ValueError(f"{evaluate.path(name)} is damaged: run the evaluate stage again") from error


def correct(detections: Sequence[Detection], objects: Sequence[tuple[Box, int]]) -> list[bool]:
    """Return for each detection, highest score first, whether it finds an object of its category.

    As in COCO's evaluation, a detection takes the object that it overlaps most among those not yet found, at MATCH_IOU.
    """
    if not objects or not detections:
        return [False] * len(detections)
    overlap = box_ops.iou(torch.tensor([d.box for d in detections]), torch.tensor([box for box, _ in objects])).numpy()
    labels = np.array([label for _, label in objects])
    free = np.ones(len(objects), dtype=bool)
    result = []
    for detection, ious in zip(detections, overlap, strict=True):
        usable = np.where(free & (labels == detection.label), ious, 0.0)
        best = int(usable.argmax())
        result.append(bool(usable[best] >= MATCH_IOU))
        if result[-1]:
            free[best] = False
    return result
