"""Pictures with boxes as inline SVG: each image is embedded once, and every view of it refers to that copy.

Boxes are xyxy in pixels of the original image. Lines and letters are vectors, so that 128-pixel images stay readable
when they are shown large.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionclip_core.report.markup import escape

Box = tuple[float, float, float, float]
Kind = Literal["base", "novel", "plain"]

MAX_SIDE = 512
"""Longer side of an embedded image, pixels; larger ones are reduced."""
LOSSLESS_SIDE = 192
"""Images up to this side are embedded as PNG, larger ones as JPEG."""
JPEG_QUALITY = 85
_LETTER = 6.5  # average advance of a character at font size 11
_TAG = 15.0  # height of a label


@dataclass(frozen=True)
class Picture:
    """An embedded image: how to refer to it, and its original size in pixels."""

    ref: str
    width: int
    height: int


@dataclass(frozen=True)
class Drawn:
    """A box to draw."""

    box: Box
    text: str = ""
    kind: Kind = "plain"
    dashed: bool = False
    hint: str = ""
    """Shown when the pointer rests on the box."""


class PictureBook:
    """Embeds images, each key once."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture] = {}
        self._data: list[str] = []

    def add(self, key: str, image: npt.NDArray[np.uint8]) -> Picture:
        """Embed uint8 [H, W, 3] under `key`, or find it again."""
        if key not in self._pictures:
            height, width = image.shape[:2]
            picture = Picture(f"image-{len(self._data)}", width, height)
            self._pictures[key] = picture
            self._data.append(
                f'<image id="{picture.ref}" width="{width}" height="{height}" preserveAspectRatio="none" '
                f'href="{data_url(image)}"/>'
            )
        return self._pictures[key]

    def definitions(self) -> str:
        """The images themselves: once in the page, anywhere in its body."""
        inner = "\n".join(self._data)
        return f'<svg width="0" height="0" class="hidden" aria-hidden="true"><defs>\n{inner}\n</defs></svg>'


def data_url(image: npt.NDArray[np.uint8]) -> str:
    """A reduced copy of uint8 [H, W, 3] as `data:image/...;base64,...`."""
    picture = Image.fromarray(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind = "png" if max(picture.size) <= LOSSLESS_SIDE else "jpeg"
    if kind == "png":
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def draw(picture: Picture, boxes: Sequence[Drawn], title: str, width: float = 360.0) -> str:
    """The whole picture, `width` units wide, with boxes; the first box is drawn last, on top."""
    scale = width / picture.width
    height = picture.height * scale
    shapes = [_outline(box, scale) for box in reversed(boxes)]
    taken: list[Box] = []
    tags = [_tag(box, scale, (width, height), taken) for box in boxes if box.text]
    inner = f'<use href="#{picture.ref}" transform="scale({_n(scale)})"/>' + "".join([*shapes, *reversed(tags)])
    return _svg(inner, (0, 0, width, height), title)


def crop(picture: Picture, box: Box, title: str, context: float = 1.0) -> str:
    """A square view of side `context` times the longer side of `box`, around its centre."""
    x0, y0, x1, y1 = box
    side = max(x1 - x0, y1 - y0, 1.0) * context
    view = ((x0 + x1 - side) / 2, (y0 + y1 - side) / 2, side, side)
    return _svg(f'<use href="#{picture.ref}"/>', view, title)


def _svg(inner: str, view: Sequence[float], title: str) -> str:
    numbers = " ".join(_n(v) for v in view)
    return f'<svg class="picture" viewBox="{numbers}" role="img" aria-label="{escape(title)}">{inner}</svg>'


def _outline(drawn: Drawn, scale: float) -> str:
    x0, y0, x1, y1 = (value * scale for value in drawn.box)
    style = f"box {drawn.kind}" + (" dashed" if drawn.dashed else "")
    hint = f"<title>{escape(drawn.hint)}</title>" if drawn.hint else ""
    place = f'x="{_n(x0)}" y="{_n(y0)}" width="{_n(x1 - x0)}" height="{_n(y1 - y0)}"'
    # A light line below keeps the box visible on a ground of its own colour.
    return f'<rect class="halo" {place}/><rect class="{style}" {place}>{hint}</rect>'


def _tag(drawn: Drawn, scale: float, size: tuple[float, float], taken: list[Box]) -> str:
    """A label at the first free place around its box; `taken` gains that place."""
    x0, y0, x1, y1 = (value * scale for value in drawn.box)
    width = len(drawn.text) * _LETTER + 6
    places = [
        (x0, y0 - _TAG),
        (x0, y1),
        (x1 - width, y0 - _TAG),
        (x1 - width, y1),
        (x1, y0),
        (x0 - width, y0),
        (x0, y0),
        (x0, y1 - _TAG),
    ]
    inside = [
        (min(max(x, 0.0), max(size[0] - width, 0.0)), min(max(y, 0.0), max(size[1] - _TAG, 0.0))) for x, y in places
    ]
    spots = [(x, y, x + width, y + _TAG) for x, y in inside]
    spot = next((s for s in spots if not any(_touch(s, t) for t in taken)), spots[0])
    taken.append(spot)
    rect = f'<rect x="{_n(spot[0])}" y="{_n(spot[1])}" width="{_n(width)}" height="{_n(_TAG)}" rx="2"/>'
    text = f'<text x="{_n(spot[0] + width / 2)}" y="{_n(spot[1] + 11)}">{escape(drawn.text)}</text>'
    return f'<g class="tag {drawn.kind}">{rect}{text}</g>'


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _n(value: float) -> str:
    """At most two decimals, without trailing zeros."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text
