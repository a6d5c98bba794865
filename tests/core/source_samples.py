"""What the tests of sources have in common: tiny images, and reading all of a source."""

from __future__ import annotations

import io
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from regionclip_core.datasets.images import encode_png
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.shard_plan import open_source, plan_shards
from regionclip_core.datasets.source import Source
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.folder import Folder

VOCABULARY = Vocabulary(("cat", "dog", "kite"), ("cat",))


def picture(value: int = 0, height: int = 20, width: int = 30) -> bytes:
    return encode_png(np.full((height, width, 3), value, np.uint8))


def jpeg(height: int = 200, width: int = 300) -> bytes:
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def opened(split: Any, vocabulary: Vocabulary = VOCABULARY) -> Source:
    """The source of the split `train`, with a folder of its own for what it finds out."""
    return open_source("train", split, 0, vocabulary, Folder(f"memory://sources/{uuid4().hex}"))


def read_all(split: Any, shard_size: int = 100, vocabulary: Vocabulary = VOCABULARY) -> list[IndexRow]:
    source = opened(split, vocabulary)
    return [f for plan in plan_shards({"train": source}, shard_size) for f in source.samples(plan, None)]


def statuses(found: list[IndexRow]) -> dict[str, str]:
    assert len({row.key for row in found}) == len(found), "keys must be unique"
    return {row.key: row.status for row in found}
