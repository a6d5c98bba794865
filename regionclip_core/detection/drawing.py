"""Detections drawn into their image: labelled boxes and, where there are masks, tinted areas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from regionclip_core.detection.inference import Detections

_PICTURE_SIDE = 512  # smaller pictures are enlarged, so that labels can be read
_OUTLINE = (220, 30, 60)
_TINT = 0.45  # share of the colour in a tinted pixel
_COLOURS = ((60, 130, 230), (40, 180, 90), (240, 160, 30), (170, 80, 210), (30, 190, 200), (230, 110, 160))


def draw(pixels: npt.NDArray[np.uint8], found: Detections, names: Sequence[str], score: float) -> Image.Image:
    """The image (uint8[H, W, 3] RGB) with a labelled box, and its mask, for every detection of at least `score`.

    Masks are tinted by category, the best detection's last.
    """
    shown = [i for i in range(len(found)) if float(found.scores[i]) >= score]
    image = Image.fromarray(_tinted(pixels, found, shown))
    scale = max(1, round(_PICTURE_SIDE / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    for i in reversed(shown):  # the best on top
        x0, y0, x1, y1 = (float(v) * scale for v in found.boxes[i])
        label = f"{names[int(found.labels[i])]} {float(found.scores[i]):.2f}"
        pen.rectangle((x0, y0, x1, y1), outline=_OUTLINE, width=2)
        left, top, right, bottom = pen.textbbox((x0 + 2, max(0.0, y0 - 13)), label)
        pen.rectangle((left - 2, top - 1, right + 2, bottom + 1), fill=_OUTLINE)
        pen.text((x0 + 2, max(0.0, y0 - 13)), label, fill=(255, 255, 255))
    return image


def _tinted(pixels: npt.NDArray[np.uint8], found: Detections, shown: Sequence[int]) -> npt.NDArray[np.uint8]:
    if found.masks is None:
        return pixels
    colour = np.zeros_like(pixels)
    covered = np.zeros(pixels.shape[:2], bool)
    for i in reversed(shown):
        mask = read_mask(found.masks[i], (pixels.shape[0], pixels.shape[1]))
        colour[mask] = _COLOURS[int(found.labels[i]) % len(_COLOURS)]
        covered |= mask
    tinted = pixels.copy()
    tinted[covered] = np.rint((1 - _TINT) * pixels[covered] + _TINT * colour[covered]).astype(np.uint8)
    return tinted


def read_mask(counts: bytes, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """bool[H, W] of COCO's compressed run lengths."""
    from pycocotools import mask as coco_mask

    found: npt.NDArray[np.bool_] = coco_mask.decode({"size": list(size), "counts": counts}).astype(bool)
    return found
