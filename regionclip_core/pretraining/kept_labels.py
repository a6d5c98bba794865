"""Finished labels, read back by name: counts per concept, the best regions of one, and all that is kept by image.

R regions of one image, C concepts. Boxes are xyxy pixels in the original image.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.config.nearest import nearest_hint
from regionclip_core.datasets.images import EXTENSIONS
from regionclip_core.datasets.index import IndexRow, read_index, require_same_images, split_ragged, split_shards
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import POOL_NAMES

BINS = 10
"""Of the histogram of scores, from 0 to 1."""
_NAME_LENGTH = 60  # letters of a key in the name of its image: a file system takes 255 bytes
_COLUMNS = ("key", "boxes", "concept_id", "score", "kept")


@dataclass(frozen=True)
class LabelCounts:
    """What is in the labels of some shards."""

    names: Sequence[str]
    """The pool."""
    kept_C: npt.NDArray[np.int64]
    """Kept labels per concept."""
    score_C: npt.NDArray[np.float64]
    """Sum of their scores."""
    by_score: npt.NDArray[np.int64]
    """[2, BINS]: labels that are not kept, and kept ones, by score."""


class Region(NamedTuple):
    """A kept label, and where it is."""

    score: float
    shard: int
    row: int
    """Of the image, in its shard."""
    region: int
    key: str
    """Of the image."""
    box: tuple[float, ...]


@dataclass(frozen=True)
class ImageLabels:
    """The kept labels of an image, highest score first."""

    image: IndexRow
    boxes: npt.NDArray[np.float32]
    """[R, 4]."""
    concept_id: npt.NDArray[np.int64]
    """[R]."""
    score: npt.NDArray[np.float32]
    """[R]."""


def labels_name(shard: int) -> str:
    """Return the file name of a shard's labels."""
    return f"labels-{shard:05d}.parquet"


def pool_names(labels: Folder) -> list[str]:
    """Return the names of the concepts, as the ids of these labels mean them."""
    names: list[str] = labels.read_json(POOL_NAMES)["names"]
    return names


def concept_number(names: Sequence[str], concept: str) -> int:
    """Return the id of a concept. ValueError if the pool has no such name."""
    if concept not in names:
        hint = nearest_hint(concept, names)
        raise ValueError(f"--concept {concept!r}: no concept of the pool, which has {len(names)} names{hint}")
    return list(names).index(concept)


def count_labels(labels: Folder, shards: Iterable[int], concept: int | None = None) -> LabelCounts:
    """Count labels; `concept`: in the histogram only those that are of this one."""
    names = pool_names(labels)
    kept_C, score_C = np.zeros(len(names), np.int64), np.zeros(len(names))
    by_score = np.zeros((2, BINS), np.int64)
    for shard in shards:
        table = _read(labels, shard, ("concept_id", "score", "kept"))
        ids, scores, kept = (_flat(table[name]) for name in ("concept_id", "score", "kept"))
        kept_C += np.bincount(ids[kept], minlength=len(names))
        score_C += np.bincount(ids[kept], scores[kept], minlength=len(names))
        shown = np.full(len(ids), True) if concept is None else ids == concept
        bins = np.minimum((scores[shown] * BINS).astype(int), BINS - 1)
        np.add.at(by_score, (kept[shown].astype(int), bins), 1)
    return LabelCounts(names, kept_C, score_C, by_score)


def best_regions(labels: Folder, shards: Iterable[int], concept: int, most: int) -> list[Region]:
    """Return the kept labels of a concept with the highest scores, at most `most`; equal ones in the data's order."""
    found: list[Region] = []
    for shard in shards:
        table = _read(labels, shard, _COLUMNS)
        columns = [split_ragged(table[name], name) for name in ("boxes", "concept_id", "score", "kept")]
        for row, (key, boxes, ids, scores, kept) in enumerate(zip(table["key"].to_pylist(), *columns, strict=True)):
            for region in np.flatnonzero(kept & (ids == concept)).tolist():
                found.append(Region(float(scores[region]), shard, row, region, key, tuple(boxes[region].tolist())))
        found = sorted(found, key=lambda one: (-one.score, one[1:]))[:most]
    return found


def read_kept(
    data: Folder, labels: Folder, splits: Iterable[str], min_score: float = 0.0
) -> Iterator[tuple[str, ImageLabels]]:
    """Yield split and kept labels of every image that has any of at least `min_score`, in the order of the data."""
    for split in splits:
        for shard in split_shards(data, [split]):
            images, table = read_index(data, shard), _read(labels, shard, _COLUMNS)
            keys = table["key"].to_pylist()
            require_same_images(keys, [image.key for image in images], f"the labels of shard {shard}")
            columns = [split_ragged(table[name], name) for name in ("boxes", "concept_id", "score", "kept")]
            for image, boxes, ids, scores, kept in zip(images, *columns, strict=True):
                chosen = np.flatnonzero(kept & (scores >= np.float32(min_score)))
                chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
                if len(chosen):
                    yield split, ImageLabels(image, boxes[chosen], ids[chosen].astype(np.int64), scores[chosen])


def file_name(number: int, key: str) -> str:
    """Return a name, without ending, for a file of an image: a key is never trusted as a path."""
    stem, ending = os.path.splitext(key)
    name = stem if ending[1:].lower() in EXTENSIONS else key
    return f"{number:06d}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-_NAME_LENGTH:]}"


def _read(labels: Folder, shard: int, columns: Sequence[str]) -> pa.Table:
    with labels.open_table(labels_name(shard)) as file:
        return pq.read_table(file, columns=list(columns))


def _flat(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    return np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks])
