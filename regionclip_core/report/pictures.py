"""Views of images with boxes, as the page's SVG macros draw them: geometry here, markup in templates/drawing.html.

Each image is embedded once, and every view of it refers to that copy. Lines and letters are vectors, so that images of
128 pixels stay readable when they are shown large. Boxes are xyxy, in pixels of the original image unless said
otherwise.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.report.samples import Box, Sample, kind_of

MAX_SIDE = 512
"""Longer side of an embedded image, pixels; larger ones are reduced."""
LOSSLESS_SIDE = 192
"""Images up to this side are embedded as PNG, larger ones as JPEG."""
JPEG_QUALITY = 85
WIDTH = 360.0
"""Width of a whole picture, SVG units."""
_LETTER = 6.5  # average advance of a character at font size 11, SVG units
_TAG = 15.0  # height of a label, SVG units


@dataclass(frozen=True)
class Picture:
    """An embedded image: the id that views refer to, its original size in pixels, and its data URL."""

    id: str
    width: int
    height: int
    url: str


@dataclass(frozen=True)
class Drawn:
    """A box to draw."""

    box: Box
    text: str = ""
    kind: str = "plain"
    """CSS class: `base`, `novel` or `plain`."""
    dashed: bool = False
    hint: str = ""
    """Shown when the pointer rests on the box."""
    tag: Box | None = None
    """Where the text goes, SVG units; `whole` finds the place."""


@dataclass(frozen=True)
class View:
    """A picture, or a part of it, with boxes."""

    picture: Picture
    title: str
    """For readers who can't see the picture."""
    window: Box
    """The visible part: x, y, width, height in SVG units."""
    scale: float = 1.0
    """SVG units per pixel."""
    boxes: tuple[Drawn, ...] = ()
    """In SVG units, the lowest first."""


class PictureBook:
    """The embedded images of a page."""

    def __init__(self) -> None:
        self._pictures: dict[tuple[str, str], Picture] = {}

    @property
    def pictures(self) -> list[Picture]:
        """The embedded images, in the order in which they were first shown."""
        return list(self._pictures.values())

    def whole(self, sample: Sample, boxes: Sequence[Drawn], title: str) -> View:
        """Return a view of the whole image, WIDTH wide; the first box is on top."""
        picture = self._embed(sample)
        scale = WIDTH / picture.width
        height = picture.height * scale
        scaled: list[Drawn] = []
        for drawn in boxes:
            x0, y0, x1, y1 = (value * scale for value in drawn.box)
            tag = None
            if drawn.text:
                width = len(drawn.text) * _LETTER + 6
                # Above, below, right, left of the box, or inside it: the place that covers least of earlier labels.
                corners = [
                    *((x0, y0 - _TAG), (x0, y1), (x1 - width, y0 - _TAG), (x1 - width, y1)),
                    *((x1, y0), (x0 - width, y0), (x0, y0), (x0, y1 - _TAG)),
                ]
                inside = [
                    (min(max(x, 0.0), max(WIDTH - width, 0.0)), min(max(y, 0.0), max(height - _TAG, 0.0)))
                    for x, y in corners
                ]
                places = [(x, y, x + width, y + _TAG) for x, y in inside]
                tag = min(places, key=lambda place: sum(_shared(place, other.tag) for other in scaled if other.tag))
            scaled.append(replace(drawn, box=(x0, y0, x1, y1), tag=tag))
        return View(picture, title, (0.0, 0.0, WIDTH, height), scale, tuple(reversed(scaled)))

    def crop(self, sample: Sample, box: Box, context: float, title: str) -> View:
        """Return a square view around the centre of `box`, `context` times its longer side wide."""
        x0, y0, x1, y1 = box
        side = max(x1 - x0, y1 - y0, 1.0) * context
        return View(self._embed(sample), title, ((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side))

    def _embed(self, sample: Sample) -> Picture:
        key = sample.split, sample.row.key
        if key not in self._pictures:
            height, width = sample.pixels.shape[:2]
            self._pictures[key] = Picture(f"image-{len(self._pictures)}", width, height, data_url(sample.pixels))
        return self._pictures[key]


def true_boxes(sample: Sample, vocabulary: Vocabulary, text: bool = True) -> list[Drawn]:
    """Return the annotated objects, to be drawn in the colour of their kind."""
    named = [(box, vocabulary.names[label]) for box, label in sample.objects]
    return [Drawn(box, n if text else "", kind_of(n, vocabulary), hint=n) for box, n in named]


def data_url(image: npt.NDArray[np.uint8]) -> str:
    """Return a copy of uint8 [H, W, 3], at most MAX_SIDE wide and high, as `data:image/...;base64,...`."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    kind = "png" if max(picture.size) <= LOSSLESS_SIDE else "jpeg"
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": JPEG_QUALITY}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _shared(a: Box, b: Box) -> float:
    """Return the area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0.0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
