"""The data index: one row per image, one Parquet file per shard.

Boxes are float32 [n, 4], absolute xyxy pixels in the original (upright) image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.storage.folder import Folder
from regionclip_core.storage.tables import INDEX

WHOLE_FILE = -1
"""`size` of a row whose url is the image file itself, of a size not looked up."""
VOCABULARY_DIGEST = b"vocabulary"
"""Arrow metadata key: digest of the Vocabulary that `box_labels` points into."""

_RAGGED = ("boxes", "box_labels", "box_crowd", "box_area")
_FIELDS = frozenset(INDEX.names)


@dataclass(frozen=True)
class IndexRow:
    """One image of a split; fields as in tables.INDEX. `n` boxes in the four box arrays."""

    key: str
    image_id: int
    url: str = ""
    offset: int = 0
    size: int = 0
    width: int = 0
    height: int = 0
    captions: Sequence[str] = ()
    boxes: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    box_labels: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    box_crowd: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    box_area: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    box_masks: Sequence[bytes] = ()
    """COCO's compressed run lengths (`counts`) of [height, width] masks, one per box; empty where none were read."""
    neg_labels: npt.NDArray[np.int32] | None = None
    """LVIS: categories known to be absent. None: every category is annotated in every image (COCO)."""
    not_exhaustive_labels: npt.NDArray[np.int32] | None = None
    """LVIS: categories of which not every object is annotated."""
    status: str = "ok"
    reason: str | None = None
    lost: tuple[str, ...] = ()
    """`lost_box`, `lost_caption`, `lost_image_labels`: what a good row lacks; and one
    of `source.ODD_BOXES` for each such box. Its `reason` says why. Not stored."""

    @property
    def ok(self) -> bool:
        """Return whether readers may use the row."""
        return self.status == "ok"


def index_name(shard: int) -> str:
    """Return the file name of a shard's index."""
    return f"index-{shard:05d}.parquet"


def images_name(shard: int) -> str:
    """Return the file name of the tar that holds a shard's images, where the data stage stores them."""
    return f"images-{shard:05d}.tar"


def write_index(file: BinaryIO, rows: Sequence[IndexRow], vocabulary_digest: str) -> None:
    """Write rows as Parquet with tables.INDEX; the same rows give the same bytes."""
    columns: dict[str, pa.Array] = {}
    for name in INDEX.names:
        values, kind = [getattr(row, name) for row in rows], INDEX.field(name).type
        if name in ("captions", "box_masks"):
            values = [list(value) for value in values]
        columns[name] = ragged_column(values, kind) if name in _RAGGED else pa.array(values, kind)
    table = pa.table(columns, schema=INDEX.with_metadata({VOCABULARY_DIGEST: vocabulary_digest.encode()}))
    pq.write_table(table, file, compression="zstd")


def read_index(data: Folder, shard: int, vocabulary_digest: str | None = None) -> list[IndexRow]:
    """Load all rows of a shard, also those whose status is not `ok`; arguments and errors as in `read_index_table`."""
    return rows_of_table(read_index_table(data, shard, vocabulary_digest))


def read_index_table(
    data: Folder, shard: int, vocabulary_digest: str | None = None, columns: Sequence[str] | None = None
) -> pa.Table:
    """Load a shard's index as an Arrow table with the columns of tables.INDEX.

    Args:
        data: finished data artifact.
        shard: global shard number.
        vocabulary_digest: what the caller's class ids mean; None skips the check.
        columns: only these, in this order; None is all.

    Raises:
        ValueError: the index was written with another vocabulary.
    """
    names = list(INDEX.names if columns is None else columns)
    with data.open_table(index_name(shard)) as file:
        table = pq.read_table(file, columns=names)
    found = (table.schema.metadata or {}).get(VOCABULARY_DIGEST, b"").decode()
    if vocabulary_digest is not None and found != vocabulary_digest:
        raise ValueError(
            f"{index_name(shard)}: its box labels are of vocabulary {found}, expected {vocabulary_digest}; "
            "run the data stage with the same data.categories"
        )
    return table.select(names).combine_chunks()


def rows_of_table(table: pa.Table) -> list[IndexRow]:
    """Return the index rows of a table; fields whose column it lacks have their defaults."""
    columns: dict[str, list[Any]] = {
        name: split_ragged(column, name) if name in _RAGGED else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
        if name in _FIELDS
    }
    for name in ("neg_labels", "not_exhaustive_labels"):
        if name in columns:
            columns[name] = [None if v is None else np.asarray(v, np.int32) for v in columns[name]]
    return [IndexRow(**{name: values[i] for name, values in columns.items()}) for i in range(table.num_rows)]


def split_shards(data: Folder, splits: Iterable[str]) -> list[int]:
    """Return the shard numbers of the named splits, ascending.

    Raises:
        ValueError: the artifact has no such split.
    """
    known = data.read_json("splits.json")
    shards: list[int] = []
    for name in splits:
        if name not in known:
            raise ValueError(f"no split {name!r} in the data artifact {data.url}, which has {sorted(known)}")
        shards.extend(known[name]["shards"])
    return sorted(set(shards))


def splits_of_shards(data: Folder) -> dict[int, str]:
    """Return the split of each shard, by shard number."""
    return {shard: name for name, split in data.read_json("splits.json").items() for shard in split["shards"]}


def category_ids(data: Folder, split: str) -> list[Any]:
    """Return the category id of each row of the vocabulary in results on a split: that of its annotation file.

    Names that the file lacks have ids of their own, -1 - row, which no evaluation against the file counts. For a split
    without an annotation file an id is the row itself.
    """
    categories = data.read_json("categories.json")
    ids: Mapping[str, Any] | None = categories.get("ids", {}).get(split)
    return [row if ids is None else ids.get(name, -1 - row) for row, name in enumerate(categories["names"])]


def require_same_images(found: Sequence[str], expected: Sequence[str], where: str) -> None:
    """Raise ValueError if the keys of a table that was made from an index are not the index's, in its order."""
    for number, (one, other) in enumerate(zip_longest(found, expected)):
        if one != other:
            raise ValueError(
                f"{where}: row {number} is of image {one!r}, in the data index of {other!r}: the two are not of one "
                "run. Run the stage that made it again with --force"
            )


def split_rows(data: Folder, splits: Iterable[str]) -> int:
    """Count the rows of the named splits, whatever their status. Raises ValueError as `split_shards`."""
    rows = 0
    for shard in split_shards(data, splits):
        with data.open(index_name(shard)) as file:
            rows += pq.ParquetFile(file).metadata.num_rows
    return rows


def ragged_column(values: Sequence[npt.NDArray[Any]], kind: pa.DataType) -> pa.Array:
    """Build a column of lists, of one array per row, without an object per number: the inverse of `split_ragged`.

    Lists of boxes and of other lists of one length take arrays of two dimensions.
    """
    if not values:
        return pa.array([], kind)
    flat, inner = np.concatenate(values), kind.value_type
    if flat.ndim == 1:
        items = pa.array(flat, inner)
    elif pa.types.is_fixed_size_list(inner):
        items = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), inner.value_type), inner.list_size)
    else:
        bounds = pa.array(np.arange(len(flat) + 1) * flat.shape[1], pa.int32())
        items = pa.ListArray.from_arrays(bounds, pa.array(flat.reshape(-1), inner.value_type))
    offsets = pa.array(np.cumsum([0, *map(len, values)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, items).cast(kind)


def split_ragged(column: pa.ChunkedArray, name: str) -> list[npt.NDArray[Any]]:
    """Return one numpy array for each row of a column of lists of numbers; [n, 4] where its name is `boxes`."""
    if column.num_chunks == 0:
        return []
    array = pa.concat_arrays(column.chunks)
    bounds = array.offsets.to_numpy()
    flat = array.values
    if name == "boxes":
        values = flat.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    else:
        values = flat.to_numpy(zero_copy_only=False)
    return [values[start:stop].copy() for start, stop in pairwise(bounds)]
