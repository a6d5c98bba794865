"""Parquet files written table by table, with the bytes of one written at once."""

from __future__ import annotations

from types import TracebackType
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 1 << 20
"""Rows of a row group, as in `pyarrow.parquet.write_table`."""


class RowGroupWriter:
    """Gathers rows to whole row groups: how a group's bytes fall out depends on how it is handed over.

    Held is one row group, and a column of it twice while its parts are joined.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema, row_group: int = ROW_GROUP) -> None:
        self._writer = pq.ParquetWriter(file, schema, compression="zstd")
        self._schema, self._row_group = schema, row_group
        self._columns: list[list[pa.Array]] = [[] for _ in schema]
        self.rows = 0
        """Rows so far."""

    def write(self, table: pa.Table) -> None:
        """Append rows of the schema."""
        while table.num_rows:
            room = self._row_group - self.rows % self._row_group
            part, table = table.slice(0, room), table.slice(room)
            for parts, column in zip(self._columns, part.columns, strict=True):
                parts.extend(column.chunks)
            self.rows += part.num_rows
            if part.num_rows == room:
                self._flush()

    def _flush(self) -> None:
        whole = []
        for parts, field in zip(self._columns, self._schema, strict=True):
            whole.append(pa.concat_arrays(parts) if parts else pa.array([], field.type))
            parts.clear()
        self._writer.write_table(pa.table(whole, schema=self._schema), row_group_size=self._row_group)

    def __enter__(self) -> RowGroupWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and (self.rows % self._row_group or not self.rows):  # an empty table is an empty row group
            self._flush()
        self._writer.close()
