"""Images as people have them, in Python: files, bytes, Pillow images, arrays, tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from regionclip_core.datasets.images import decode_image, read_image_file

ImageLike = str | Path | bytes | Image.Image | npt.NDArray[np.uint8] | Tensor
"""A path or URL, the bytes of a file, a Pillow image, uint8[H, W, 3] RGB, or a uint8 tensor [3, H, W]."""


def several_of(images: ImageLike | Sequence[ImageLike]) -> Sequence[ImageLike]:
    """Return a list of images as it is, and one image as a list of one."""
    one = isinstance(images, (str, Path, bytes, Image.Image)) or getattr(images, "ndim", 4) < 4
    return [images] if one else images  # type: ignore[list-item, return-value]


def pixels_of(image: ImageLike) -> npt.NDArray[np.uint8]:
    """Return an image as uint8[H, W, 3] RGB; files are turned upright by their EXIF orientation.

    Raises:
        ValueError: for a file that can't be read (BadImage), and for an array or tensor of another type or shape.
    """
    if isinstance(image, (str, Path)):
        return decode_image(read_image_file(str(image)))
    if isinstance(image, bytes):
        return decode_image(image)
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    pixels = np.asarray(image.cpu().permute(1, 2, 0) if isinstance(image, Tensor) and image.ndim == 3 else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"an image: expected uint8[H, W, 3] RGB or, as a tensor, uint8[3, H, W], got {pixels.dtype} of shape "
            f"{tuple(np.shape(image))}"
        )
    return pixels
