"""Region proposal network: anchors, head and training losses (Faster R-CNN, section 3).

Legend: B images, L levels, A anchors a cell, N_l = H_l * W_l * A anchors of level l, N all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.boxes import FOREGROUND, match, sample
from regionclip_core.proposals.selection import RPN_WEIGHTS, Proposals, select_proposals

TORCHVISION_MIN_SIDE = 1e-3  # pixels; torchvision drops thinner boxes, the official network empty ones only


@dataclass(frozen=True)
class AnchorLayout:
    """Anchors of every level: `sizes` are square-root areas in input pixels, `ratios` are height / width."""

    strides: tuple[int, ...]
    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    torchvision: bool = False
    """torchvision's habits: half sides rounded to whole pixels, and cells as far apart as the whole-number quotient
    of the input's and the map's size, which on a map of odd size is less than the stride."""

    @property
    def per_cell(self) -> int:
        """A: sizes x ratios, the same on every level."""
        return len(self.sizes[0]) * len(self.ratios)

    def anchors(self, shapes: Sequence[tuple[int, int]], device: torch.device | None = None) -> list[Tensor]:
        """Per level [H * W * A, 4] of feature maps of the given (H, W), in (row, column, size, ratio) order.

        Cell (i, j) is centred on (j * stride, i * stride), not rounded, and anchors may leave the image.
        """
        # The finest map divides the padded input without a rest.
        canvas = (shapes[0][0] * self.strides[0], shapes[0][1] * self.strides[0])
        found = []
        for level, (height, width) in enumerate(shapes):
            down = right = self.strides[level]
            if self.torchvision:
                down, right = canvas[0] // height, canvas[1] // width
            x = torch.arange(width, device=device, dtype=torch.float32) * right
            y = torch.arange(height, device=device, dtype=torch.float32) * down
            cy, cx = torch.meshgrid(y, x, indexing="ij")
            centres = torch.stack((cx, cy, cx, cy), dim=-1).view(-1, 1, 4)
            found.append((centres + self._around_origin(level, device)).reshape(-1, 4))
        return found

    def _around_origin(self, level: int, device: torch.device | None) -> Tensor:
        """[A, 4]: the anchors of a cell that is centred on the origin."""
        boxes = []
        for size in self.sizes[level]:
            for ratio in self.ratios:
                w = (size * size / ratio) ** 0.5
                boxes.append((-w / 2, -w * ratio / 2, w / 2, w * ratio / 2))
        around = torch.tensor(boxes, device=device)
        return around.round() if self.torchvision else around


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
        self.min_side = TORCHVISION_MIN_SIDE if layout.torchvision else 0.0
        self.sampling = sampling or RpnSampling()
        self.head = RpnHead(channels, layout.per_cell, head_depth)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Feature maps of the L levels -> anchors [N_l, 4], logits [B, N_l] and deltas [B, N_l, 4] of each level."""
        shapes = [(int(feature.shape[-2]), int(feature.shape[-1])) for feature in features]
        anchors = self.layout.anchors(shapes, features[0].device)
        logits, deltas = zip(*(self.head(feature) for feature in features), strict=True)
        return anchors, list(logits), list(deltas)

    def propose(
        self, features: Sequence[Tensor], sizes: Sequence[tuple[int, int]], pre_nms: int, post_nms: int, nms: float
    ) -> list[Proposals]:
        """Proposals of each image; see :func:`regionclip_core.proposals.selection.select_proposals`."""
        anchors, logits, deltas = self(features)
        return select_proposals(anchors, logits, deltas, sizes, pre_nms, post_nms, nms, self.min_side)

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
