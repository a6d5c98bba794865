"""Boxes: absolute xyxy float pixels, x right and y down, x1 < x2 and y1 < y2 unless said otherwise.

Legend: N, M boxes; a size is always (height, width).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import box_area, box_iou, clip_boxes_to_image

Weights = tuple[float, float, float, float]

# Deltas of log size are cut here, so that an untrained regressor can't blow a box up (Faster R-CNN's usual bound).
MAX_LOG_SIZE = math.log(1000.0 / 16.0)


def area(boxes: Tensor) -> Tensor:
    """Areas [N] in square pixels of boxes [N, 4]."""
    result: Tensor = box_area(boxes)
    return result


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union [N, M] of boxes [N, 4] and [M, 4]; 0 where both boxes are empty."""
    return torch.nan_to_num(box_iou(a, b), nan=0.0)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] cut to an image of `size` = (height, width)."""
    result: Tensor = clip_boxes_to_image(boxes, size)
    return result


def nonempty(boxes: Tensor, min_side: float = 0.0) -> Tensor:
    """Mask [N]: both sides are longer than `min_side` pixels."""
    return (boxes[:, 2] - boxes[:, 0] > min_side) & (boxes[:, 3] - boxes[:, 1] > min_side)


def rescale(boxes: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Boxes [N, 4] of an image of size `source` (height, width) after its resize to `target`.

    Each axis has its own factor, since a resized side is rounded to whole pixels.
    """
    y, x = target[0] / source[0], target[1] / source[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def flip_horizontal(boxes: Tensor, width: float) -> Tensor:
    """Boxes [N, 4] of the mirrored image of `width` pixels."""
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)


def square_with_context(boxes: Tensor, context: float) -> Tensor:
    """Squares [N, 4] around the boxes' centres with side `context` x the longer side; they may leave the image."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1, keepdim=True) * (context / 2)
    return torch.cat((centre - half, centre + half), dim=1)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * size, size


def encode(sources: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """Regression targets [N, 4] = (dx, dy, dw, dh) that take `sources` [N, 4] to `targets` [N, 4].

    Fast R-CNN's parameterisation (Girshick et al. 2014, appendix C), each entry times its weight. Both kinds of
    box must be nonempty, otherwise the result isn't finite.
    """
    centre, size = _centre_size(sources)
    target_centre, target_size = _centre_size(targets)
    deltas = torch.cat(((target_centre - centre) / size, torch.log(target_size / size)), dim=1)
    return deltas * deltas.new_tensor(weights)


def decode(sources: Tensor, deltas: Tensor, weights: Weights) -> Tensor:
    """Boxes [N, 4] that `deltas` [N, 4] make of `sources` [N, 4]; the inverse of :func:`encode` up to MAX_LOG_SIZE."""
    centre, size = _centre_size(sources.to(deltas.dtype))
    deltas = deltas / deltas.new_tensor(weights)
    new_centre = deltas[:, :2] * size + centre
    half = 0.5 * torch.exp(deltas[:, 2:].clamp(max=MAX_LOG_SIZE)) * size
    return torch.cat((new_centre - half, new_centre + half), dim=1)
