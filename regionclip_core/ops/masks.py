"""Annotated masks on their way to the mask head.

Legend: R regions, m the side of a predicted mask, (H, W) the original image. Boxes are xyxy pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import roi_align

from regionclip_core.ops import boxes as box_ops


@dataclass(frozen=True)
class ImageMasks:
    """The annotated masks of one image of a batch, still coded, and the way from its input pixels back to them.

    A batch's bitmaps would fill gigabytes, and only those of sampled regions are looked at: they are decoded one at
    a time, at the original size, and regions are taken back there instead of masks to the input.
    """

    counts: Sequence[bytes]
    """COCO's compressed run lengths, one mask a box of the image, in the order of the boxes."""
    size: tuple[int, int]
    """(H, W)"""
    input_size: tuple[int, int]
    """(height, width) of the resized image in the batch, without padding."""
    flipped: bool = False
    """Whether the image was mirrored left to right on the way."""

    def crop(self, rows: Tensor, boxes: Tensor, side: int) -> Tensor:
        """What the head should predict: bool[R, side, side] on the boxes' device.

        A cell is set where the mask covers at least half of it, by averaged bilinear samples (RoIAlign), the rule
        that detectron2 has for bitmaps.

        Args:
            rows: int64[R], which mask each region is to show.
            boxes: float32[R, 4], the regions in input pixels.
            side: m, cells.
        """
        original = box_ops.rescale(boxes, self.input_size, self.size)
        if self.flipped:
            original = box_ops.flip_horizontal(original, self.size[1])
        result = torch.zeros(len(boxes), side, side, dtype=torch.bool, device=boxes.device)
        for row in sorted(set(rows.tolist())):
            of_row = rows == row
            mask = self._decode(row).to(boxes.device).to(boxes.dtype)[None, None]
            cover = roi_align(mask, [original[of_row]], side, spatial_scale=1.0, sampling_ratio=0, aligned=True)
            result[of_row] = cover[:, 0] >= 0.5
        return result.flip(2) if self.flipped else result

    def _decode(self, row: int) -> Tensor:
        """uint8[H, W]"""
        from pycocotools import mask as coco_mask

        return torch.from_numpy(coco_mask.decode({"size": list(self.size), "counts": self.counts[row]}))
