"""Box arithmetic, and which boxes a loss looks at. Shared by the proposal network and the detector.

Boxes are absolute xyxy float pixels, x to the right and y down, x1 < x2 and y1 < y2 unless said otherwise; a size is
always (height, width).

Legend: N, M boxes; G ground-truth boxes of one image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image

Weights = tuple[float, float, float, float]
"""Factors of the regression targets (dx, dy, dw, dh), which bring them to similar variance."""

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1

# Deltas of log size are cut here, so that an untrained regressor can't blow a box up (Faster R-CNN's usual bound).
MAX_LOG_SIZE = math.log(1000.0 / 16.0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union [N, M] of boxes [N, 4] and [M, 4]; 0 where both boxes are empty."""
    return torch.nan_to_num(box_iou(a, b), nan=0.0)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut boxes [N, 4] to an image of `size` = (height, width)."""
    result: Tensor = clip_boxes_to_image(boxes, size)
    return result


def shortest(values: ArrayLike) -> NDArray[np.float64]:
    """Return float32 numbers as those of the fewest digits that give the same float32 when they are read.

    So they are written into JSON, and so a reader of double precision, such as pycocotools, has them.
    """
    numbers = np.asarray(values, np.float32)
    words = pa.array(numbers.ravel()).cast(pa.string())  # NumPy's own words take five times as long
    read: NDArray[np.float64] = words.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return read.reshape(numbers.shape)


def nonempty(boxes: Tensor, min_side: float = 0.0) -> Tensor:
    """Return bool[N]: whether both sides of a box are longer than `min_side` pixels."""
    return (boxes[:, 2] - boxes[:, 0] > min_side) & (boxes[:, 3] - boxes[:, 1] > min_side)


def rescale(boxes: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Follow boxes [N, 4] through the resize of their image from `source` to `target`, both (height, width).

    Each axis has its own factor, since a resized side is rounded to whole pixels.
    """
    y, x = target[0] / source[0], target[1] / source[1]
    return boxes * boxes.new_tensor([x, y, x, y])


def flip_horizontal(boxes: Tensor, width: float) -> Tensor:
    """Mirror boxes [N, 4] with their image of `width` pixels."""
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)


def grid_boxes(width: int, height: int, scales: Sequence[float], max_boxes: int) -> Tensor:
    """Return squares on half-overlapping grids that cover the image, float32[N, 4]: one grid per scale, largest first.

    A scale is the square's side as a share of the shorter image side. Where the grids hold more than `max_boxes`,
    evenly spaced ones are taken.
    """
    shorter = min(width, height)
    grids = []
    for scale in sorted(scales, reverse=True):
        side = min(max(scale * shorter, 1.0), float(shorter))
        columns = torch.linspace(0, width - side, max(1, round(2 * (width - side) / side) + 1))
        rows = torch.linspace(0, height - side, max(1, round(2 * (height - side) / side) + 1))
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corner = torch.stack((x, y), dim=-1).view(-1, 2)
        grids.append(torch.cat((corner, corner + side), dim=1))
    boxes = torch.cat(grids)
    if len(boxes) > max_boxes:
        boxes = boxes[torch.linspace(0, len(boxes) - 1, max_boxes).round().long()]
    return boxes


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes[:, :2] + 0.5 * size, size


def encode(sources: Tensor, targets: Tensor, weights: Weights) -> Tensor:
    """Return the regression targets [N, 4] = (dx, dy, dw, dh) that take `sources` [N, 4] to `targets` [N, 4].

    R-CNN's parameterisation (Girshick et al. 2014, appendix C), each entry times its weight. No box may be empty, or
    the result isn't finite.
    """
    centre, size = _centre_size(sources)
    target_centre, target_size = _centre_size(targets)
    deltas = torch.cat(((target_centre - centre) / size, torch.log(target_size / size)), dim=1)
    return deltas * deltas.new_tensor(weights)


def decode(sources: Tensor, deltas: Tensor, weights: Weights) -> Tensor:
    """Apply `deltas` [N, 4] to `sources` [N, 4]: the inverse of `encode`, up to MAX_LOG_SIZE."""
    centre, size = _centre_size(sources.to(deltas.dtype))
    deltas = deltas / deltas.new_tensor(weights)
    new_centre = deltas[:, :2] * size + centre
    half = 0.5 * torch.exp(deltas[:, 2:].clamp(max=MAX_LOG_SIZE)) * size
    return torch.cat((new_centre - half, new_centre + half), dim=1)


# ---------------------------------------------------------------- assignment to the ground truth


class Match(NamedTuple):
    """The ground-truth box that each of N boxes is assigned to."""

    truth: Tensor
    """[N] int64: row of the ground-truth box with the highest IoU; 0 if the image has none."""
    kind: Tensor
    """[N] int8: FOREGROUND, BACKGROUND or IGNORED."""


def match(overlap: Tensor, foreground: float, background: float, low_quality: bool = False) -> Match:
    """Assign N boxes to G ground-truth boxes by their IoU [G, N].

    A box is foreground if its best IoU is at least `foreground`, background if it is below `background`, ignored in
    between. With `low_quality`, the boxes that overlap a ground-truth box most are foreground too, however small that
    overlap is (Faster R-CNN, section 3.1.2), so that every object has an anchor.
    """
    truths, n = overlap.shape
    if truths == 0:  # everything in an image without objects is background
        return Match(overlap.new_zeros(n, dtype=torch.int64), overlap.new_zeros(n, dtype=torch.int8))
    best, truth = overlap.max(dim=0)
    kind = torch.full_like(truth, IGNORED, dtype=torch.int8)
    kind[best < background] = BACKGROUND
    kind[best >= foreground] = FOREGROUND
    if low_quality and n > 0:
        best_of_truth = overlap.max(dim=1, keepdim=True).values
        # Without "> 0", a ground-truth box that no anchor touches would make every anchor foreground.
        kind[((overlap == best_of_truth) & (best_of_truth > 0)).any(dim=0)] = FOREGROUND
    return Match(truth, kind)


def sample(kind: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None) -> Tensor:
    """Draw at most `count` rows of `kind` [N] without replacement; returns their numbers [S], foreground first.

    At most `positive_fraction` of `count` is foreground; background fills the rest.
    """
    positive, negative = ((kind == wanted).nonzero().flatten() for wanted in (FOREGROUND, BACKGROUND))
    n_positive = min(len(positive), int(count * positive_fraction))
    n_negative = min(len(negative), count - n_positive)
    # Drawn on the generator's device, so that a seed gives the same rows with and without a GPU.
    device = generator.device if generator is not None else torch.device("cpu")
    drawn = []
    for rows, number in ((positive, n_positive), (negative, n_negative)):
        order = torch.randperm(len(rows), generator=generator, device=device)[:number]
        drawn.append(rows[order.to(rows.device)])
    return torch.cat(drawn)
