"""Tables of any number of rows in sorted order, in bounded memory: sorted runs on disk, merged.

Held at once are `memory` bytes of rows, while a run is gathered, or one batch of 1/FAN_IN of that of each of at most
FAN_IN runs, while they are merged; sorting and combining take a few times as much for a moment. Whenever there are
FAN_IN runs they become one of the next level, so that every row is written log_FAN_IN(runs) times.

Runs are compressed Arrow files without a name in the folder for temporary files (`TMPDIR`): they are gone with the
process, however that ends.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from regionclip_core.storage.local_files import full_disk_named

Keys = Sequence[tuple[str, Literal["ascending", "descending"]]]
"""Columns to sort by, the first one first; without nulls. Text goes by code points; only numbers may descend."""
Combine = Callable[[pa.Table], pa.Table]
"""Makes one row of all rows with equal keys; is given sorted rows, those with equal keys in the order they came in."""

MEMORY = 1 << 25
FAN_IN = 32


def sorted_tables(
    tables: Iterable[pa.Table], keys: Keys, combine: Combine | None = None, memory: int = MEMORY
) -> Iterator[pa.Table]:
    """All rows in the order of `keys`, in tables of at most about `memory` bytes.

    Args:
        tables: of one schema; one at a time is held beside what is gathered.
        keys: no two rows have the same ones, unless there is `combine`.
        combine: sums rows up; it is also used on the way, on rows that were combined before.
        memory: bytes of rows gathered before they go to disk.
    """
    runs = _Runs(keys, combine, memory)
    pending: list[pa.Table] = []
    size = 0
    for table in tables:
        if not table.num_rows:
            continue
        pending.append(table)
        size += table.nbytes
        if size >= memory:
            pending = [runs.ordered(pending)]
            size = pending[0].nbytes
            if combine is None or 2 * size > memory:  # else there is room again, and less goes to disk
                runs.add(pending)
                pending, size = [], 0
    if pending:
        pending = [runs.ordered(pending)]
        if not runs:
            yield pending.pop()
            return
        runs.add(pending)
        del pending
    yield from runs.merged()


class _Runs:
    """Sorted runs by level; those of a higher level hold rows that came earlier."""

    def __init__(self, keys: Keys, combine: Combine | None, memory: int) -> None:
        self._keys, self._combine = list(keys), combine
        self._batch_bytes = max(memory // FAN_IN, 1)
        self._levels: list[list[_Run]] = []

    def __bool__(self) -> bool:
        return bool(self._levels)

    def ordered(self, tables: list[pa.Table]) -> pa.Table:
        """The rows of all tables, at least one row, sorted and combined; `tables` is emptied, to let go of them."""
        (batch,) = pa.concat_tables(tables).combine_chunks().to_batches()
        tables.clear()
        table = pa.Table.from_batches([batch.take(pc.sort_indices(batch, sort_keys=self._keys))])
        return table if self._combine is None else self._combine(table)

    def add(self, tables: Iterable[pa.Table], level: int = 0) -> None:
        """A run of sorted tables, whose rows came after all that were added before."""
        if level == len(self._levels):
            self._levels.append([])
        runs = self._levels[level]
        runs.append(_Run(tables, self._batch_bytes))
        if len(runs) == FAN_IN:
            self._levels[level] = []
            self.add(self._merge(runs), level + 1)

    def merged(self) -> Iterator[pa.Table]:
        """All rows of all runs."""
        runs = [run for level in reversed(self._levels) for run in level]
        self._levels = []
        while len(runs) > FAN_IN:
            newest = min(len(runs) - FAN_IN + 1, FAN_IN)
            runs[-newest:] = [_Run(self._merge(runs[-newest:]), self._batch_bytes)]
        return self._merge(runs)

    def _merge(self, runs: Sequence[_Run]) -> Iterator[pa.Table]:
        """Round by round all rows up to the first key that ends some run's batch: no later batch has any of them."""
        heads = [_Head(run, self._keys) for run in runs]
        while heads:
            bound = min(head.last for head in heads)
            parts = [part for part in [head.up_to(bound) for head in heads] if part.num_rows]
            heads = [head for head in heads if head.refill()]
            yield self.ordered([pa.Table.from_batches([part]) for part in parts])


class _Run:
    """Sorted rows on disk."""

    def __init__(self, tables: Iterable[pa.Table], batch_bytes: int) -> None:
        self._file = tempfile.TemporaryFile(prefix="regionclip-runs-")  # noqa: SIM115 (closed when it is read)
        with full_disk_named(tempfile.gettempdir()):
            self._write(iter(tables), batch_bytes)

    def _write(self, tables: Iterator[pa.Table], batch_bytes: int) -> None:
        first = next(tables)  # there is no run without rows
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_stream(self._file, first.schema, options=options) as writer:
            for table in chain([first], tables):
                rows = max(table.num_rows * batch_bytes // max(table.nbytes, 1), 1)
                writer.write_table(table, max_chunksize=rows)
        self._file.flush()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows; only once."""
        with self._file as file:
            file.seek(0)
            yield from pa.ipc.open_stream(file)


class _Head:
    """What of a run is in memory: the rest of a batch."""

    def __init__(self, run: _Run, keys: Keys) -> None:
        self._batches, self._keys = run.batches(), keys
        self._batch = next(self._batches)
        self.last = self._key(self._batch.num_rows - 1)
        """Key of the batch's last row."""

    def up_to(self, bound: tuple[Any, ...]) -> pa.RecordBatch:
        """Take the rows of the batch whose key is `bound` or before it."""
        count = bisect_right(range(self._batch.num_rows), bound, key=self._key)
        taken, self._batch = self._batch.slice(0, count), self._batch.slice(count)
        return taken

    def refill(self) -> bool:
        """Read the next batch if this one is used up; False at the end of the run."""
        if not self._batch.num_rows:
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._batch = batch
            self.last = self._key(batch.num_rows - 1)
        return True

    def _key(self, row: int) -> tuple[Any, ...]:
        values = ((self._batch.column(name)[row].as_py(), order) for name, order in self._keys)
        return tuple(-value if order == "descending" else value for value, order in values)
