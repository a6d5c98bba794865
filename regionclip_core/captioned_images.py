"""The images that the teacher learns from, as a sequence whose rows lie on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from regionclip_core.artifacts import Folder
from regionclip_core.clip_training import CaptionedImage
from regionclip_core.images import ImageReader
from regionclip_core.index import read_index_table, split_shards
from regionclip_core.row_table import RowTable
from regionclip_core.sampling import ImageCache

_CACHE_BYTES = 512 * 1024**2  # decoded images kept between epochs: all of the embedded world's, a part of more
_COLUMNS = ("key", "status", "reason", "image_id", "url", "offset", "size", "width", "height", "captions")


class CaptionedImages(Sequence[CaptionedImage]):
    """Images with captions; decoded images are kept up to a budget, rows and captions are read when asked for."""

    def __init__(self, rows: RowTable, reader: ImageReader, cache_bytes: int = _CACHE_BYTES) -> None:
        """`rows`: each readable and with a caption."""
        self.rows = rows
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


def captioned_images(data: Folder, splits: Sequence[str]) -> CaptionedImages:
    """Every readable image of the splits that has a caption, in the order of the index."""
    return CaptionedImages(RowTable(_tables(data, splits)), ImageReader(data))


def _tables(data: Folder, splits: Sequence[str]) -> Iterator[pa.Table]:
    for shard in split_shards(data, splits):
        table = read_index_table(data, shard, columns=_COLUMNS)
        captions = pc.list_value_length(table["captions"]).to_numpy()
        readable = np.array([status == "ok" for status in table["status"].to_pylist()], np.bool_)
        yield table.take(np.flatnonzero(readable & (captions > 0)))
