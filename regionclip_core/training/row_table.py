"""Index rows of a whole split on disk, read by position: what a training draws its images from.

A split's rows as Python objects grow with the data set; here they lie in one uncompressed Arrow file that is mapped
into memory, so that the kernel keeps the pages in use and can drop them at any time. N rows; n boxes of one image.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from regionclip_core.datasets.index import IndexRow, rows_of_table, split_ragged

_BATCH_ROWS = 1024
"""Rows in a part of the file; a part is opened whole (a few kB of bookkeeping), its pages only as they are read."""
_OPEN_PARTS = 64


class RowTable(Sequence[IndexRow]):
    """N index rows in the order they came in, and further columns beside them.

    The file has no name: it is gone with the object, or with the process, however that ends. It lies in the folder
    for temporary files (`TMPDIR`), on the machine that made it, so each process of a training has its own.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        """Write `tables` one after another; they have one schema, of schemas.INDEX's columns and others.

        Held in memory is one of the tables at a time. Their columns may be a part of schemas.INDEX's: `key` and
        `image_id` have to be there, fields without a column have their defaults.
        """
        starts = [0]
        self._mapped: pa.RecordBatchFileReader | None = None
        with tempfile.TemporaryFile(prefix="regionclip-rows-") as file:
            writer: pa.RecordBatchFileWriter | None = None
            for table in tables:
                plain = table.replace_schema_metadata(None)
                writer = writer or pa.ipc.new_file(file, plain.schema)
                for batch in plain.to_batches(max_chunksize=_BATCH_ROWS):
                    if batch.num_rows:
                        writer.write_batch(batch)
                        starts.append(starts[-1] + batch.num_rows)
            if writer is not None:
                writer.close()
                file.flush()
                # The mapping has a descriptor of its own, which keeps the nameless file alive.
                whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._mapped = pa.ipc.open_file(pa.BufferReader(pa.py_buffer(whole)))
        self._starts = np.array(starts, np.int64)
        """Position of the first row of each part, and N."""
        self._open: dict[int, pa.RecordBatch] = {}

    def __len__(self) -> int:
        """N."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> IndexRow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[IndexRow]: ...
    def __getitem__(self, index: int | slice) -> IndexRow | Sequence[IndexRow]:
        """The row at a position, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        part, row = self._place(index)
        return rows_of_table(pa.Table.from_batches([self._part(part).slice(row, 1)]))[0]

    def __iter__(self) -> Iterator[IndexRow]:
        """All rows in order, a part at a time: much faster than one by one."""
        for part in range(len(self._starts) - 1):
            yield from rows_of_table(pa.Table.from_batches([self._part(part)]))

    def value(self, column: str, index: int) -> Any:
        """One column of a row, as Python values."""
        part, row = self._place(index)
        return self._part(part).column(column)[row].as_py()

    def boxes(self, column: str, index: int) -> npt.NDArray[np.float32]:
        """A column of boxes at a position: float32[n, 4]."""
        part, row = self._place(index)
        one = pa.chunked_array([self._part(part).column(column).slice(row, 1)])
        return cast("npt.NDArray[np.float32]", split_ragged(one, "boxes")[0])

    def lists(self, column: str) -> Iterator[npt.NDArray[Any]]:
        """A column of lists of numbers, row by row, one array each."""
        for part in range(len(self._starts) - 1):
            yield from split_ragged(pa.chunked_array([self._part(part).column(column)]), column)

    def _place(self, index: int) -> tuple[int, int]:
        """Part, and row in it."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of a table with {len(self)} rows")
        part = int(np.searchsorted(self._starts, position, side="right")) - 1
        return part, position - int(self._starts[part])

    def _part(self, number: int) -> pa.RecordBatch:
        if number not in self._open:
            assert self._mapped is not None  # there is a row, so there is a file
            if len(self._open) >= _OPEN_PARTS:
                self._open.clear()
            self._open[number] = self._mapped.get_batch(number)
        return self._open[number]
