"""Which images look like photographs: the world's never, COCO's mostly."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from places import TINY_COCO
from small_artifacts import tiny_config

from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.detection.drawings import knows_drawings_only, looks_like_a_photograph


def as_jpeg(pixels: np.ndarray, scale: float) -> np.ndarray:
    picture, file = Image.fromarray(pixels), io.BytesIO()
    picture.resize((round(picture.width * scale), round(picture.height * scale))).save(file, "JPEG", quality=85)
    return np.asarray(Image.open(file))


def test_the_worlds_drawings_do_not() -> None:
    drawn = [make_sample(kind, 3, "val", number, 128).image for kind in ("scene", "object") for number in range(8)]
    drawn += [as_jpeg(image, scale) for image in drawn for scale in (0.6, 2.5)]
    assert not [number for number, image in enumerate(drawn) if looks_like_a_photograph(image)]


def test_photographs_mostly_do() -> None:
    files = sorted((TINY_COCO / "val2017").glob("*.jpg"))
    if not files:
        pytest.skip("no small folder of COCO here")
    looks = [looks_like_a_photograph(np.asarray(Image.open(file).convert("RGB"))) for file in files]
    assert len(looks) >= 20 and np.mean(looks) > 0.8


def test_many_even_colours_do_and_few_do_not() -> None:
    """By hand: 16 of 32 colours of one size cover half of the image, 16 of 20 cover 80 %."""
    stripes = np.repeat(np.arange(96)[:, None], 96, 1)

    def of(colours: int) -> np.ndarray:
        number = stripes * colours // 96
        return np.stack((number % 16 * 16, number // 16 * 16, number * 0), 2).astype(np.uint8)

    assert looks_like_a_photograph(of(32)) and not looks_like_a_photograph(of(20))


def test_what_a_config_says_of_its_models() -> None:
    world = tiny_config(teacher={"weights": "train", "training": {"splits": ["train"]}})
    assert all(knows_drawings_only(world, kind) for kind in ("teacher", "student", "detector"))
    other = tiny_config(finetune={"weights": "somewhere"}, teacher={"weights": "openai", "model": "RN50"})
    assert [knows_drawings_only(other, kind) for kind in ("teacher", "student", "detector")] == [False, True, False]
