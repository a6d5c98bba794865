"""Backgrounds of four kinds, with clutter, and the words that describe them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from regionclip_core.datasets.world.palette import NAMED, Colour, distance, mix, vary

KINDS = ("plain", "gradient", "horizon", "pattern")
PATTERNS = ("striped", "checkered", "dotted", "speckled")
_FACTOR = 2


@dataclass(frozen=True)
class Background:
    """A drawn background."""

    image: Image.Image
    """RGB."""
    kind: str
    """One of KINDS."""
    pattern: str
    """One of PATTERNS where the kind is `pattern`, else empty."""
    tones: tuple[Colour, ...]
    """Its two colours, the main one first."""
    colour: str
    """Name of the main colour, key of palette.NAMED."""


def draw_background(rng: np.random.Generator, side: int) -> Background:
    """Draw a square background of `side` pixels."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    names = list(NAMED)
    colour = names[int(rng.integers(len(names)))]
    tone = _soften(rng, colour)
    other = _soften(rng, names[int(rng.integers(len(names)))])
    full = side * _FACTOR
    second = mix(tone, other, {"plain": 0, "gradient": 60, "horizon": 60, "pattern": 30}[kind])
    if kind == "horizon" and distance(tone, second) < 60:
        second = mix(second, (40, 40, 50) if sum(tone) > 380 else (250, 250, 250), 30)
    canvas = Image.new("RGB", (full, full), tone)
    if kind == "gradient":
        steps = np.arange(full, dtype=np.int64)
        dx, dy = ((1, 0), (0, 1), (0, -1), (1, 1), (1, -1))[int(rng.integers(5))]
        ramp = steps[None, :] * dx + steps[:, None] * dy
        ramp = (ramp - ramp.min()) * 1024 // int(ramp.max() - ramp.min())
        pixels = [(1024 - ramp) * a + ramp * b for a, b in zip(tone, second, strict=True)]
        canvas = Image.fromarray((np.stack(pixels, axis=2) // 1024).astype(np.uint8))
    pen = ImageDraw.Draw(canvas)
    pattern = ""
    if kind == "horizon":
        height = int(full * rng.uniform(0.45, 0.8))
        pen.rectangle((0, height, full, full), fill=second)
    elif kind == "pattern":
        pattern = PATTERNS[int(rng.integers(len(PATTERNS)))]
        _draw_pattern(rng, pen, pattern, full, second)
    _draw_clutter(rng, pen, full, tone)
    return Background(canvas.reduce(_FACTOR), kind, pattern, (tone, second), colour)


def _soften(rng: np.random.Generator, colour: str) -> Colour:
    """Return a paler kind of the named colour, sometimes a deeper one; objects have the full colours."""
    base = vary(rng, NAMED[colour])
    if colour in ("black", "white", "gray"):
        return base
    if rng.random() < 0.2:
        return mix(base, (30, 30, 44), int(rng.integers(40, 60)))
    return mix(base, (255, 255, 255), int(rng.integers(50, 78)))


def _draw_pattern(rng: np.random.Generator, pen: ImageDraw.ImageDraw, pattern: str, full: int, ink: Colour) -> None:
    cell = int(full * rng.uniform(0.07, 0.17))
    start = -int(rng.integers(cell))
    if pattern == "striped":
        slope = (0, full, full // 2)[int(rng.integers(3))]
        upright = rng.random() < 0.5
        for at in range(start - slope, full + slope, 2 * cell):
            stripe = [(at, 0), (at + cell, 0), (at + cell + slope, full), (at + slope, full)]
            pen.polygon([(y, x) for x, y in stripe] if upright else stripe, fill=ink)
    elif pattern == "checkered":
        for row, y in enumerate(range(start, full, cell)):
            for x in range(start + (row % 2) * cell, full, 2 * cell):
                pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=ink)
    elif pattern == "dotted":
        radius = max(2, cell // 4)
        for row, y in enumerate(range(start, full + cell, cell)):
            for x in range(start + (row % 2) * (cell // 2), full + cell, cell):
                pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)
    else:
        spots = rng.integers(0, full, size=(90, 2)).tolist()
        for x, y in spots:
            pen.ellipse((x, y, x + full // 60 + 1, y + full // 60 + 1), fill=ink)


def _draw_clutter(rng: np.random.Generator, pen: ImageDraw.ImageDraw, full: int, tone: Colour) -> None:
    """Draw two to ten meaningless strokes, blobs and corners, mostly faint."""
    names = list(NAMED)
    for _ in range(int(rng.integers(2, 11))):
        ink = mix(tone, NAMED[names[int(rng.integers(len(names)))]], int(rng.integers(25, 75)))
        x, y = (int(v) for v in rng.integers(0, full, size=2))
        reach = int(full * rng.uniform(0.02, 0.1))
        ends = rng.integers(-reach, reach + 1, size=(3, 2)).tolist()
        shape = int(rng.integers(3))
        if shape == 0:
            pen.line((x, y, x + 2 * ends[0][0], y + 2 * ends[0][1]), fill=ink, width=max(1, full // 80))
        elif shape == 1:
            radius = max(2, reach // 2)
            pen.ellipse((x - radius, y - radius // 2, x + radius, y + radius // 2), fill=ink)
        else:
            pen.polygon([(x + dx, y + dy) for dx, dy in ends], fill=ink)
