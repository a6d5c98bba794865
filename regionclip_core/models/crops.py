"""Region embeddings from crops: every region is cut out and goes through all of CLIP, as an image of its own.

Shapes: R regions, S CLIP's input side, D embedding. Boxes are absolute xyxy pixels in the original image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regionclip_core.models.clip import ClipModel
from regionclip_core.ops.image_batch import resize_uint8
from regionclip_core.precision import networks


class CropEncoder(nn.Module):
    """Square crops around boxes through a frozen CLIP model of any architecture: labels.mode `crop`.

    A box's crop has the side `context` * max(w, h) and the box's centre; what is outside the image has the mean
    colour, which is 0 once normalised.
    """

    def __init__(self, clip: ClipModel, context: float = 1.2, batch_size: int = 64) -> None:
        """Use `clip` itself, no copy. `batch_size` crops go through the model at once."""
        super().__init__()
        self.clip = clip
        self.context = context
        self.batch_size = batch_size

    def forward(self, images: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Return embeddings [R, D], not normalised, image by image in the order of the boxes.

        Args:
            images: uint8 [3, h, w], on the CPU.
            boxes: per image [R_i, 4].
        """
        return self.encode([self.cut(image, own) for image, own in zip(images, boxes, strict=True)])

    def cut(self, image: Tensor, boxes: Tensor) -> Tensor:
        """Return one image's crops, uint8 [R, 3, S, S]: the first half of `forward`, on the CPU."""
        fill = [round(255 * value) for value in self.clip.mean]
        return cut_crops(image, boxes, self.context, self.clip.image_size, fill)

    @torch.no_grad()
    def encode(self, crops: list[Tensor]) -> Tensor:
        """Return embeddings [R, D] of the crops of each image: the second half of `forward`."""
        clip = self.clip
        mean, std = (torch.tensor(values, device=clip.device).view(3, 1, 1) for values in (clip.mean, clip.std))
        found = [torch.zeros((0, clip.embed_dim), device=clip.device)]
        for some in torch.split(torch.cat(crops), self.batch_size) if any(map(len, crops)) else ():
            x = some.to(clip.device).float().div_(255).sub_(mean).div_(std)
            with networks(clip.device):
                found.append(clip.encode_images(x).float())
        return torch.cat(found)


def crop_windows(boxes: Tensor, context: float) -> list[tuple[int, int, int]]:
    """Return (left, top, side) in whole pixels of the square around each box [R, 4]; side at least 1.

    The square's centre is the box's, to the nearest pixel; it may reach outside the image.
    """
    x0, y0, x1, y1 = boxes.double().reshape(-1, 4).unbind(1)
    sides = (context * torch.maximum(x1 - x0, y1 - y0)).add(0.5).floor().clamp(min=1)
    lefts = ((x0 + x1 - sides) / 2 + 0.5).floor()
    tops = ((y0 + y1 - sides) / 2 + 0.5).floor()
    rows = torch.stack([lefts, tops, sides], dim=1).long().tolist()
    return [(left, top, side) for left, top, side in rows]


def cut_crops(image: Tensor, boxes: Tensor, context: float, size: int, fill: Sequence[int]) -> Tensor:
    """Cut the squares around `boxes` [R, 4] out of a uint8 image [3, h, w], resized: uint8 [R, 3, size, size].

    Outside of the image they have the colour `fill`. Resizing is bilinear, antialiased, with Pillow's pixels.
    """
    height, width = image.shape[1:]
    # Interleaved colours are what Pillow resizes: no copy of them per crop.
    image = image[None].contiguous(memory_format=torch.channels_last)[0]
    colour = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
    windows = crop_windows(boxes, context)
    crops = torch.empty((len(windows), 3, size, size), dtype=torch.uint8)
    for row, (left, top, side) in enumerate(windows):
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + side, width), min(top + side, height)
        window = image[:, y0:y1, x0:x1] if x0 < x1 and y0 < y1 else image[:, :0, :0]
        if window.shape[1:] != (side, side):  # it reaches outside of the image
            square = colour.repeat(1, side, side)
            if window.numel():
                square[:, y0 - top : y1 - top, x0 - left : x1 - left] = window
            window = square
        crops[row] = resize_uint8(window, (size, size), "bilinear")
    return crops
