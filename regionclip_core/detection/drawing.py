"""Detections drawn into their image: labelled boxes and, where there are masks, tinted areas. One colour per class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from regionclip_core.detection.inference import Detections

_PICTURE_SIDE = 512  # smaller pictures are enlarged, so that labels can be read
_TINT = 0.45  # share of the colour in a tinted pixel

Rectangle = tuple[int, int, int, int]


def draw(pixels: npt.NDArray[np.uint8], found: Detections, names: Sequence[str], score: float) -> Image.Image:
    """Draw every detection of at least `score` into the image (uint8[H, W, 3] RGB): box, label and, if any, mask.

    Higher scores come on top. Labels neither cover each other nor leave the picture; where a picture has no room left
    for a label, its box has none.
    """
    shown = [i for i in range(len(found)) if float(found.scores[i]) >= score]
    colours = {i: class_colour(int(found.labels[i])) for i in shown}
    if found.masks is not None:
        pixels, tint, covered = pixels.copy(), np.zeros_like(pixels), np.zeros(pixels.shape[:2], bool)
        for i in reversed(shown):  # one bitmap in memory at a time
            mask = coco_mask.decode({"size": list(pixels.shape[:2]), "counts": found.masks[i]}).astype(bool)
            tint[mask] = colours[i]
            covered |= mask
        pixels[covered] = np.rint((1 - _TINT) * pixels[covered] + _TINT * tint[covered]).astype(np.uint8)
    image = Image.fromarray(pixels)
    scale = max(1, round(_PICTURE_SIDE / max(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    line, letters = max(2, round(max(image.size) / 300)), max(12, round(max(image.size) / 45))
    boxes = {i: tuple(int(float(value) * scale) for value in found.boxes[i]) for i in shown}
    for i in reversed(shown):
        pen.rectangle(boxes[i], outline=colours[i], width=line)
    taken: list[Rectangle] = []
    for i in shown:  # the best choose their places first
        name, font = label_font(names[int(found.labels[i])], letters)
        text, pad = f"{name} {float(found.scores[i]):.2f}", max(2, letters // 6)
        while len(text) > 1 and font.getlength(text) + 2 * pad > image.width:
            text = f"{text[:-2]}…"
        size = (int(font.getlength(text)) + 2 * pad, sum(font.getmetrics()) + pad)
        if (place := free_place(size, boxes[i], image.size, taken)) is not None:
            taken.append(place)
            pen.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colours[i])
            is_bright = np.dot(colours[i], (0.3, 0.59, 0.11)) > 140
            pen.text((place[0] + pad, place[1] + pad // 2), text, font=font, fill="black" if is_bright else "white")
    return image


def class_colour(label: int) -> tuple[int, int, int]:
    """Return the RGB colour of a class: hues at steps of the golden ratio, so that no two classes share one."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def free_place(
    size: tuple[int, int], box: Sequence[int], picture: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle | None:
    """Return where a label of `size` has room: around its box, or else nearest to it; None if nowhere.

    All in pixels, sizes as (width, height). The place is inside the picture and overlaps no place in `taken`.
    """
    (width, height), (x0, y0, x1, y1) = size, box
    right, bottom = picture[0] - width, picture[1] - height
    corners = [(x, y) for x in (x0, x1 - width) for y in (y0 - height, y1)]
    inside = [(x0, y0), (x0, y1 - height)]
    rest = [(x, y) for y in range(0, bottom + 1, height) for x in range(0, right + 1, max(1, width // 4))]
    rest.sort(key=lambda place: abs(place[0] - x0) + abs(place[1] - y0))
    for x, y in [*corners, (x1, y0), (x0 - width, y0), *inside, *rest]:
        x, y = max(0, min(x, right)), max(0, min(y, bottom))
        if all(x >= t[2] or x + width <= t[0] or y >= t[3] or y + height <= t[1] for t in taken):
            return x, y, x + width, y + height
    return None


@cache
def label_font(name: str, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Return a class name as it can be shown, and a font that has all its letters and those of a score.

    The font is DejaVu Sans, which comes with matplotlib, or another of this machine. Where none has all letters, the
    name has those that DejaVu Sans lacks as escapes, such as \\u732b.
    """
    usual = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    letters = set(map(ord, f"{name} .…0123456789"))
    if lacking := letters - FT2Font(str(usual)).get_charmap().keys():
        # Imported where it is needed: it looks through all fonts of the machine, which takes a second.
        from matplotlib.font_manager import findSystemFonts

        for path in sorted(findSystemFonts()):
            try:
                if letters <= FT2Font(path).get_charmap().keys():
                    return name, ImageFont.truetype(path, size)
            except (OSError, RuntimeError):  # a font that can't be read, or has no outlines
                continue
        name = "".join(f"\\u{ord(letter):04x}" if ord(letter) in lacking else letter for letter in name)
    return name, ImageFont.truetype(str(usual), size)
