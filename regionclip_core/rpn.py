"""Region proposal network: anchors, head and training losses (Faster R-CNN, section 3).

Legend: B images, L levels, A anchors a cell, N_l = H_l * W_l * A anchors of level l, N all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip_core import boxes as box_ops
from regionclip_core.assignment import FOREGROUND, match, sample
from regionclip_core.selection import RPN_WEIGHTS, Proposals, select_proposals


@dataclass(frozen=True)
class AnchorLayout:
    """Anchors of every level: `sizes` are square-root areas in input pixels, `ratios` are height / width."""

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)

    @property
    def per_cell(self) -> int:
        """A: sizes x ratios, the same on every level."""
        return len(self.sizes[0]) * len(self.ratios)

    def anchors(self, level: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
        """[H * W * A, 4] of a feature map, in (row, column, size, ratio) order.

        Cell (i, j) is centred on (j * stride, i * stride), not rounded, and anchors may leave the image.
        """
        sides = []
        for size in self.sizes[level]:
            for ratio in self.ratios:
                w = (size * size / ratio) ** 0.5
                sides.append((-w / 2, -w * ratio / 2, w / 2, w * ratio / 2))
        stride = self.strides[level]
        x = torch.arange(width, device=device, dtype=torch.float32) * stride
        y = torch.arange(height, device=device, dtype=torch.float32) * stride
        cy, cx = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack((cx, cy, cx, cy), dim=-1).view(-1, 1, 4)
        return (centres + torch.tensor(sides, device=device)).reshape(-1, 4)


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
        self.sampling = sampling or RpnSampling()
        self.head = RpnHead(channels, layout.per_cell, head_depth)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Feature maps of the L levels -> anchors [N_l, 4], logits [B, N_l] and deltas [B, N_l, 4] of each level."""
        anchors, logits, deltas = [], [], []
        for level, feature in enumerate(features):
            level_logits, level_deltas = self.head(feature)
            height, width = feature.shape[-2:]
            anchors.append(self.layout.anchors(level, height, width, feature.device))
            logits.append(level_logits)
            deltas.append(level_deltas)
        return anchors, logits, deltas

    def propose(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], pre_nms: int, post_nms: int, nms: float
    ) -> list[Proposals]:
        """Proposals of each image; see :func:`regionclip_core.selection.select_proposals`."""
        anchors, logits, deltas = self(features)
        return select_proposals(anchors, logits, deltas, sizes, pre_nms, post_nms, nms)

    def losses(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """`loss_objectness` (cross entropy) and `loss_rpn_box` (L1), both over the number of sampled anchors.

        Args:
            features: L maps [B, C, H_l, W_l]; boxes: per image [n, 4] in input pixels, n may be 0.
            generator: draws the sampled anchors.
        """
        level_anchors, level_logits, level_deltas = self(features)
        anchors = torch.cat(level_anchors)
        logits, deltas = torch.cat(level_logits, dim=1), torch.cat(level_deltas, dim=1)
        cfg = self.sampling
        objectness, box, count = logits.new_zeros(()), logits.new_zeros(()), 0
        for image_logits, image_deltas, truth in zip(logits, deltas, boxes, strict=True):
            truth_row, kind = match(
                box_ops.iou(truth, anchors), cfg.foreground_iou, cfg.background_iou, low_quality=True
            )
            rows = sample(kind, cfg.anchors_per_image, cfg.positive_fraction, generator)
            target = (kind[rows] == FOREGROUND).to(logits.dtype)
            objectness = objectness + F.binary_cross_entropy_with_logits(image_logits[rows], target, reduction="sum")
            positive = rows[kind[rows] == FOREGROUND]
            wanted = box_ops.encode(anchors[positive], truth[truth_row[positive]], RPN_WEIGHTS)
            box = box + (image_deltas[positive] - wanted).abs().sum()
            count += len(rows)
        return {"loss_objectness": objectness / max(count, 1), "loss_rpn_box": box / max(count, 1)}
