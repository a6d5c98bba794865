"""From a detection's small soft mask to a mask of the whole image, coded as COCO's run lengths.

Legend: N detections, m the side of a predicted mask, (H, W) the image. Boxes are xyxy pixels of that image.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

THRESHOLD = 0.5
"""A pixel belongs to the object from this probability on."""


def encode_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """COCO's compressed run lengths (`counts`) of N masks, pasted and coded one at a time: one bitmap in memory.

    Args:
        probabilities: float[N, m, m]; boxes: float[N, 4], not empty; size: (H, W).
    """
    from pycocotools import mask as coco_mask

    return [coco_mask.encode(mask)["counts"] for mask in paste_masks(probabilities, boxes, size)]


def paste_masks(probabilities: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[npt.NDArray[np.uint8]]:
    """Each mask in its image: uint8[H, W] of 0 and 1, column-major.

    A pixel takes the bilinear interpolation of the mask's cells at its centre, zeros around them, and is set from
    THRESHOLD on: detectron2's rule (`grid_sample` without aligned corners). See `encode_masks` for the arguments.
    """
    height, width = size
    for probability, box in zip(probabilities.float().cpu(), boxes.float().cpu(), strict=True):
        x0, y0, x1, y1 = box.tolist()
        rows = slice(max(0, int(y0)), min(height, int(y1) + 1))
        columns = slice(max(0, int(x0)), min(width, int(x1) + 1))
        across = _weights(columns, x0, x1, probability.shape[1])
        values = _weights(rows, y0, y1, probability.shape[0]) @ probability @ across.T
        image = np.zeros(size, np.uint8, order="F")
        image[rows, columns] = (values >= THRESHOLD).numpy()
        yield image


def _weights(pixels: slice, start: float, stop: float, cells: int) -> Tensor:
    """[pixels, cells] linear interpolation along one axis: the grid is aligned with the box, so it splits into two.

    No pixel whose centre is outside start..stop can reach THRESHOLD, so the box's own pixels are enough.
    """
    centres = torch.arange(pixels.start, pixels.stop, dtype=torch.float32) + 0.5
    position = (centres - start) / (stop - start) * cells - 0.5
    return (1 - (position[:, None] - torch.arange(cells)).abs()).clamp(min=0)
