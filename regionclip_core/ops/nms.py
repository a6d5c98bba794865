"""Non-maximum suppression of class-agnostic boxes with a score for every class: hard, or soft (Bodla et al. 2017).

All three kinds are one greedy loop: pick the best (box, class) pair, multiply the scores of the class's other pairs
by a decay that depends on their IoU with it, repeat. Scores only shrink, so picks come in descending order and
stopping after `max_detections` of them gives exactly what suppressing everything and sorting would.

Legend: R boxes, K classes, N detections.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regionclip_core.ops import boxes as box_ops

NmsKind = Literal["hard", "gaussian", "linear"]


class Picked(NamedTuple):
    """Detections, best first: `box` [N] row, `label` [N] class, `score` [N] after the decay."""

    box: Tensor
    label: Tensor
    score: Tensor


def decay_matrix(iou: Tensor, kind: NmsKind, threshold: float, sigma: float) -> Tensor:
    """Factors [R, R] by which a pick (row) multiplies the scores of the others (columns).

    hard: 0 above `threshold`, otherwise 1; linear: 1 - IoU above it; gaussian: exp(-IoU^2 / sigma) everywhere.
    """
    if kind == "gaussian":
        return torch.exp(-(iou**2) / sigma)
    suppressed = torch.zeros_like(iou) if kind == "hard" else 1 - iou
    return torch.where(iou > threshold, suppressed, torch.ones_like(iou))


def suppress(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    max_detections: int,
    kind: NmsKind = "hard",
    threshold: float = 0.5,
    sigma: float = 0.5,
    prune: float = 0.001,
) -> Picked:
    """Greedy per-class suppression of all pairs with score > `score_threshold`.

    Args:
        boxes: [R, 4]; scores: [R, K], finite.
        prune: soft kinds only: after a pick, pairs (of all classes) with a score <= `prune` are gone.
    """
    decay = decay_matrix(box_ops.iou(boxes, boxes), kind, threshold, sigma).cpu().numpy()
    # By class, so that the column that a pick changes is contiguous; 0 marks pairs that are out.
    alive = scores.T.detach().float().cpu().numpy().copy()
    alive[alive <= score_threshold] = 0.0
    floor = 0.0 if kind == "hard" else prune
    best = alive.max(axis=1, initial=0.0)  # of each class, kept up to date
    box: list[int] = []
    label: list[int] = []
    score: list[float] = []
    while len(box) < max_detections and len(best):
        k = _best_class(best, alive)
        # The first pick is made before anything is pruned, as in the usual implementation.
        if best[k] <= (floor if box else 0.0):
            break
        column = alive[k]
        r = int(column.argmax())
        box.append(r)
        label.append(k)
        score.append(float(column[r]))
        column *= decay[r]
        column[r] = 0.0
        best[k] = column.max()
    device = boxes.device
    return Picked(
        torch.tensor(box, dtype=torch.int64, device=device),
        torch.tensor(label, dtype=torch.int64, device=device),
        torch.from_numpy(np.asarray(score, dtype=np.float32)).to(device),
    )


def _best_class(best: NDArray[np.float32], alive: NDArray[np.float32]) -> int:
    """Class [K] of the best pair; of equal ones (saturated probabilities) the one whose box comes first."""
    k = int(best.argmax())
    tied = np.flatnonzero(best == best[k])
    if len(tied) == 1 or best[k] <= 0:
        return k
    return int(tied[alive[tied].argmax(axis=1).argmin()])
