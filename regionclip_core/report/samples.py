"""A few rows of large artifacts: what the page shows of them, read without reading all of them.

Everything here is deterministic and blind to results: samples are spread evenly over the first and last shards and
all between, never chosen by how well a model does on them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import IndexRow, read_index, split_shards
from regionclip_core.report.pictures import Box
from regionclip_core.storage.records import Folder

MAX_SHARDS = 4
"""Shards of a split that are looked into."""
_CHUNK = 1 << 20
_BETWEEN_ROWS = re.compile(r"\}\s*,\s*\{")
T = TypeVar("T")


@dataclass(frozen=True)
class SampleImage:
    """An image of a split with its pixels, uint8 [H, W, 3]."""

    shard: int
    row: IndexRow
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Detection:
    """One box of a detector: xyxy pixels, row of the vocabulary, score."""

    box: Box
    label: int
    score: float


def spread(items: Sequence[T], count: int) -> list[T]:
    """`count` items (or all) at equal distances."""
    if count >= len(items):
        return list(items)
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def sample_images(
    data: Folder, split: str, count: int, preferred: Callable[[IndexRow], bool] = lambda row: True
) -> list[SampleImage]:
    """`count` readable images of a split, spread evenly over those that `preferred` names, filled up with others."""
    found = [
        (shard, row)
        for shard in spread(split_shards(data, (split,)), MAX_SHARDS)
        for row in read_index(data, shard)
        if row.ok
    ]
    first = [entry for entry in found if preferred(entry[1])]
    chosen = spread(first, count)
    if len(chosen) < count:
        others = [entry for entry in found if not preferred(entry[1])]
        chosen += spread(others, count - len(chosen))
    images = []
    with ImageReader(data) as reader:
        for shard, row in chosen:
            try:
                images.append(SampleImage(shard, row, reader.read(row)))
            except BadImage:
                continue  # later stages left it out too
    return images


def rows_by_key(folder: Folder, what: str, images: Sequence[SampleImage]) -> dict[tuple[int, str], dict[str, Any]]:
    """The rows of `<what>-<shard>.parquet` that belong to the images, by (shard, key); bad rows are left out."""
    import pyarrow.parquet as pq

    keys: dict[int, set[str]] = {}
    for image in images:
        keys.setdefault(image.shard, set()).add(image.row.key)
    found = {}
    for shard, wanted in keys.items():
        with folder.open(f"{what}-{shard:05d}.parquet") as file:
            table = pq.read_table(file)
        names = table["key"].to_pylist()
        rows = table.take([i for i, name in enumerate(names) if name in wanted]).to_pylist()
        found.update({(shard, row["key"]): row for row in rows if row["status"] == "ok"})
    return found


def read_detections(
    evaluate: Folder, detector: str, image_ids: Collection[int], min_score: float
) -> dict[int, list[Detection]]:
    """Detections of some images from `detections-<detector>.json`, best first; the file is read piece by piece."""
    found: dict[int, list[Detection]] = {image: [] for image in image_ids}
    with evaluate.open(f"detections-{detector}.json") as file:
        for row in stream_rows(file):
            if row["image_id"] in found and row["score"] >= min_score:
                x, y, w, h = row["bbox"]
                found[row["image_id"]].append(Detection((x, y, x + w, y + h), row["category_id"], row["score"]))
    return {image: sorted(rows, key=lambda d: (-d.score, d.label, d.box)) for image, rows in found.items()}


def stream_rows(file: BinaryIO, chunk: int = _CHUNK) -> Iterator[dict[str, Any]]:
    """Objects of a JSON list whose strings hold no braces, as COCO's results are; one chunk and one row in memory."""
    text = io.TextIOWrapper(file, "utf-8")
    rest = ""
    while part := text.read(chunk):
        rest += part
        # Two rows meet only here: an object in a row is followed by another brace, or by a key.
        end = max((found.start() + 1 for found in _BETWEEN_ROWS.finditer(rest)), default=0)
        if end:
            yield from json.loads("[" + rest[:end].lstrip(" \n\r\t,[") + "]")
            rest = rest[end:]
    last = rest.strip(" \n\r\t,")
    try:
        yield from json.loads("[" + last.removeprefix("[").removesuffix("]") + "]")
        if not last.endswith("]"):
            raise ValueError("the list has no end")
    except ValueError as error:
        raise ValueError(
            f"detections end in the middle of a row: {rest[-80:]!r} ({error}); run the evaluate stage again"
        ) from error
