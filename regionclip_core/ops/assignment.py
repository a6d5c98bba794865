"""Which ground-truth box a box answers for, and which boxes a loss samples. Shared by the RPN and the detector.

Legend: G ground-truth boxes, N anchors or proposals of one image.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FOREGROUND, BACKGROUND, IGNORED = 1, 0, -1


class Match(NamedTuple):
    """`truth` [N] int64: row of the best ground-truth box (0 if there is none); `kind` [N] int8: see above."""

    truth: Tensor
    kind: Tensor


def match(iou: Tensor, foreground: float, background: float, low_quality: bool = False) -> Match:
    """Assign N boxes by their IoU [G, N] with the ground truth.

    Foreground: best IoU >= `foreground`; background: < `background`; in between: ignored. With `low_quality`, the
    boxes that overlap a ground-truth box best are foreground however little they do (Faster R-CNN, section 3.1.2),
    so that every object has an anchor.
    """
    truths, n = iou.shape
    if truths == 0:
        return Match(iou.new_zeros(n, dtype=torch.int64), iou.new_zeros(n, dtype=torch.int8))
    best, truth = iou.max(dim=0)
    kind = torch.full_like(truth, IGNORED, dtype=torch.int8)
    kind[best < background] = BACKGROUND
    kind[best >= foreground] = FOREGROUND
    if low_quality and n > 0:
        best_of_truth = iou.max(dim=1, keepdim=True).values
        # A ground-truth box that no anchor touches would otherwise make every anchor foreground.
        kind[((iou == best_of_truth) & (best_of_truth > 0)).any(dim=0)] = FOREGROUND
    return Match(truth, kind)


def sample(kind: Tensor, count: int, positive_fraction: float, generator: torch.Generator | None) -> Tensor:
    """Rows [S <= count] of `kind` [N] drawn without replacement, foreground first.

    At most `positive_fraction` of `count` is foreground; background fills the rest.
    """
    positive = (kind == FOREGROUND).nonzero().flatten()
    negative = (kind == BACKGROUND).nonzero().flatten()
    n_positive = min(len(positive), int(count * positive_fraction))
    n_negative = min(len(negative), count - n_positive)
    return torch.cat((_draw(positive, n_positive, generator), _draw(negative, n_negative, generator)))


def _draw(rows: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    # Drawn on the generator's device, so that the same seed samples the same rows with and without a GPU.
    device = generator.device if generator is not None else torch.device("cpu")
    order = torch.randperm(len(rows), generator=generator, device=device)[:count]
    return rows[order.to(rows.device)]
