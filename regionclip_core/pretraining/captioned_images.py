"""The images that the teacher learns from, as a sequence whose rows lie on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import read_index_table, split_shards
from regionclip_core.pretraining.teacher import CaptionedImage
from regionclip_core.storage.records import Folder
from regionclip_core.training.image_tally import ImageTally
from regionclip_core.training.row_table import RowTable
from regionclip_core.training.sampling import ImageCache

_CACHE_BYTES = 512 * 1024**2  # decoded images kept between epochs: all of the embedded world's, a part of more
_COLUMNS = ("key", "status", "reason", "image_id", "url", "offset", "size", "width", "height", "captions")
_PLACE = "place"
"""Column beside these: the image's row in the splits, one after another, from 0."""


class CaptionedImages(Sequence[CaptionedImage]):
    """Images with captions; decoded images are kept up to a budget, rows and captions are read when asked for."""

    def __init__(self, rows: RowTable, reader: ImageReader, split_rows: int, cache_bytes: int = _CACHE_BYTES) -> None:
        """`rows`: each readable and with a caption, and its `place` among the `split_rows` of the splits."""
        self.rows = rows
        self.split_rows = split_rows
        self._cache: ImageCache[int] = ImageCache(lambda number: reader.read(rows[number]), cache_bytes)

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> CaptionedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[CaptionedImage]: ...
    def __getitem__(self, index: int | slice) -> CaptionedImage | Sequence[CaptionedImage]:
        """The image at a position, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # the cache must not know an image by two numbers
        return CaptionedImage(partial(self._cache.read, number, number), tuple(self.rows.value("captions", number)))

    def tally(self, max_error_rate: float) -> ImageTally:
        """Counts the images that a training reads, by their row in the splits."""
        return ImageTally(
            self.split_rows,
            max_error_rate,
            images=len(self),
            place_of=lambda number: int(self.rows.value(_PLACE, number)),
            key_of=lambda number: str(self.rows.value("key", number)),
        )


def captioned_images(data: Folder, splits: Sequence[str]) -> CaptionedImages:
    """Every readable image of the splits that has a caption, in the order of the index."""
    selection = _Selection(data, splits)
    rows = RowTable(selection.tables())
    return CaptionedImages(rows, ImageReader(data), selection.rows)


@dataclass
class _Selection:
    """Which rows of the splits are trained on."""

    data: Folder
    splits: Sequence[str]
    rows: int = 0
    """Rows so far, of whatever kind."""

    def tables(self) -> Iterator[pa.Table]:
        """One shard's rows at a time."""
        for shard in split_shards(self.data, self.splits):
            table = read_index_table(self.data, shard, columns=_COLUMNS)
            places = np.arange(self.rows, self.rows + table.num_rows)
            self.rows += table.num_rows
            yield _with_captions(table.append_column(_PLACE, pa.array(places)))


def _with_captions(table: pa.Table) -> pa.Table:
    captions = pc.list_value_length(table["captions"]).to_numpy()
    readable = np.array([status == "ok" for status in table["status"].to_pylist()], np.bool_)
    return table.take(np.flatnonzero(readable & (captions > 0)))
