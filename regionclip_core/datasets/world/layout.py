"""Where objects go: without much overlap, all inside the image."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionclip_core.datasets.world.sprites import VISIBLE_ALPHA, Sprite

MAX_COVERED = 0.12
"""Largest share of the smaller of two boxes that the other may cover."""
_TRIES = 60

Box = tuple[int, int, int, int]


def place(rng: np.random.Generator, width: int, height: int, side: int, taken: list[Box]) -> Box | None:
    """A free place for a box of width x height in a square of `side` pixels, or None if none was found."""
    for _ in range(_TRIES):
        x = int(rng.integers(0, max(1, side - width + 1)))
        y = int(rng.integers(0, max(1, side - height + 1)))
        box = (x, y, x + width, y + height)
        if all(_covered(box, other) <= MAX_COVERED for other in taken):
            return box
    return None


def _covered(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / min(areas)


def compose(background: Image.Image, sprites: list[Sprite], places: list[Box]) -> Image.Image:
    """Paint the sprites over the background, in order."""
    image = background.copy()
    for sprite, box in zip(sprites, places, strict=True):
        image.paste(sprite.tile, box[:2], sprite.tile)
    return image


def visible_boxes(side: int, sprites: list[Sprite], places: list[Box]) -> npt.NDArray[np.float32]:
    """Tight boxes of what can be seen of each sprite.

    A pixel is an object's where its alpha reaches VISIBLE_ALPHA and no later object does so.

    Returns:
        float32[n, 4], xyxy pixels, right and lower edge exclusive.
    """
    owner = np.full((side, side), -1, dtype=np.int16)
    for number, (sprite, (x0, y0, x1, y1)) in enumerate(zip(sprites, places, strict=True)):
        alpha = np.asarray(sprite.tile.getchannel("A"))
        owner[y0:y1, x0:x1][alpha >= VISIBLE_ALPHA] = number
    boxes = np.zeros((len(sprites), 4), dtype=np.float32)
    for number in range(len(sprites)):
        rows, columns = np.nonzero(owner == number)
        assert rows.size, "a placed object can't be covered as a whole"
        boxes[number] = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return boxes
