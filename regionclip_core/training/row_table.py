"""The index rows of a split on disk, read by number: what a training draws its images from.

As Python objects the rows would need memory that grows with the data set. Here they are in one uncompressed Arrow file
that is mapped into memory: the kernel keeps the pages in use and can drop the others. N rows; n boxes of one image.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.reduction import DupFd
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from regionclip_core.datasets.index import IndexRow, rows_of_table, split_ragged

_BATCH_ROWS = 16_384
"""Rows per record batch of the file: the unit in which whole columns are read."""


class RowTable:
    """N index rows in the order in which they were added, with further columns.

    The file has no name, so it disappears with the object, or with the process, also if that is killed. It is in the
    folder for temporary files (`TMPDIR`); every process of a training has its own, which its loader's workers share.
    """

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        """Write `tables` one after another; only one of them is in memory at a time.

        They have one schema: columns of tables.INDEX, `key` and `image_id` among them, and any others.
        """
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="regionclip-rows-")  # noqa: SIM115 (open as long as the object)
        writer: pa.RecordBatchFileWriter | None = None
        for table in tables:
            plain = table.replace_schema_metadata(None)
            writer = writer or pa.ipc.new_file(self._file, plain.schema)
            writer.write_table(plain, max_chunksize=_BATCH_ROWS)
        if writer is not None:
            writer.close()
            self._file.flush()
        self._table = self._mapped()

    def _mapped(self) -> pa.Table:
        if not os.fstat(self._file.fileno()).st_size:
            return pa.table({})
        whole = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return pa.ipc.open_file(pa.BufferReader(pa.py_buffer(whole))).read_all()

    def __getstate__(self) -> Any:
        """Return the open file, for a process that is being started: it maps the same pages, and no row is copied."""
        return DupFd(self._file.fileno())

    def __setstate__(self, file: Any) -> None:
        self._file = os.fdopen(file.detach(), "rb")
        self._table = self._mapped()

    def __len__(self) -> int:
        """N."""
        return int(self._table.num_rows)

    def __getitem__(self, number: int) -> IndexRow:
        """Return the row of this number; fields of tables.INDEX that have no column have their defaults."""
        return rows_of_table(self._table.slice(number, 1))[0]

    def value(self, column: str, number: int) -> Any:
        """Return one column of a row as Python values."""
        return self._table[column][number].as_py()

    def boxes(self, column: str, number: int) -> npt.NDArray[np.float32]:
        """Return a column of boxes of one row, float32[n, 4]."""
        return cast("npt.NDArray[np.float32]", split_ragged(self._table[column].slice(number, 1), "boxes")[0])

    def lists(self, column: str) -> Iterator[npt.NDArray[Any]]:
        """Yield a column of lists of numbers row by row, as arrays."""
        for chunk in self._table[column].chunks:
            yield from split_ragged(pa.chunked_array([chunk]), column)
