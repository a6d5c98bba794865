"""One object as an anti-aliased RGBA tile.

The polygons are transformed with a matrix of rounded numbers, rounded to whole supersampled pixels, filled on a tile
and averaged down. Only multiplications, additions and integer work come after the rounding, so the
pixels are the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from regionclip_core.datasets.world.categories import Category, icon_polygons
from regionclip_core.datasets.world.drawing import Points
from regionclip_core.datasets.world.palette import NAMED, Colour, distance, role_colours, vary

_MATRIX_GRID = 4096.0
_AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (0.7, -0.7), (-0.7, 0.7), (-0.7, -0.7))


@dataclass(frozen=True)
class Pose:
    """How an object is turned and stretched: a 2 x 2 matrix (a b; c d), applied to icon units."""

    a: float
    b: float
    c: float
    d: float


@dataclass(frozen=True)
class Sprite:
    """A drawn object."""

    category: Category
    colour: str
    """Name of its main colour."""
    tile: Image.Image
    """RGBA, cut to the object's pixels."""


def random_pose(rng: np.random.Generator) -> Pose:
    """Return a pose: rotation up to 20 degrees, aspect 0.8 to 1.25, a little shear, mirrored every second time."""
    angle = math.radians(rng.uniform(-20, 20))
    aspect = math.sqrt(2.0 ** rng.uniform(-0.32, 0.32))
    shear = rng.uniform(-0.12, 0.12)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(angle), math.sin(angle)
    width, height = flip * aspect, 1 / aspect
    values = (cos * width, (cos * shear - sin) * height, sin * width, (sin * shear + cos) * height)
    a, b, c, d = (math.floor(value * _MATRIX_GRID + 0.5) / _MATRIX_GRID for value in values)
    return Pose(a, b, c, d)


def draw_sprite(rng: np.random.Generator, category: Category, side: float, backdrop: tuple[Colour, ...]) -> Sprite:
    """Draw an object in a random pose and colour; the longer side of its tile is `side` pixels, within one.

    The colour differs from those of the background (`backdrop`) if the category has such a colour. Otherwise the object
    gets an outline; two in five of the other objects get one too.
    """
    names = [name for name in category.colours if min(distance(NAMED[name], tone) for tone in backdrop) > 130]
    hidden = not names
    names = names or list(category.colours)
    colour = names[int(rng.integers(len(names)))]
    main = vary(rng, NAMED[colour])
    others = [c for name, c in NAMED.items() if distance(c, main) > 150]
    second = vary(rng, others[int(rng.integers(len(others)))])
    outlined = bool(rng.random() < 0.4) or hidden
    dark = sum(backdrop[0]) < 330
    outline: Colour | None = None
    if outlined:
        light = dark or (rng.random() < 0.2 and not hidden)
        outline = (250, 250, 246) if light else (30, 30, 36)
    roles, polygons = icon_polygons(category)
    tile = rasterise(roles, polygons, random_pose(rng), side, role_colours(rng, main, second), outline)
    return Sprite(category, colour, tile)


def rasterise(
    roles: tuple[str, ...],
    polygons: tuple[Points, ...],
    pose: Pose,
    side: float,
    colours: dict[str, Colour],
    outline: Colour | None,
) -> Image.Image:
    """Paint polygons into an RGBA tile whose longer side is `side` pixels, within one.

    Polygons are float64[n, 2] in icon units. With an outline, the whole silhouette gets a border of about 2.5% of the
    side, at least three quarters of a pixel.
    """
    factor = 4 if side <= 160 else 2
    canvas = side * factor
    border = max(0.025 * canvas, 0.75 * factor) if outline is not None else 0.0
    points = np.concatenate(polygons)
    x = points[:, 0] * pose.a + points[:, 1] * pose.b
    y = points[:, 0] * pose.c + points[:, 1] * pose.d
    left, top = float(x.min()), float(y.min())
    extent = max(float(x.max()) - left, float(y.max()) - top)
    scale = (canvas - 2 * border) / extent
    x = np.floor((x - left) * scale + border + 0.5)
    y = np.floor((y - top) * scale + border + 0.5)
    width = (int(x.max() + border) // factor + 1) * factor
    height = (int(y.max() + border) // factor + 1) * factor
    corners = np.stack([x, y], axis=1)
    ends = np.cumsum([points.size for points in polygons]).tolist()
    parts = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    tile = Image.new("RGBA", (width, height))
    pen = ImageDraw.Draw(tile)
    if outline is not None:
        for dx, dy in _AROUND:
            moved = (corners + np.floor(np.array([dx, dy]) * border + 0.5)).ravel().tolist()
            for part in parts:
                pen.polygon(moved[part], fill=(*outline, 255))
    xy = corners.ravel().tolist()
    for role, part in zip(roles, parts, strict=True):
        pen.polygon(xy[part], fill=(*colours[role], 255))
    small = tile.reduce(factor)
    box = small.getchannel("A").point(_VISIBLE).getbbox()
    assert box is not None
    return small.crop(box)


VISIBLE_ALPHA = 48
"""Lowest alpha (of 255) at which a pixel of a tile belongs to the object."""
_VISIBLE = [255 if alpha >= VISIBLE_ALPHA else 0 for alpha in range(256)]
