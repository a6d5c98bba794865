"""Non-maximum suppression of class-agnostic boxes with a score for every class: hard, or soft (Bodla et al. 2017).

All three kinds are one greedy loop: pick the best (box, class) pair, multiply the scores of the class's other pairs
by a decay that depends on their IoU with it, repeat. Scores only shrink, so picks come in descending order and
stopping after `max_detections` of them gives exactly what suppressing everything and sorting would.

Legend: R boxes, K classes, P pairs of a box and a class, N detections.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms

from regionclip_core.ops import boxes as box_ops

NmsKind = Literal["hard", "gaussian", "linear"]


class Picked(NamedTuple):
    """Detections, highest score first: `box` [N] row, `label` [N] class, `score` [N] after the decay."""

    box: Tensor
    label: Tensor
    score: Tensor


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
    """Suppress greedily, per class, among all pairs of box and class with a score above `score_threshold`.

    Args:
        boxes: [R, 4].
        scores: [R, K], finite.
        kind: by what a pick multiplies the scores of its neighbours. hard: 0 above an IoU of `threshold`; linear:
            1 - IoU above it; gaussian: exp(-IoU^2 / `sigma`) everywhere.
        prune: soft kinds only: after the first pick, pairs (of all classes) with a score of at most this are dropped.
    """
    if kind == "hard":
        return _suppress_hard(boxes, scores, score_threshold, max_detections, threshold)
    used = (scores > score_threshold).any(dim=1).nonzero().flatten()  # no other box is in a pair
    overlap = box_ops.iou(boxes[used], boxes[used])
    if kind == "gaussian":
        decay_RR = torch.exp(-(overlap**2) / sigma).cpu().numpy()
    else:
        decay_RR = torch.where(overlap > threshold, 1 - overlap, torch.ones_like(overlap)).cpu().numpy()
    # By class, so that the column that a pick changes is contiguous; 0 marks dropped pairs.
    alive_KR = scores[used].T.detach().float().cpu().numpy().copy()
    alive_KR[alive_KR <= score_threshold] = 0.0
    best_K = alive_KR.max(axis=1, initial=0.0)  # kept up to date
    box: list[int] = []
    label: list[int] = []
    score: list[float] = []
    while len(box) < max_detections and len(best_K):
        k = int(best_K.argmax())
        # The first pick is made before anything is pruned, as in the usual implementation.
        if best_K[k] <= (prune if box else 0.0):
            break
        tied = np.flatnonzero(best_K == best_K[k])
        if len(tied) > 1:  # of equal scores (saturated probabilities) the one whose box comes first
            k = int(tied[alive_KR[tied].argmax(axis=1).argmin()])
        column_R = alive_KR[k]
        r = int(column_R.argmax())
        box.append(r)
        label.append(k)
        score.append(float(column_R[r]))
        column_R *= decay_RR[r]
        column_R[r] = 0.0
        best_K[k] = column_R.max()
    device = boxes.device
    return Picked(
        used[box],
        torch.tensor(label, dtype=torch.int64, device=device),
        torch.from_numpy(np.asarray(score, dtype=np.float32)).to(device),
    )


def _suppress_hard(boxes: Tensor, scores: Tensor, score_threshold: float, max_detections: int, iou: float) -> Picked:
    """Do the same by torchvision's NMS, of the best pairs only: twice as many until there are enough detections."""
    box_P, label_P = (scores > score_threshold).nonzero(as_tuple=True)
    score_P, order_P = scores[box_P, label_P].float().sort(descending=True, stable=True)  # of equals the first box
    box_P, label_P = box_P[order_P], label_P[order_P]
    if not len(box_P):
        return Picked(box_P, label_P, score_P)
    # Each class has a place of its own, where no box of another one overlaps. In double precision, which keeps the
    # coordinates whole: in float32 a thousand classes would cost them a tenth of a pixel.
    place = boxes.double() - boxes.min()
    side, count = place.max() + 1, 4 * max_detections
    while True:
        placed = place[box_P[:count]] + (label_P[:count] * side)[:, None]
        kept = nms(placed, score_P[:count].double(), iou)[:max_detections]
        if len(kept) == max_detections or count >= len(box_P):
            return Picked(box_P[kept], label_P[kept], score_P[kept])
        count *= 2
