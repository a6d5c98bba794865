"""Region proposal network: anchors, head, training losses and the choice of proposals (Faster R-CNN, section 3).

Legend: B images, L levels, A anchors per cell, N_l = H_l * W_l * A anchors of level l, N all of them, P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import batched_nms

from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.boxes import FOREGROUND, match, sample
from regionclip_core.precision import in_float32

RPN_WEIGHTS: box_ops.Weights = (1.0, 1.0, 1.0, 1.0)
TORCHVISION_MIN_SIDE = 1e-3  # pixels; torchvision drops thinner boxes, the official network empty ones only


class Proposals(NamedTuple):
    """One image's proposals, best first: `boxes` [P, 4], in input or original pixels, and raw `logits` [P]."""

    boxes: Tensor
    logits: Tensor


@dataclass(frozen=True)
class AnchorLayout:
    """Anchors of every level: `sizes` are square-root areas in input pixels, `ratios` are height / width."""

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    torchvision: bool = False
    """As torchvision does it: half sides are rounded to whole pixels, and the distance of cells is the input's size
    divided by the map's, rounded down, which on a map of odd size is less than the stride."""

    def anchors(self, shapes: Sequence[tuple[int, int]], device: torch.device | None = None) -> list[Tensor]:
        """Return per level [H * W * A, 4] for feature maps of the given (H, W), in (row, column, size, ratio) order.

        Cell (i, j) is centred on (j * stride, i * stride), not rounded, and anchors may leave the image.
        """
        # The finest map's stride divides the padded input.
        canvas = (shapes[0][0] * self.strides[0], shapes[0][1] * self.strides[0])
        found = []
        for level, (height, width) in enumerate(shapes):
            boxes = []  # of a cell centred on the origin
            for size in self.sizes[level]:
                for ratio in self.ratios:
                    w = (size * size / ratio) ** 0.5
                    boxes.append((-w / 2, -w * ratio / 2, w / 2, w * ratio / 2))
            around_origin = torch.tensor(boxes, device=device)
            down = right = self.strides[level]
            if self.torchvision:
                around_origin = around_origin.round()
                down, right = canvas[0] // height, canvas[1] // width
            x = torch.arange(width, device=device, dtype=torch.float32) * right
            y = torch.arange(height, device=device, dtype=torch.float32) * down
            cy, cx = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((cx, cy, cx, cy), dim=-1).view(-1, 1, 4)
            found.append((centres + around_origin).reshape(-1, 4))
        return found


@dataclass(frozen=True)
class RpnSampling:
    """Which anchors the losses see. The defaults are Faster R-CNN's."""

    foreground_iou: float = 0.7
    background_iou: float = 0.3
    anchors_per_image: int = 256
    positive_fraction: float = 0.5


class RpnHead(nn.Module):
    """3x3 convolutions with ReLU, then 1x1 objectness and box deltas, shared by all levels."""

    def __init__(self, channels: int, anchors_per_cell: int, depth: int = 1) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))
        self.objectness = nn.Conv2d(channels, anchors_per_cell, 1)
        self.deltas = nn.Conv2d(channels, anchors_per_cell * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Feature [B, C, H, W] -> logits [B, H*W*A] and deltas [B, H*W*A, 4], anchors in AnchorLayout's order."""
        for conv in self.convs:
            feature = F.relu(conv(feature))
        return self._predict(feature)

    @in_float32  # in bf16 many of the best logits would be equal, and boxes be off by pixels
    def _predict(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.objectness(feature).permute(0, 2, 3, 1).flatten(1)
        deltas = self.deltas(feature).permute(0, 2, 3, 1)
        return logits, deltas.reshape(deltas.shape[0], -1, 4)


class RegionProposalNetwork(nn.Module):
    """Anchors and a head over the feature maps of a backbone."""

    def __init__(
        self, channels: int, layout: AnchorLayout, head_depth: int = 1, sampling: RpnSampling | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.min_side = TORCHVISION_MIN_SIDE if layout.torchvision else 0.0
        self.sampling = sampling or RpnSampling()
        self.head = RpnHead(channels, len(layout.sizes[0]) * len(layout.ratios), head_depth)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Feature maps of the L levels -> anchors [N_l, 4], logits [B, N_l] and deltas [B, N_l, 4] of each level."""
        shapes = [(int(feature.shape[-2]), int(feature.shape[-1])) for feature in features]
        anchors = self.layout.anchors(shapes, features[0].device)
        logits, deltas = zip(*(self.head(feature) for feature in features), strict=True)
        return anchors, list(logits), list(deltas)

    def propose(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], pre_nms: int, post_nms: int, nms: float
    ) -> list[Proposals]:
        """Return the proposals of each image; see `select_proposals`."""
        anchors, logits, deltas = self(features)
        return select_proposals(anchors, logits, deltas, sizes, pre_nms, post_nms, nms, self.min_side)

    def losses(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return `loss_objectness` (cross entropy) and `loss_rpn_box` (L1), both over the number of sampled anchors.

        Args:
            features: L maps [B, C, H_l, W_l].
            boxes: per image [n, 4] in input pixels, n may be 0.
            generator: draws the sampled anchors.
        """
        level_anchors, level_logits, level_deltas = self(features)
        anchors = torch.cat(level_anchors)
        logits, deltas = torch.cat(level_logits, dim=1), torch.cat(level_deltas, dim=1)
        cfg = self.sampling
        objectness, box, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for image_logits, image_deltas, truth in zip(logits, deltas, boxes, strict=True):
            # The anchor that overlaps an object best is foreground however little it does (section 3.1.2).
            overlap = box_ops.iou(truth, anchors)
            truth_row, kind = match(overlap, cfg.foreground_iou, cfg.background_iou, low_quality=True)
            # Nearly all anchors are background: without a balanced sample they would outweigh the objects.
            rows = sample(kind, cfg.anchors_per_image, cfg.positive_fraction, generator)
            target = (kind[rows] == FOREGROUND).to(logits.dtype)
            objectness = objectness + F.binary_cross_entropy_with_logits(image_logits[rows], target, reduction="sum")
            positive = rows[kind[rows] == FOREGROUND]
            wanted = box_ops.encode(anchors[positive], truth[truth_row[positive]], RPN_WEIGHTS)
            box = box + (image_deltas[positive] - wanted).abs().sum()
            count += len(rows)
        return {"loss_objectness": objectness / max(count, 1), "loss_rpn_box": box / max(count, 1)}


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
    """Choose each image's proposals from the RPN's dense outputs, as the official RPN does in eval mode.

    Args:
        anchors: per level [N_l, 4]
        logits: per level [B, N_l]
        deltas: per level [B, N_l, 4]
        sizes: unpadded (height, width) of each input image.
        pre_nms: anchors kept per level, the best by raw logit.
        post_nms: proposals kept per image, of all levels together.
        nms: IoU of non-maximum suppression within each level.
        min_side: boxes with a side of at most this many pixels are dropped.
    """
    top_boxes, top_logits, top_levels = [], [], []
    for level, (level_anchors, level_logits, level_deltas) in enumerate(zip(anchors, logits, deltas, strict=True)):
        # By logit, without a sigmoid: in float32 that would make many of the best equal.
        best, rows = level_logits.topk(min(pre_nms, level_logits.shape[1]), dim=1)
        chosen = level_deltas.gather(1, rows[..., None].expand(-1, -1, 4))
        decoded = box_ops.decode(level_anchors[rows].flatten(0, 1), chosen.flatten(0, 1), RPN_WEIGHTS)
        top_boxes.append(decoded.view(*rows.shape, 4))
        top_logits.append(best)
        top_levels.append(torch.full((rows.shape[1],), level, device=rows.device))
    levels = torch.cat(top_levels)
    proposals = []
    for boxes, scores, size in zip(torch.cat(top_boxes, dim=1), torch.cat(top_logits, dim=1), sizes, strict=True):
        # Untrained or diverging weights may give infinite boxes: these are no proposals, and NMS can't compare them.
        finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores)
        boxes = box_ops.clip(boxes, size)  # to the image, not to the padded canvas
        kept = finite & box_ops.nonempty(boxes, min_side)
        boxes, scores = boxes[kept], scores[kept]
        best = batched_nms(boxes, scores, levels[kept], nms)[:post_nms]
        proposals.append(Proposals(boxes[best], scores[best]))
    return proposals
