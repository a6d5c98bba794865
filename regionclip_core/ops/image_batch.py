"""Images of any size to one normalised, zero-padded batch.

Shapes: B images, (h, w) one image, (H, W) the padded canvas. Boxes are absolute xyxy pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from regionclip_core.config.tree import Resize

_T = TypeVar("_T")
_INTERPOLATION: dict[Resize, str] = {"detection": "bilinear", "pretraining": "bicubic"}


@dataclass(frozen=True)
class ImageBatch:
    """A batch as a model wants it, with what is needed to go between input and original pixels."""

    tensor: Tensor
    """[B, 3, H, W] float32, normalised; zeros to the right of and below each image."""
    sizes: list[tuple[int, int]]
    """(h, w) of each image in the batch, without padding."""
    scales: list[float]
    """Input pixels an original pixel, before rounding to whole pixels; `to_input` is exact."""
    original_sizes: list[tuple[int, int]]
    """(h, w) of each image as it came."""

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its pixels on `device`."""
        return replace(self, tensor=self.tensor.to(device, non_blocking=True))

    def to_input(self, index: int, boxes: Tensor) -> Tensor:
        """Boxes [R, 4] of image `index` from original to input pixels (each axis by its own, rounded, ratio)."""
        return boxes * boxes.new_tensor(self._ratios(index))

    def to_original(self, index: int, boxes: Tensor) -> Tensor:
        """Boxes [R, 4] of image `index` from input to original pixels."""
        return boxes / boxes.new_tensor(self._ratios(index))

    def global_boxes(self, kind: Literal["image", "padded"] = "image") -> list[Tensor]:
        """One box [1, 4] an image, in input pixels: the image itself, or (official) the batch's padded canvas."""
        height, width = self.tensor.shape[-2:]
        sizes = self.sizes if kind == "image" else [(height, width)] * len(self)
        return [self.tensor.new_tensor([[0.0, 0.0, w, h]]) for h, w in sizes]

    def _ratios(self, index: int) -> list[float]:
        (h, w), (original_h, original_w) = self.sizes[index], self.original_sizes[index]
        return [w / original_w, h / original_h] * 2


def resized_shape(
    height: int, width: int, short_side: int, max_side: int, resize: Resize = "detection"
) -> tuple[int, int]:
    """(h, w) after scaling the shorter side to `short_side`, the longer at most `max_side`.

    `detection` rounds half up, the rule of the official detectors (detectron2's ResizeShortestEdge). `pretraining` is
    the official pretraining's (torchvision's resize at the time): sides are rounded down, and an image whose shorter
    side is right already stays as it is, however long the other one.
    """
    if resize == "pretraining":
        return _rounded_down(height, width, short_side, max_side)
    scale = short_side / min(height, width)
    new_h, new_w = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_h, new_w) > max_side:
        shrink = max_side / max(new_h, new_w)
        new_h, new_w = new_h * shrink, new_w * shrink
    return max(1, int(new_h + 0.5)), max(1, int(new_w + 0.5))


def _rounded_down(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    short, long = min(height, width), max(height, width)
    if short == short_side:
        return height, width
    new_short, new_long = short_side, short_side * long // short
    if new_long > max_side:
        new_short, new_long = max(1, max_side * short_side // new_long), max_side
    return (new_short, new_long) if height <= width else (new_long, new_short)


def by_input_size(
    images: Sequence[Tensor],
    short_side: int,
    max_side: int,
    compute: Callable[[list[int]], Sequence[_T]],
    resize: Resize = "detection",
) -> list[_T]:
    """What a model gives for each image, in their order, when only images of one input size share a batch.

    `compute` takes the numbers of such images and returns one result for each. Padding is convolved like pixels, so it
    changes the features near it: with other sizes in the batch an image's results would depend on its neighbours.
    Officially, too, every image of a test is alone.
    """
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        height, width = int(image.shape[1]), int(image.shape[2])
        groups[resized_shape(height, width, short_side, max_side, resize)].append(number)
    found: dict[int, _T] = {}
    for numbers in groups.values():
        found.update(zip(numbers, compute(numbers), strict=True))
    return [found[number] for number in range(len(images))]


def batch_images(
    images: Sequence[Tensor],
    short_side: int | Sequence[int],
    max_side: int,
    mean: Sequence[float],
    std: Sequence[float],
    resize: Resize = "detection",
) -> ImageBatch:
    """Resize, normalise and pad RGB images (uint8 [3, h, w], values 0..255).

    `short_side` is that of all images, or one an image. `mean` and `std` are of values in 0..1. Resizing is
    antialiased and on uint8, rows first, then columns, as PIL does it: bilinear by the rule `detection`, bicubic by
    `pretraining` (see `resized_shape`). Normalisation comes first, padding after it, so the padding is 0 in normalised
    space, right and bottom only. Raises ValueError for an empty list and for tensors of another kind.
    """
    if not len(images):
        raise ValueError("batch_images got no images; a batch needs at least one")
    resized, scales, original_sizes = [], [], []
    short_sides = [short_side] * len(images) if isinstance(short_side, int) else short_side
    for image, side in zip(images, short_sides, strict=True):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or not image.numel():
            raise ValueError(f"batch_images wants uint8 [3, h, w], got {image.dtype} {tuple(image.shape)}")
        original = (int(image.shape[1]), int(image.shape[2]))
        shape = resized_shape(*original, side, max_side, resize)
        resized.append(image if shape == original else _resize(image, shape, _INTERPOLATION[resize]))
        scales.append(1.0 if shape == original else min(side / min(original), max_side / max(original)))
        original_sizes.append(original)
    sizes = [(int(image.shape[1]), int(image.shape[2])) for image in resized]
    return ImageBatch(normalize_and_pad(resized, mean, std), sizes, scales, original_sizes)


def normalize_and_pad(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images [3, h, w] to one float32 batch [B, 3, H, W]: (pixel / 255 - mean) / std, then zeros around.

    In channels-last memory, which the convolutions on a CPU are much faster with.
    """
    device = images[0].device
    offset = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
    factor = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)
    heights, widths = [image.shape[1] for image in images], [image.shape[2] for image in images]
    if len(set(heights)) == len(set(widths)) == 1:
        stacked = torch.stack(list(images)).float().div_(255).sub_(offset).div_(factor)
        return stacked.contiguous(memory_format=torch.channels_last)
    shape = (len(images), 3, max(heights), max(widths))
    batch = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
    for canvas, image in zip(batch, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image.float().div_(255).sub_(offset).div_(factor)
    return batch


def _resize(image: Tensor, shape: tuple[int, int], interpolation: str) -> Tensor:
    if image.is_cuda:  # antialiased resizing of uint8 exists on the CPU only
        return _resize_in_steps(image, shape, interpolation)
    return F.interpolate(image[None], shape, mode=interpolation, antialias=True)[0]


def _resize_in_steps(image: Tensor, shape: tuple[int, int], interpolation: str) -> Tensor:
    """What uint8 resizing gives: between rows and columns, values are rounded and cut to 0..255."""
    for size in ((image.shape[1], shape[1]), shape):
        smooth = F.interpolate(image[None].float(), size, mode=interpolation, antialias=True)[0]
        image = smooth.round_().clamp_(0, 255).to(torch.uint8)
    return image
