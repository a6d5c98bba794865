"""Labels from elsewhere, `labels.source`: boxes with names and scores that another detector or a person gave.

The file is read once, before the shards are labelled. Its rows are sorted by image and left, a file per shard, in a
scratch folder, where `read_regions` finds them. A row that can't be used costs itself alone.

Memory while it is read: about 100 bytes per row that is used, and 500 per image of the splits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.config.encodings import as_utf_8
from regionclip_core.config.tree import LabelsConfig
from regionclip_core.datasets.annotation_files import hashable
from regionclip_core.datasets.cleaning import clean_box
from regionclip_core.datasets.index import (
    category_ids,
    ragged_column,
    read_index_table,
    rows_of_table,
    split_shards,
    splits_of_shards,
)
from regionclip_core.pretraining.regions import given_name
from regionclip_core.storage.json_lists import top_entries
from regionclip_core.storage.locations import open_location, printable
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import BOX, REJECTED

SOURCE = "source.json"
"""What became of the file's rows, for the summary."""
REJECTED_ROWS = "rejected.parquet"
_GIVEN = pa.schema([("boxes", pa.list_(BOX)), ("concept_id", pa.list_(pa.int32())), ("score", pa.list_(pa.float32()))])
_OF_AN_IMAGE = ("key", "image_id", "width", "height", "status")
_ROWS_AT_ONCE = 1 << 13
_FARTHEST = 1e9  # pixels: a larger number, or NaN, is no coordinate
_NAMES_SHOWN = 20  # of those dropped or added, in the summary


class _Image(NamedTuple):
    """An image of the labelled splits: its place, and what a row needs to know of it."""

    shard: int
    row: int
    width: int
    height: int
    status: str
    split: str


class _Rejected(Exception):
    """Why a row can't be used: a status and a reason."""


def read_source(
    out: Folder, scratch: Folder, data: Folder, settings: LabelsConfig, concept_of: Mapping[str, int], concepts: int
) -> list[str]:
    """Sort the rows of `labels.source` by image into `scratch`; return the names that they add to the pool.

    Writes REJECTED_ROWS and SOURCE into `out`, the labels artifact. Of an image those with the highest scores come
    first, equal ones in the file's order.

    Args:
        concept_of: concept ids by name.
        concepts: size of the pool.

    Raises:
        ValueError: the file is of another form, or has no row that can be used.
    """
    assert settings.source is not None
    shards, split_of = split_shards(data, settings.splits), splits_of_shards(data)
    sizes, images = _images(data, shards, split_of)
    names = data.read_json("categories.json")["names"]
    ids = {split: dict(zip(map(hashable, category_ids(data, split)), names, strict=True)) for split in settings.splits}
    known, added = dict(concept_of), list[str]()
    counts, unknown = Counter[str](), Counter[str]()
    used: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = []
    rejected: list[dict[str, Any]] = []
    rows = source_rows(settings.source)
    read = 0
    with out.write(REJECTED_ROWS) as file, pq.ParquetWriter(file, REJECTED, compression="zstd") as writer:
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            places, values = [], []
            for number, row in enumerate(batch, start=read + 1):
                try:
                    image = _image_of(row, images)
                    box, score, name = _box_of(row, image), _score_of(row), _name_of(row, ids[image.split])
                    spelled = name if name in known else " ".join(name.lower().split())
                    if spelled not in known and settings.unknown_names == "add":
                        known[spelled] = concepts + len(added)
                        added.append(spelled)
                    if known.get(spelled, concepts) >= concepts:
                        unknown[spelled] += 1
                    if spelled not in known:
                        raise _Rejected("unknown_name", f"no concept of the pool is called {name!r}")
                except _Rejected as error:
                    status, reason = error.args
                    counts[status] += 1
                    image_name = row.get("key", row.get("image_id", "")) if isinstance(row, dict) else ""
                    shown = printable(str(image_name))[:300]
                    rejected.append({"row": number, "image": shown, "status": status, "reason": reason[:300]})
                    continue
                places.append((image.shard, image.row, known[spelled]))
                values.append((*box.tolist(), score))
            read += len(batch)
            used.append((np.array(places, np.int32).reshape(-1, 3), np.array(values, np.float32).reshape(-1, 5)))
            writer.write_table(pa.Table.from_pylist(rejected, schema=REJECTED))
            rejected.clear()
    places_N3 = np.concatenate([np.zeros((0, 3), np.int32), *(one for one, _ in used)])
    values_N5 = np.concatenate([np.zeros((0, 5), np.float32), *(one for _, one in used)])
    used.clear()
    if not len(places_N3):
        found = ", ".join(f"{n} {status}" for status, n in counts.most_common()) or "it has no rows"
        raise ValueError(
            f"labels.source: {settings.source}: none of its {read} rows can be used: {found} (each with its reason in "
            f"{out.path(REJECTED_ROWS)}). Expected rows of images of {', '.join(settings.splits)}"
        )
    _write_given(scratch, sizes, places_N3, values_N5)
    summary = {"rows": read, "used": len(places_N3), "rejected": dict(counts.most_common())}
    what = "unknown_names_dropped" if settings.unknown_names == "drop" else "unknown_names_added"
    out.write_json(
        SOURCE, {**summary, what: len(unknown), "most_frequent_unknown": dict(unknown.most_common(_NAMES_SHOWN))}
    )
    return added


def _write_given(
    scratch: Folder, sizes: Mapping[int, int], places_N3: npt.NDArray[np.int32], values_N5: npt.NDArray[np.float32]
) -> None:
    """Write a file per shard with a row per image.

    `sizes`: images of each shard; a place is shard, row in it and concept, the values are a box and its score.
    """
    order = np.lexsort((-values_N5[:, 4], places_N3[:, 1], places_N3[:, 0]))
    places_N3, values_N5 = places_N3[order], values_N5[order]
    for shard, images in sizes.items():
        start, end = np.searchsorted(places_N3[:, 0], [shard, shard + 1])
        bounds = np.searchsorted(places_N3[start:end, 1], np.arange(1, images))
        columns = {"boxes": values_N5[:, :4], "concept_id": places_N3[:, 2], "score": values_N5[:, 4]}
        table = {}
        for name, column in columns.items():
            parts = np.split(column[start:end], bounds)[:images]
            table[name] = ragged_column(parts, _GIVEN.field(name).type)
        with scratch.write(given_name(shard)) as file:
            pq.write_table(pa.table(table, schema=_GIVEN), file)


def source_rows(url: str) -> Iterator[Any]:
    """Yield the rows of a file of labels, as JSON values or as dictionaries of a table's columns.

    A `.json` is a list as COCO's results: `image_id` or `key`, `bbox` as x, y, width, height, `score`, and
    `category_id` or `name`. A `.parquet` has the same columns, but `box` as x1, y1, x2, y2.

    Raises:
        FileNotFoundError: no such file.
        ValueError: of another form.
    """
    if url.lower().endswith(".parquet"):
        with open_location(url) as file:
            try:
                table = pq.ParquetFile(file)
                names = set(table.schema_arrow.names)
                if not names & {"key", "image_id"} or "box" not in names or not names & {"name", "category_id"}:
                    raise ValueError(
                        f"labels.source: {url}: expected the columns `key` or `image_id`, `box` (x1, y1, x2, y2), "
                        f"`name` or `category_id`, and `score`, found {sorted(names)}"
                    )
                columns = [name for name in _FIELDS if name in names]
                for batch in table.iter_batches(_ROWS_AT_ONCE, columns=columns):
                    yield from batch.to_pylist()
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise ValueError(f"labels.source: {url}: no whole Parquet file ({error})") from error
    elif url.lower().endswith(".json"):
        try:
            with open_location(url) as file:
                is_list = as_utf_8(file, url).read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
            if is_list:
                yield from top_entries(url)
        except ValueError as error:
            raise ValueError(f"labels.source: {error}") from error
        if not is_list:
            raise ValueError(
                f"labels.source: {url}: expected a JSON list of results, as COCO has them: [{{'image_id': 1, "
                "'category_id': 18, 'bbox': [x, y, width, height], 'score': 0.9}, ...]. Of an annotation file, give "
                "the list `annotations` as a file of its own"
            )
    else:
        raise ValueError(f"labels.source: {url}: expected a .json or .parquet file")


_FIELDS = ("key", "image_id", "box", "name", "category_id", "score")


def check_source(url: str) -> None:
    """Read the first row. Raises as `source_rows`, and ValueError for a file without rows."""
    if next(source_rows(url), None) is None:
        raise ValueError(f"labels.source: {url}: it has no rows")


def _images(
    data: Folder, shards: list[int], split_of: Mapping[int, str]
) -> tuple[dict[int, int], dict[tuple[str, Any], _Image | None]]:
    """Return the number of images of each shard, and the images by key and by id; None where two share one."""
    sizes: dict[int, int] = {}
    found: dict[tuple[str, Any], _Image | None] = {}
    for shard in shards:
        images = rows_of_table(read_index_table(data, shard, columns=_OF_AN_IMAGE))
        sizes[shard] = len(images)
        for row, image in enumerate(images):
            one = _Image(shard, row, image.width, image.height, image.status, split_of[shard])
            for place in (("key", image.key), ("image_id", image.image_id)):
                found[place] = None if place in found else one
    return sizes, found


def _image_of(row: Any, images: Mapping[tuple[str, Any], _Image | None]) -> _Image:
    if not isinstance(row, dict):
        raise _Rejected("bad_row", f"expected an object, came {row!r:.60}")
    what = "key" if row.get("key") is not None else "image_id"
    place = (what, row.get(what) if what == "key" else hashable(row.get(what)))
    image = None
    with suppress(TypeError):  # a list, say, is no key
        if (image := images.get(place)) is None and place in images:
            raise _Rejected("ambiguous_image", f"several images of labels.splits have the {what} {place[1]!r:.60}")
    if image is None:
        raise _Rejected("unknown_image", f"no image of labels.splits has the {what} {place[1]!r:.60}")
    if image.status != "ok":
        raise _Rejected("unusable_image", f"the image is {image.status}")
    return image


def _box_of(row: dict[str, Any], image: _Image) -> npt.NDArray[np.float32]:
    """Return the row's box, clipped to its image."""
    name = "box" if "box" in row else "bbox"
    given = row.get(name)
    numbers: list[Any] = given if isinstance(given, list) else []
    if len(numbers) != 4 or not all(type(one) in (int, float) and abs(one) < _FARTHEST for one in numbers):
        raise _Rejected("bad_box", f"{name} is not four numbers: {given!r:.60}")
    x, y, *rest = numbers
    corners = (x, y, *rest) if name == "box" else (x, y, x + rest[0], y + rest[1])
    box, problem = clean_box(corners, image.width, image.height)
    if box is None:
        raise _Rejected("bad_box", f"{name} {given!r:.80}: {problem}")
    return box


def _score_of(row: dict[str, Any]) -> float:
    """Return the row's score; 1 where it has none, as a person's."""
    score = 1 if row.get("score") is None else row["score"]
    if type(score) not in (int, float) or not 0 <= score <= 1 or not math.isfinite(score):
        raise _Rejected("bad_score", f"expected a score from 0 to 1, came {score!r:.60}")
    return float(score)


def _name_of(row: dict[str, Any], ids: Mapping[Any, str]) -> str:
    """Return the row's name, or that of its category id in the annotation file of the image's split."""
    name = row.get("name")
    if name is None:
        category = hashable(row.get("category_id"))
        if category not in ids:
            raise _Rejected("unknown_category", f"category_id {category!r:.60} is none of data.categories")
        return ids[category]
    if not isinstance(name, str) or not name.strip() or printable(name) != name:
        raise _Rejected("bad_name", f"expected a name, came {name!r:.60}")
    return name.strip()
