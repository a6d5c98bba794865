"""Annotated and detected boxes: added image by image, and read category by category, as average precision needs them.

Legend: G objects and N detections of one image.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BATCH_ROWS = 1 << 15
"""Rows gathered in memory before they are sorted and written: 2.1 MB, and their masks."""
_ROWS = pa.schema(
    [
        ("label", pa.int64()),
        ("image_id", pa.int64()),
        ("bbox", pa.list_(pa.float64(), 4)),  # xywh
        ("area", pa.float64()),
        ("crowd", pa.bool_()),
        ("score", pa.float64()),
        ("mask", pa.large_binary()),  # COCO's compressed run lengths, or null
    ]
)


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
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_] | None = None
    area: NDArray[np.float64] | None = None
    masks: Sequence[bytes] | None = None
    neg_labels: NDArray[np.int64] | None = None
    not_exhaustive_labels: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image: `boxes` [N, 4] xywh pixels, `scores` [N], `labels` [N] rows of the vocabulary.

    Boxes have COCO's form, since what is measured must be, to the last digit, what is written into a results file.
    `masks` [N] are COCO's compressed run lengths in the whole image.
    """

    image_id: int
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: Sequence[bytes] | None = None


def xywh(boxes: NDArray[Any]) -> NDArray[Any]:
    """Return xyxy boxes [n, 4] as COCO's: x, y, width and height."""
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1)


class CategoryRows:
    """A table of boxes in a temporary file that disappears with this object.

    The file is in Arrow's IPC format. Each of its batches is sorted by label, so a category is one slice of each batch,
    and reading it through a memory map touches little else.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="regionclip-evaluation-")  # noqa: SIM115 (open as long as the object)
        self._writer = pa.ipc.new_file(self._file, _ROWS)
        self._waiting: list[pa.RecordBatch] = []
        self._batches: list[pa.RecordBatch] | None = None
        self._waiting_rows = self._images = self._images_with_masks = 0

    @property
    def has_masks(self) -> bool:
        """Whether images were added, and all of them with masks, however many rows they have."""
        return 0 < self._images == self._images_with_masks

    def add(self, image: ImageTruth | ImageDetections, kept: NDArray[np.bool_], **columns: NDArray[Any]) -> None:
        """Add an image's boxes where `kept`, with columns `area`, `crowd` and `score`; only before the first `read`."""
        assert self._batches is None
        boxes = xywh(image.boxes) if isinstance(image, ImageTruth) else image.boxes
        own = {
            "label": image.labels,
            "image_id": np.full(len(boxes), image.image_id),
            "bbox": pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 4),
            "mask": image.masks or pa.nulls(len(boxes), pa.large_binary()),
        }
        rows = pa.RecordBatch.from_pydict({**own, **columns}, schema=_ROWS).filter(pa.array(kept))
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        self._images += 1
        self._images_with_masks += image.masks is not None
        if self._waiting_rows >= BATCH_ROWS:
            self._write()

    def _write(self) -> None:
        table = pa.Table.from_batches(self._waiting, _ROWS).combine_chunks()
        self._writer.write_table(table.sort_by("label"))  # stable: each category keeps the order of the images
        self._waiting, self._waiting_rows = [], 0

    def read(self, label: int) -> pa.Table:
        """Return the rows of one category, in the order in which they were added."""
        if self._batches is None:
            self._write()
            self._writer.close()
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            reader = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(mapped)))
            self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        parts = []
        for batch in self._batches:
            first, last = np.searchsorted(batch["label"].to_numpy(), [label, label + 1])
            parts.append(batch.slice(first, last - first))
        return pa.Table.from_batches(parts, _ROWS)
