"""Images of any size to one normalised, zero-padded batch.

Shapes: B images, (h, w) one image, (H, W) the padded canvas. Boxes are absolute xyxy pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regionclip_core.config.tree import Resize

_T = TypeVar("_T")
_SMALL = 2**14  # elements
_INTERPOLATION: dict[Resize, str] = {"detection": "bilinear", "pretraining": "bicubic"}


@dataclass(frozen=True)
class Batch:
    """Base of the dataclasses that a training or a model takes; their tensors may be in lists and in inner batches."""

    def to(self, device: torch.device | str) -> Self:
        """Return the same batch with its tensors on `device`."""
        # From pinned memory a GPU copies while the CPU goes on. A copy to the CPU has to be there when it is read.
        ahead = torch.device(device).type == "cuda"
        return self._with(lambda part: part.to(device, **({"non_blocking": ahead} if isinstance(part, Tensor) else {})))

    def pin_memory(self) -> Self:
        """Return the same batch in page-locked memory, from which a GPU copies by itself."""
        return self._with(lambda part: part.pin_memory())

    def _with(self, change: Callable[[Any], Any]) -> Self:
        return replace(self, **{name: _each(value, (Tensor, Batch), change) for name, value in self.__dict__.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields, small tensors as arrays: between processes torch gives each tensor shared memory of its
        own, and a hundred of them cost more time and open files than the images."""
        return {name: _each(value, Tensor, _array_if_small) for name, value in self.__dict__.items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: _each(value, np.ndarray, torch.from_numpy) for name, value in state.items()})


def _each(value: Any, kind: Any, change: Callable[[Any], Any]) -> Any:
    """Return `value`, or a list like it, with `change` applied to what is of a kind."""
    if isinstance(value, list):
        return [_each(item, kind, change) for item in value]
    return change(value) if isinstance(value, kind) else value


def _array_if_small(tensor: Tensor) -> Any:
    return tensor.numpy() if tensor.numel() <= _SMALL and tensor.device.type == "cpu" else tensor


@dataclass(frozen=True)
class ImageBatch(Batch):
    """A batch as a model takes it, with the sizes that relate its pixels to those of the original images."""

    tensor: Tensor
    """[B, 3, H, W] float32, normalised; zeros to the right of and below each image."""
    sizes: list[tuple[int, int]]
    """(h, w) of each image in the batch, without padding."""
    original_sizes: list[tuple[int, int]]
    """(h, w) of each image as it came."""

    def __len__(self) -> int:
        return len(self.sizes)

    def to_input(self, index: int, boxes: Tensor) -> Tensor:
        """Take boxes [R, 4] of image `index` from original to input pixels (each axis by its own, rounded, ratio)."""
        return boxes * boxes.new_tensor(self._ratios(index))

    def to_original(self, index: int, boxes: Tensor) -> Tensor:
        """Take boxes [R, 4] of image `index` from input to original pixels."""
        return boxes / boxes.new_tensor(self._ratios(index))

    def global_boxes(self, kind: Literal["image", "padded"] = "image") -> list[Tensor]:
        """Return one box [1, 4] per image, in input pixels: the image, or the padded canvas as in the official code."""
        height, width = self.tensor.shape[-2:]
        sizes = self.sizes if kind == "image" else [(height, width)] * len(self)
        return [self.tensor.new_tensor([[0.0, 0.0, w, h]]) for h, w in sizes]

    def _ratios(self, index: int) -> list[float]:
        (h, w), (original_h, original_w) = self.sizes[index], self.original_sizes[index]
        return [w / original_w, h / original_h] * 2


@dataclass(frozen=True)
class PixelBatch(ImageBatch):
    """A batch on its way to the model: `tensor` is uint8, a fourth of its normalised values; `to` normalises it there.

    A batch of photos would else be a gigabyte that a reading process writes, and that is pinned and sent to the GPU.
    """

    mean: Sequence[float]
    """Of values in 0..1."""
    std: Sequence[float]

    def to(self, device: torch.device | str) -> ImageBatch:  # type: ignore[override]
        """Return the normalised batch on `device`."""
        pixels = super().to(device).tensor
        images = [one[:, :h, :w] for one, (h, w) in zip(pixels, self.sizes, strict=True)]
        return ImageBatch(normalize_and_pad(images, self.mean, self.std), self.sizes, self.original_sizes)


def resized_shape(
    height: int, width: int, short_side: int, max_side: int, resize: Resize = "detection"
) -> tuple[int, int]:
    """Return (h, w) after scaling the shorter side to `short_side`, the longer at most `max_side`.

    `detection` rounds half up, the rule of the official detectors (detectron2's ResizeShortestEdge). `pretraining` is
    the official pretraining's (torchvision's resize at the time): sides are rounded down, and an image whose shorter
    side is right already stays as it is, however long the other one.
    """
    if resize == "pretraining":
        short, long = min(height, width), max(height, width)
        if short == short_side:
            return height, width
        new_short, new_long = short_side, short_side * long // short
        if new_long > max_side:
            new_short, new_long = max(1, max_side * short_side // new_long), max_side
        return (new_short, new_long) if height <= width else (new_long, new_short)
    scale = short_side / min(height, width)
    new_h, new_w = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(new_h, new_w) > max_side:
        shrink = max_side / max(new_h, new_w)
        new_h, new_w = new_h * shrink, new_w * shrink
    return max(1, int(new_h + 0.5)), max(1, int(new_w + 0.5))


class Resized(NamedTuple):
    """An image as a network takes it, but not yet normalised."""

    pixels: Tensor
    """uint8 [3, h, w], on the CPU."""
    original_size: tuple[int, int]
    """(h, w) of the image as it came."""


def resize_image(image: Tensor, short_side: int, max_side: int, resize: Resize = "detection") -> Resized:
    """Resize an RGB image (uint8 [3, h, w], values 0..255, on the CPU) by the rule of `resized_shape`.

    `detection` interpolates bilinearly, `pretraining` bicubically; both to Pillow's pixels.
    """
    assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3, (image.dtype, image.shape)
    original = (int(image.shape[1]), int(image.shape[2]))
    shape = resized_shape(*original, short_side, max_side, resize)
    return Resized(image if shape == original else resize_uint8(image, shape, _INTERPOLATION[resize]), original)


def by_input_size(images: Sequence[Resized], compute: Callable[[list[int]], Sequence[_T]]) -> list[_T]:
    """Return a model's result for each image, in their order; each batch has only images of one input size.

    `compute` takes the numbers of such images and returns one result for each. Padding is convolved like pixels, so it
    changes the features near it: with other sizes in the batch an image's results would depend on its neighbours. The
    official code avoids this by testing one image at a time.
    """
    groups: defaultdict[torch.Size, list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        groups[image.pixels.shape].append(number)
    found: dict[int, _T] = {}
    for numbers in groups.values():
        found.update(zip(numbers, compute(numbers), strict=True))
    return [found[number] for number in range(len(images))]


def pixel_batch(
    images: Sequence[Tensor],
    short_side: int | Sequence[int],
    max_side: int,
    mean: Sequence[float],
    std: Sequence[float],
    resize: Resize = "detection",
) -> PixelBatch:
    """Resize and pad RGB images, see `resize_image` and `pad_images`; `to` a device normalises them there.

    `short_side`: pixels, of all images, or one number per image.
    """
    sides = [short_side] * len(images) if isinstance(short_side, int) else short_side
    return pad_images(
        [resize_image(image, side, max_side, resize) for image, side in zip(images, sides, strict=True)], mean, std
    )


def batch_resized(
    images: Sequence[Resized], mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
) -> ImageBatch:
    """Pad images, and normalise them on `device`, see `pad_images`."""
    return pad_images(images, mean, std).to(device)


def pad_images(images: Sequence[Resized], mean: Sequence[float], std: Sequence[float]) -> PixelBatch:
    """Put each image on a canvas of the largest height and width; `mean` and `std` are of values in 0..1.

    Padding is to the right and below, and comes to 0 in normalised values.
    """
    sizes = [(int(image.pixels.shape[1]), int(image.pixels.shape[2])) for image in images]
    shape = (len(images), 3, *(max(side) for side in zip(*sizes, strict=True)))
    canvas = torch.zeros(shape, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    for part, image, (height, width) in zip(canvas, images, sizes, strict=True):
        part[:, :height, :width] = image.pixels
    return PixelBatch(canvas, sizes, [image.original_size for image in images], mean, std)


def normalize_and_pad(images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 images [3, h, w] as one float32 batch [B, 3, H, W]: (pixel / 255 - mean) / std, zeros around.

    In channels-last memory, which makes convolutions on a CPU much faster.
    """
    device = images[0].device
    offset = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
    factor = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)
    heights, widths = [image.shape[1] for image in images], [image.shape[2] for image in images]
    if len(set(heights)) == len(set(widths)) == 1:  # two to three times as fast, to the same bits
        stacked = torch.stack(list(images)).float().div_(255).sub_(offset).div_(factor)
        return stacked.contiguous(memory_format=torch.channels_last)
    shape = (len(images), 3, max(heights), max(widths))
    batch = torch.empty(shape, device=device, memory_format=torch.channels_last).zero_()
    for canvas, image in zip(batch, images, strict=True):
        # In place: fresh memory costs more than the arithmetic (12 ms instead of 20 for an image of 800 x 1067).
        canvas[:, : image.shape[1], : image.shape[2]].copy_(image).div_(255).sub_(offset).div_(factor)
    return batch


def resize_uint8(image: Tensor, shape: tuple[int, int], interpolation: str) -> Tensor:
    """Resize an image uint8 [3, h, w] to `shape`, by `bilinear` or `bicubic`, antialiased: every pixel is Pillow's.

    The official code resizes with Pillow, whose fixed-point arithmetic torch's resizing doesn't repeat: one grey level
    more or less in up to half a percent of the values, which moves features in the third digit. It is done on the CPU,
    so that the pixels are the same with and without a GPU. Rows come before columns, as in the Pillow of that time; a
    newer one begins with the axis that makes less work of the other, which shows where bicubic overshoots.
    """
    method, (height, width) = Image.Resampling[interpolation.upper()], shape
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    resized = picture.resize((width, picture.height), method).resize((width, height), method)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
