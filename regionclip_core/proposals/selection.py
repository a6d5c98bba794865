"""From the RPN's dense outputs to an image's proposals.

Legend: B images, N_l anchors of level l, P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from regionclip_core.ops import boxes as box_ops

RPN_WEIGHTS: box_ops.Weights = (1.0, 1.0, 1.0, 1.0)


class Proposals(NamedTuple):
    """One image's proposals, best first: `boxes` [P, 4], in the pixels that their maker says, and raw `logits` [P]."""

    boxes: Tensor
    logits: Tensor


def select_proposals(
    anchors: Sequence[Tensor],
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    pre_nms: int,
    post_nms: int,
    nms: float,
    min_side: float = 0.0,
) -> list[Proposals]:
    """Choose each image's proposals as the official RPN does in eval mode.

    Per level the `pre_nms` best anchors by raw logit; boxes cut to the unpadded image; non-finite ones, and those with
    a side of at most `min_side` pixels, dropped; NMS at IoU `nms` within each level; the `post_nms` best of all
    levels. No sigmoid anywhere.

    Args:
        anchors: per level [N_l, 4]; logits: per level [B, N_l]; deltas: per level [B, N_l, 4].
        sizes: unpadded (height, width) of each input image.
    """
    top_boxes, top_logits, levels = [], [], []
    for level, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas, strict=True)):
        best, rows = level_logits.topk(min(pre_nms, level_logits.shape[1]), dim=1)
        chosen = level_deltas.gather(1, rows[..., None].expand(-1, -1, 4))
        decoded = box_ops.decode(level_anchors[rows].flatten(0, 1), chosen.flatten(0, 1), RPN_WEIGHTS)
        top_boxes.append(decoded.view(*rows.shape, 4))
        top_logits.append(best)
        levels.append(torch.full((rows.shape[1],), level, device=rows.device))
    all_boxes, all_logits, all_levels = torch.cat(top_boxes, dim=1), torch.cat(top_logits, dim=1), torch.cat(levels)
    return [
        _select_image(image_boxes, image_logits, all_levels, size, post_nms, nms, min_side)
        for image_boxes, image_logits, size in zip(all_boxes, all_logits, sizes, strict=True)
    ]


def _select_image(
    boxes: Tensor, logits: Tensor, levels: Tensor, size: tuple[int, int], post_nms: int, nms: float, min_side: float
) -> Proposals:
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(logits)
    boxes = box_ops.clip(boxes, size)
    kept = finite & box_ops.nonempty(boxes, min_side)
    boxes, logits, levels = boxes[kept], logits[kept], levels[kept]
    best = batched_nms(boxes, logits, levels, nms)[:post_nms]
    return Proposals(boxes[best], logits[best])
