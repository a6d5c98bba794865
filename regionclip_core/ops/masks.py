"""Masks, coded as COCO's run lengths: annotated masks become the mask head's targets, predicted ones are coded.

Legend: R regions, N detections, m the side of a predicted mask, (H, W) the original image. Boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import roi_align

from regionclip_core.ops import boxes as box_ops

THRESHOLD = 0.5
"""A pixel belongs to the object from this probability on."""


@dataclass(frozen=True)
class ImageMasks:
    """The annotated masks of one image of a batch, still coded, and how its input pixels relate to theirs.

    The bitmaps of a batch would fill gigabytes, and only those of sampled regions are needed: they are decoded one at
    a time, at the original size. Regions are converted to original pixels; masks are never resized to the input.
    """

    counts: Sequence[bytes]
    """COCO's compressed run lengths, one mask per box of the image, in the order of the boxes."""
    size: tuple[int, int]
    """(H, W)"""
    input_size: tuple[int, int]
    """(height, width) of the resized image in the batch, without padding."""
    flipped: bool = False
    """Whether the image was mirrored left to right before it went into the batch."""

    def crop(self, rows: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return what the head should predict: bool[R, side, side]; a cell is set where its mask covers half of it or
        more, detectron2's rule for bitmaps. Arguments as `cover`."""
        return self.cover(rows, boxes, side) >= 0.5

    def cover(self, rows: Tensor, boxes: Tensor, side: int) -> Tensor:
        """Return the part of each cell that a mask covers: float[R, side, side], as the boxes.

        It is the mean of bilinear samples (RoIAlign).

        Args:
            rows: int64[R], the mask that each region should show.
            boxes: float32[R, 4], the regions in input pixels.
            side: m, cells.
        """
        original = box_ops.rescale(boxes, self.input_size, self.size)
        if self.flipped:
            original = box_ops.flip_horizontal(original, self.size[1])
        result = boxes.new_zeros(len(boxes), side, side)
        for row in sorted(set(rows.tolist())):
            of_row = rows == row
            bitmap = coco_mask.decode({"size": list(self.size), "counts": self.counts[row]})  # uint8[H, W]
            mask = torch.from_numpy(bitmap).to(boxes.device).to(boxes.dtype)[None, None]
            cells = roi_align(mask, [original[of_row]], side, spatial_scale=1.0, sampling_ratio=0, aligned=True)
            result[of_row] = cells[:, 0]
        return result.flip(2) if self.flipped else result  # the network sees the mirrored image


def encode_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """Return COCO's compressed run lengths (`counts`) of N masks, pasted into the image and coded one at a time.

    A pixel takes the bilinear interpolation of the mask's cells at its centre, zeros around them, and is set from
    THRESHOLD on: detectron2's rule (`grid_sample` without aligned corners).

    Args:
        probabilities: float[N, m, m].
        boxes: float[N, 4], none of them empty.
        size: (H, W).
    """
    height, width = size
    coded = []
    for probability, box in zip(probabilities.float().cpu(), boxes.float().cpu(), strict=True):
        x0, y0, x1, y1 = box.tolist()
        # A pixel whose centre is outside the box can't reach THRESHOLD: the box's own pixels are enough.
        rows = slice(max(0, int(y0)), min(height, int(y1) + 1))
        columns = slice(max(0, int(x0)), min(width, int(x1) + 1))
        across = _weights(columns, x0, x1, probability.shape[1])
        values = _weights(rows, y0, y1, probability.shape[0]) @ probability @ across.T
        image = np.zeros(size, np.uint8, order="F")
        image[rows, columns] = (values >= THRESHOLD).numpy()
        coded.append(coco_mask.encode(image)["counts"])
    return coded


def _weights(pixels: slice, start: float, stop: float, cells: int) -> Tensor:
    """Return weights [pixels, cells] of linear interpolation along one axis; bilinear is one axis after the other."""
    centres = torch.arange(pixels.start, pixels.stop, dtype=torch.float32) + 0.5
    position = (centres - start) / (stop - start) * cells - 0.5
    return (1 - (position[:, None] - torch.arange(cells)).abs()).clamp(min=0)
