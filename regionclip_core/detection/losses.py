"""Losses of the detector head.

Legend: R sampled regions (of the whole batch), K classes; label K is the background; m side of a predicted mask.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.detection.inference import BOX_WEIGHTS
from regionclip_core.ops import boxes as box_ops
from regionclip_core.training.distributed import mean_over_ranks


def classification_loss(
    logits: Tensor, labels: Tensor, background_weight: float = 1.0, focal_gamma: float | None = None
) -> Tensor:
    """Return the cross entropy over K + 1 classes, with `background_weight` on regions of the background.

    With `focal_gamma`, each region's loss is also multiplied by (1 - p_target)^gamma and the sum is divided by R;
    without it, by the sum of the weights. Both divisors are the official ones; they count the regions of all ranks.

    Args:
        logits: [R, K + 1].
        labels: [R] int64 in 0..K.
    """
    background = logits.shape[1] - 1
    weights = torch.where(labels == background, background_weight, 1.0).to(logits.dtype)
    entropy = F.cross_entropy(logits, labels, reduction="none")
    if focal_gamma is None:
        return mean_over_ranks((weights * entropy).sum(), weights.sum())
    p_target = torch.exp(-entropy)
    # A region that is certain (p = 1) has an infinite slope under a power below 1; its loss is 0 all the same.
    scale = (1 - p_target).clamp(min=torch.finfo(logits.dtype).tiny) ** focal_gamma
    return mean_over_ranks((weights * entropy * scale).sum(), len(labels))


def box_loss(deltas: Tensor, labels: Tensor, background: int, proposals: Tensor, truth: Tensor) -> Tensor:
    """Return the L1 distance of predicted and wanted deltas of the foreground, over the number of all regions R.

    Args:
        deltas: [R, 4].
        labels: [R]; `background` is the background's.
        proposals: [R, 4].
        truth: [R, 4], the matched ground-truth boxes; rows of the background are ignored.
    """
    foreground = labels != background
    wanted = box_ops.encode(proposals[foreground], truth[foreground], BOX_WEIGHTS)
    # Over all regions (of all ranks), not only the foreground: so each foreground region has the same influence on the
    # step, whether an image has many or few of them (Fast R-CNN).
    return mean_over_ranks((deltas[foreground] - wanted).abs().sum(), len(labels))


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Return the binary cross entropy averaged over all cells of all foreground masks (of all ranks); 0 without any.

    Without foreground the result still depends on `logits`: a rank without a gradient for some parameter would keep the
    others waiting, so it gives zeros.

    Args:
        logits: [R, m, m] of foreground regions.
        wanted: bool[R, m, m].
    """
    total = F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="sum")
    return mean_over_ranks(total, logits.numel())
