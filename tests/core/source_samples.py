"""What the tests of sources have in common: tiny images, and reading all of a source."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from regionclip_core.datasets.images import encode_png
from regionclip_core.datasets.source import Found
from regionclip_core.datasets.sources import open_source, plan_shards
from regionclip_core.datasets.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("cat", "dog", "kite"), ("cat",))


def picture(value: int = 0, height: int = 20, width: int = 30) -> bytes:
    return encode_png(np.full((height, width, 3), value, np.uint8))


def jpeg(height: int = 200, width: int = 300) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def read_all(split: object, shard_size: int = 100) -> list[Found]:
    sources = {"train": open_source("train", split, 0, VOCABULARY)}
    return [f for plan in plan_shards(sources, shard_size) for f in sources["train"].samples(plan, None)]


def statuses(found: list[Found]) -> dict[str, str]:
    assert len({f.row.key for f in found}) == len(found), "keys must be unique"
    return {f.row.key: f.row.status for f in found}
