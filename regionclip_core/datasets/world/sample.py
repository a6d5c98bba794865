"""One image of the world with its captions and boxes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from regionclip_core.datasets.world.backgrounds import Background, draw_background
from regionclip_core.datasets.world.captions import Thing, write_captions
from regionclip_core.datasets.world.categories import CATEGORIES, Category
from regionclip_core.datasets.world.layout import Box, compose, place, visible_boxes
from regionclip_core.datasets.world.sprites import Sprite, draw_sprite
from regionclip_core.datasets.world.version import WORLD_VERSION

_CLOSEUP_COUNTS = (1, 2, 3)
_CLOSEUP_SHARES = (0.60, 0.25, 0.15)
_CLOSEUP_SIZES = {1: (0.40, 0.85), 2: (0.34, 0.52), 3: (0.28, 0.42)}
_REPEAT = 0.18
"""Chance that an object is of the same category as the one before it."""


@dataclass(frozen=True)
class WorldSample:
    """An image and what is known of it."""

    image: npt.NDArray[np.uint8]
    """uint8[H, W, 3], RGB."""
    captions: list[str]
    boxes: npt.NDArray[np.float32]
    """float32[n, 4], xyxy pixels around what can be seen of each object, right and lower edge exclusive."""
    labels: list[str]
    """n category names."""


@dataclass(frozen=True)
class Arrangement:
    """What an image is put together from."""

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

    The same arguments give the same bytes on every machine (tests/core/test_world.py holds the hashes). The stream's
    name, not the kind, tells streams apart: give close-ups and scenes streams of different names.

    Args:
        kind: `closeup`, one to three large objects, or `scene`, several small ones.
        seed: seed of the run, not negative.
        stream: name of the stream, such as the split; streams with different names are independent.
        index: number of the image in the stream, not negative.
        image_size: side of the square image, pixels.
        objects: scenes only, fewest and most objects. A crowded scene holds as many as fit without overlap.
        object_size: scenes only, smallest and largest longer side of an object, as a share of the image's side.

    Raises:
        ValueError: an argument is out of range; the message says which.
    """
    _check(kind, seed, index, image_size, objects, object_size)
    rng = sample_generator(seed, stream, index)
    parts = arrange(rng, kind, image_size, objects, object_size)
    image = np.array(compose(parts.background.image, parts.sprites, parts.places), dtype=np.uint8)
    boxes = visible_boxes(image_size, parts.sprites, parts.places)
    things = [
        Thing(sprite.category, sprite.colour, box, image_size)
        for sprite, box in zip(parts.sprites, parts.places, strict=True)
    ]
    captions = write_captions(rng, kind, things, parts.background)
    return WorldSample(image, captions, boxes, [sprite.category.name for sprite in parts.sprites])


def sample_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random numbers of one image."""
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
    sprites: list[Sprite] = []
    places: list[Box] = []
    for category in _pick_categories(rng, count):
        share = rng.uniform(*sizes)
        for smaller in (1.0, 0.5, 0.0):
            side = (sizes[0] + (share - sizes[0]) * smaller) * image_size
            sprite = draw_sprite(rng, category, side, background.tones)
            box = place(rng, *sprite.size, image_size, places)
            if box is not None:
                sprites.append(sprite)
                places.append(box)
                break
    return Arrangement(background, sprites, places)


def _pick_categories(rng: np.random.Generator, count: int) -> list[Category]:
    """Categories drawn uniformly, now and then the same one twice."""
    picked: list[Category] = []
    for _ in range(count):
        if picked and rng.random() < _REPEAT:
            picked.append(picked[-1])
        else:
            picked.append(CATEGORIES[int(rng.integers(len(CATEGORIES)))])
    return picked


def _check(
    kind: str, seed: int, index: int, image_size: int, objects: tuple[int, int], object_size: tuple[float, float]
) -> None:
    if kind not in ("closeup", "scene"):
        raise ValueError(f"make_sample: kind must be 'closeup' or 'scene', got {kind!r}")
    if seed < 0 or index < 0:
        raise ValueError(f"make_sample: seed and index must not be negative, got seed={seed}, index={index}")
    if image_size < 32:
        raise ValueError(f"make_sample: image_size must be at least 32 pixels, got {image_size}")
    if kind == "closeup":  # has its own numbers and sizes
        return
    if not 1 <= objects[0] <= objects[1]:
        raise ValueError(f"make_sample: objects must be (fewest, most) with 1 <= fewest <= most, got {objects}")
    if not 0 < object_size[0] <= object_size[1] <= 0.9 or object_size[0] * image_size < 8:
        raise ValueError(
            f"make_sample: object_size must be (smallest, largest) shares of the side, up to 0.9 and at least 8 "
            f"pixels, got {object_size} with image_size={image_size}"
        )
