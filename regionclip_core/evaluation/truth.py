"""Annotated and detected boxes of one image, as the evaluation takes them. Legend: G objects, N detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]
Labels = NDArray[np.int64]


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


def take_masks(masks: Sequence[bytes], rows: NDArray[Any]) -> list[bytes]:
    """The masks at some indices."""
    return [masks[row] for row in rows.tolist()]


def box_area(boxes: Array) -> Array:
    """Areas of xyxy boxes [N, 4], square pixels."""
    area: Array = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
