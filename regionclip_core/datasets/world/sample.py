"""One image of the world with its captions and boxes: objects without much overlap, all inside the image."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from regionclip_core.datasets.world.backgrounds import Background, draw_background
from regionclip_core.datasets.world.captions import Thing, write_captions
from regionclip_core.datasets.world.categories import CATEGORIES, Category
from regionclip_core.datasets.world.sprites import VISIBLE_ALPHA, Sprite, draw_sprite
from regionclip_core.datasets.world.version import WORLD_VERSION

_CLOSEUP_COUNTS = (1, 2, 3)
_CLOSEUP_SHARES = (0.60, 0.25, 0.15)
_CLOSEUP_SIZES = {1: (0.40, 0.85), 2: (0.34, 0.52), 3: (0.28, 0.42)}
_REPEAT = 0.18
"""Chance that an object is of the same category as the one before it."""
MAX_COVERED = 0.12
"""Largest share of the smaller of two boxes that the other may cover."""
_TRIES = 60

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class WorldSample:
    """An image, its captions and its boxes."""

    image: npt.NDArray[np.uint8]
    """uint8[H, W, 3], RGB."""
    captions: list[str]
    boxes: npt.NDArray[np.float32]
    """float32[n, 4], xyxy pixels around what can be seen of each object, right and lower edge exclusive."""
    labels: list[str]
    """n category names."""
    colours: list[str]
    """n names of the objects' main colours, keys of `palette.NAMED`."""


@dataclass(frozen=True)
class Arrangement:
    """The parts of an image."""

    background: Background
    sprites: list[Sprite]
    """In painting order."""
    places: list[Box]
    """Where each sprite's tile goes, pixels."""


def make_sample(
    kind: Literal["closeup", "scene"],
    seed: int,
    stream: str,
    index: int,
    image_size: int,
    objects: tuple[int, int] = (3, 7),
    object_size: tuple[float, float] = (0.11, 0.24),
) -> WorldSample:
    """Draw image number `index` of a stream of images.

    The same arguments give the same bytes on every machine (test_world.py has the hashes). Only its name makes a stream
    differ from another: give close-ups and scenes streams of different names.

    Args:
        kind: `closeup` (one to three large objects) or `scene` (several small ones).
        seed: seed of the run, not negative.
        stream: name of the stream, such as the split; streams with different names are independent.
        index: number of the image in the stream, not negative.
        image_size: side of the square image, pixels.
        objects: scenes only, fewest and most objects. A crowded scene has as many as fit without overlap.
        object_size: scenes only, smallest and largest longer side of an object, as a share of the image's side.

    The configuration (WorldSplit, config/checks.py) checks the ranges of the arguments.
    """
    rng = sample_generator(seed, stream, index)
    parts = arrange(rng, kind, image_size, objects, object_size)
    image = np.array(compose(parts.background.image, parts.sprites, parts.places), dtype=np.uint8)
    boxes = visible_boxes(image_size, parts.sprites, parts.places)
    things = [
        Thing(sprite.category, sprite.colour, box, image_size)
        for sprite, box in zip(parts.sprites, parts.places, strict=True)
    ]
    captions = write_captions(rng, kind, things, parts.background)
    labels, colours = [s.category.name for s in parts.sprites], [s.colour for s in parts.sprites]
    return WorldSample(image, captions, boxes, labels, colours)


def sample_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """Return the generator of one image's random numbers."""
    entropy = [WORLD_VERSION, seed, zlib.crc32(stream.encode()), index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def arrange(
    rng: np.random.Generator, kind: str, image_size: int, objects: tuple[int, int], object_size: tuple[float, float]
) -> Arrangement:
    """Draw a background and objects and find their places; see make_sample for the arguments."""
    background = draw_background(rng, image_size)
    if kind == "closeup":
        count = int(rng.choice(_CLOSEUP_COUNTS, p=_CLOSEUP_SHARES))
        sizes = _CLOSEUP_SIZES[count]
    else:
        count = int(rng.integers(objects[0], objects[1] + 1))
        sizes = object_size
    picked: list[Category] = []
    for _ in range(count):  # uniformly, now and then the same one twice
        if picked and rng.random() < _REPEAT:
            picked.append(picked[-1])
        else:
            picked.append(CATEGORIES[int(rng.integers(len(CATEGORIES)))])
    sprites: list[Sprite] = []
    places: list[Box] = []
    for category in picked:
        share = rng.uniform(*sizes)
        for smaller in (1.0, 0.5, 0.0):  # where there is no room, smaller, and then not at all
            side = (sizes[0] + (share - sizes[0]) * smaller) * image_size
            sprite = draw_sprite(rng, category, side, background.tones)
            box = place(rng, *sprite.tile.size, image_size, places)
            if box is not None:
                sprites.append(sprite)
                places.append(box)
                break
    return Arrangement(background, sprites, places)


def place(rng: np.random.Generator, width: int, height: int, side: int, taken: list[Box]) -> Box | None:
    """Return a free place for a box of width x height in a square of `side` pixels; None if none was found."""
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
    """Return the background with the sprites painted over it, in order."""
    image = background.copy()
    for sprite, box in zip(sprites, places, strict=True):
        image.paste(sprite.tile, box[:2], sprite.tile)
    return image


def visible_boxes(side: int, sprites: list[Sprite], places: list[Box]) -> npt.NDArray[np.float32]:
    """Return the tight box of what can be seen of each sprite.

    A pixel belongs to the last object whose alpha reaches VISIBLE_ALPHA there.

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
