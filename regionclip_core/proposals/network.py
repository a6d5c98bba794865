"""Region proposers: a region proposal network, a grid, random boxes; and their recall.

Legend: B images, P proposals, G ground-truth boxes. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import RpnConfig
from regionclip_core.ops import boxes as box_ops
from regionclip_core.proposals.backbones import (
    Backbone,
    ResNet50C4,
    ResNet50Fpn,
    SmallBackbone,
    TorchvisionFpn,
    initialise,
)
from regionclip_core.proposals.rpn import AnchorLayout, RegionProposalNetwork, RpnSampling
from regionclip_core.proposals.selection import Proposals

# Small images hold few objects, and in open-vocabulary training some of them (the novel ones) are unlabelled:
# fewer sampled anchors mean fewer chances that an unlabelled object is called background.
SMALL_SAMPLING = RpnSampling(foreground_iou=0.6, background_iou=0.3, anchors_per_image=32, positive_fraction=0.5)


class ProposalNetwork(nn.Module):
    """A backbone and a class-agnostic RPN head.

    `mean` and `std` normalise the RGB input (pixels in 0..1); all boxes are in pixels of the network's input.
    """

    def __init__(self, config: RpnConfig) -> None:
        super().__init__()
        self.backbone: Backbone = _backbone(config)
        self.mean, self.std = self.backbone.mean, self.backbone.std
        if isinstance(self.backbone, SmallBackbone):
            layout = AnchorLayout(self.backbone.strides, (tuple(float(side) for side in config.anchor_sizes),))
            self.rpn = RegionProposalNetwork(self.backbone.channels, layout, sampling=SMALL_SAMPLING)
            return
        sides = (32.0, 64.0, 128.0, 256.0, 512.0)
        layout = AnchorLayout(
            self.backbone.strides,
            (sides,) if isinstance(self.backbone, ResNet50C4) else tuple((side,) for side in sides),
            torchvision=isinstance(self.backbone, TorchvisionFpn),
        )
        depth = 2 if config.backbone == "resnet50_fpn_lsj" else 1
        self.rpn = RegionProposalNetwork(self.backbone.channels, layout, head_depth=depth)

    def losses(
        self,
        images: Tensor,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[Tensor],
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Training losses `loss_objectness` and `loss_rpn_box`, to be summed.

        Args:
            images: [B, 3, H, W], normalised and padded; sizes: the unpadded sizes.
            boxes: per image [n, 4] input pixels, n may be 0.
            generator: draws the anchors that are sampled.
        """
        _check_batch(images, sizes, boxes)
        return self.rpn.losses(self.backbone(images), boxes, generator)

    @torch.no_grad()
    def propose(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], pre_nms: int, post_nms: int, nms: float
    ) -> list[Proposals]:
        """Per image at most `post_nms` proposals in input pixels with raw logits, best first (call eval() before)."""
        _check_batch(images, sizes)
        return self.rpn.propose(self.backbone(images), sizes, pre_nms, post_nms, nms)

    def forward(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor], seed: int | None = None
    ) -> dict[str, Tensor]:
        """The losses, so that a data-parallel wrapper sees them; `seed` seeds the sampling of this call."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return self.losses(images, sizes, boxes, generator)


def _backbone(config: RpnConfig) -> Backbone:
    backbone: Backbone
    if config.backbone == "small":
        backbone = SmallBackbone(config.width)
    elif config.backbone == "resnet50_c4":
        backbone = ResNet50C4()
    elif config.backbone == "torchvision_fpn":
        backbone = TorchvisionFpn()
    else:
        backbone = ResNet50Fpn(lsj=config.backbone == "resnet50_fpn_lsj")
    initialise(backbone)
    return backbone


def _check_batch(images: Tensor, sizes: Sequence[tuple[int, int]], boxes: Sequence[Tensor] | None = None) -> None:
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images: expected a batch [B, 3, H, W], got shape {tuple(images.shape)}")
    if len(sizes) != len(images) or (boxes is not None and len(boxes) != len(images)):
        given = "" if boxes is None else f" and {len(boxes)} lists of boxes"
        raise ValueError(f"{len(images)} images came with {len(sizes)} sizes{given}; each image needs its own")


def min_objectness(proposals: Proposals, probability: float) -> Proposals:
    """Only the proposals whose sigmoid objectness is at least `probability`."""
    kept = torch.sigmoid(proposals.logits) >= probability
    return Proposals(proposals.boxes[kept], proposals.logits[kept])


def grid_boxes(width: int, height: int, scales: Sequence[float], max_regions: int) -> Proposals:
    """Squares on half-overlapping grids that cover the image, one grid a scale, largest scale first.

    A scale is the square's side as a share of the shorter image side. Where the grids hold more than `max_regions`
    boxes, evenly spaced ones are taken. Logits are 0: a grid knows no objectness.
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
    if len(boxes) > max_regions:
        boxes = boxes[torch.linspace(0, len(boxes) - 1, max_regions).round().long()]
    return Proposals(boxes, torch.zeros(len(boxes)))


def random_boxes(
    width: int, height: int, scales: Sequence[float], max_regions: int, generator: torch.Generator
) -> Proposals:
    """`max_regions` boxes inside the image; each side is log-uniform between the extreme scales. Logits are 0.

    A scale is a share of the shorter image side.
    """
    shorter = min(width, height)
    low, high = min(scales) * shorter, max(scales) * shorter
    draw = torch.rand(max_regions, 4, generator=generator)
    sides = (low * (high / low) ** draw[:, :2]).clamp(min=1.0, max=float(shorter))
    corner = draw[:, 2:] * (torch.tensor([float(width), float(height)]) - sides)
    return Proposals(torch.cat((corner, corner + sides), dim=1), torch.zeros(max_regions))


class RecallCount:
    """Counts ground-truth boxes, and those that one of the best `top` proposals covers at IoU >= `iou`."""

    def __init__(self, ious: Sequence[float] = (0.5,), tops: Sequence[int] = (10, 50, 100)) -> None:
        self.boxes = 0
        """Ground-truth boxes so far."""
        self._ious, self._tops = ious, tops
        self._found = {(top, iou): 0 for iou in ious for top in tops}

    def add(self, proposals: Tensor, truth: Tensor) -> None:
        """One image: [P, 4] proposals, best first, and [G, 4] ground truth in the same pixels."""
        if not len(truth):
            return
        self.boxes += len(truth)
        overlap = box_ops.iou(truth, proposals)
        for top in self._tops:
            best = overlap[:, :top].amax(dim=1) if overlap.shape[1] else overlap.new_zeros(len(truth))
            for iou in self._ious:
                self._found[top, iou] += int((best >= iou).sum())

    def scores(self) -> dict[str, float]:
        """Share of the boxes found, in 0..1; NaN when there is no box at all.

        `recall@<top>` is at the first IoU, `recall@<top>/iou<iou>` at the others.
        """
        return {
            f"recall@{top}" + ("" if iou == self._ious[0] else f"/iou{iou:g}"): (
                count / self.boxes if self.boxes else float("nan")
            )
            for (top, iou), count in self._found.items()
        }


def recall(
    proposals: Sequence[Tensor],
    truth: Sequence[Tensor],
    ious: Sequence[float] = (0.5,),
    tops: Sequence[int] = (10, 50, 100),
) -> dict[str, float]:
    """`RecallCount.scores` of some images: per image [P, 4] proposals, best first, and [G, 4] ground truth."""
    if len(proposals) != len(truth):
        raise ValueError(f"recall: {len(proposals)} images of proposals but {len(truth)} of ground truth")
    count = RecallCount(ious, tops)
    for image_proposals, image_truth in zip(proposals, truth, strict=True):
        count.add(image_proposals, image_truth)
    return count.scores()
