"""Where the rows of each image stand in a caption file, so that a shard reads only its own.

The file is scanned once, when the images are counted, and its rows are grouped by image on disk (external_sort.py).
What was found is kept beside the artifact until the stage is done, in two files of which a shard reads its part: 28
bytes a row and 8 an image. Nothing of it is in memory whole, neither while scanning nor later.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from regionclip_core.datasets.annotation_scan import EntryReader
from regionclip_core.datasets.caption_rows import CaptionRow, CaptionRows, Place, caption_rows
from regionclip_core.storage.external_sort import MEMORY, sorted_tables
from regionclip_core.storage.locations import open_location
from regionclip_core.storage.records import Folder

_ROW = np.dtype([("offset", "<i8"), ("bytes", "<i8"), ("line", "<i8"), ("crc", "<u4")])  # the fields of Place
_FIRST = np.dtype("<i8")
_GATHERED = 1 << 20  # bytes of names and places that become one table
_BLOCK = 1 << 20  # bytes read at a time


class CaptionScan:
    """The N images of a caption file, in the order of their first rows, and what their rows say.

    A row that can't be used is an image of its own, named by the file and the line.
    """

    def __init__(self, url: str, scratch: Folder, name: str, memory: int = MEMORY) -> None:
        """Scan the file, unless that was done before with the same `scratch` and `name`.

        Args:
            url: of the caption file.
            scratch: folder for what is found: `<name>.rows`, a header first, and `<name>.images`, the number of each
                image's first row and the number of all rows.
            memory: of the sorting, bytes.

        Raises:
            FileNotFoundError: no such file.
            ValueError: of no known kind, no header with `file` and `caption`, or not to be cut into rows.
        """
        self._url, self._scratch = url, scratch
        self._rows, self._images = f"{name}.rows", f"{name}.images"
        self._reader = EntryReader([url])  # a remote file is copied once a worker, when its first row is read
        self._format = caption_rows(url)
        if not scratch.exists(self._images):
            _write(url, self._format, scratch, (self._rows, self._images), memory)
        with scratch.open(self._images) as file:
            self._count = file.seek(0, io.SEEK_END) // _FIRST.itemsize - 1

    def __len__(self) -> int:
        """N."""
        return self._count

    def images(self, start: int, stop: int) -> Iterator[tuple[str, list[CaptionRow]]]:
        """Name and rows, at least one, of images start to stop. Held are the places of all their rows.

        Raises:
            ValueError: the file is not what was scanned.
        """
        if start == stop:
            return
        if self._format.has_header:
            self._format.set_header(self._text(self._places(0, 1)[0]))
        firsts = np.frombuffer(_read(self._scratch, self._images, _FIRST, start, stop + 1), _FIRST).tolist()
        places = self._places(firsts[0], firsts[-1])
        for first, end in pairwise(first - firsts[0] for first in firsts):
            rows = [self._format.row(place, self._text(place)) for place in places[first:end]]
            yield _name(self._url, rows[0], places[first]), rows

    def _places(self, start: int, stop: int) -> list[Place]:
        found = np.frombuffer(_read(self._scratch, self._rows, _ROW, start, stop), _ROW)
        return [Place(*row) for row in found.tolist()]

    def _text(self, place: Place) -> str:
        if self._format.is_too_large(place):
            return ""
        return self._format.decode(place, self._reader.read_bytes(0, place.offset, place.bytes))


def _read(folder: Folder, name: str, kind: npt.DTypeLike, start: int, stop: int) -> bytes:
    """Records start to stop of a file."""
    size = np.dtype(kind).itemsize
    with folder.open(name) as file:
        file.seek(start * size)
        return file.read((stop - start) * size)


def _name(url: str, row: CaptionRow, place: Place) -> str:
    return row.file if row.problem is None else f"{url.rsplit('/', 1)[-1]}#{place.line}"


# ---------------------------------------------------------------- scanning


def _write(url: str, rows: CaptionRows, scratch: Folder, names: tuple[str, str], memory: int) -> None:
    """Group the rows by image, and write where they stand."""
    with open_location(url) as raw, scratch.write(names[1]) as images, scratch.write(names[0]) as out:
        places = rows.places(io.BufferedReader(cast(io.RawIOBase, raw), _BLOCK))
        header, text = next(places, (Place(0, 0, 0, 0), "")) if rows.has_header else (Place(0, 0, 0, 0), "")
        if rows.has_header:
            rows.set_header(text)
        out.write(np.array([header], _ROW).tobytes())
        by_name = sorted_tables(
            _tables(url, rows, places), [("name", "ascending"), ("line", "ascending")], None, memory
        )
        count, last = 1, -1
        for table in sorted_tables(
            _with_first_line(by_name), [("first", "ascending"), ("line", "ascending")], None, memory
        ):
            records = np.empty(table.num_rows, _ROW)
            for field in Place._fields:
                records[field] = table[field].to_numpy()
            out.write(records.tobytes())
            first = table["first"].to_numpy()
            images.write((count + np.flatnonzero(np.diff(first, prepend=last))).astype(_FIRST).tobytes())
            count, last = count + len(first), first[-1]
        images.write(np.array([count], _FIRST).tobytes())


def _tables(url: str, rows: CaptionRows, places: Iterable[tuple[Place, str]]) -> Iterator[pa.Table]:
    """Name and place of every row."""
    names: list[bytes] = []
    found: list[Place] = []
    size = 0
    for place, text in places:
        # Any text can be a name in JSON, also half a surrogate pair.
        names.append(_name(url, rows.row(place, text), place).encode("utf-8", "surrogatepass"))
        found.append(place)
        size += len(names[-1]) + 200
        if size > _GATHERED:
            yield _table(names, found)
            names, found, size = [], [], 0
    if found:
        yield _table(names, found)


def _table(names: list[bytes], places: list[Place]) -> pa.Table:
    records = np.array(places, _ROW)
    columns: dict[str, Any] = {field: records[field].copy() for field in Place._fields}
    return pa.table({"name": pa.array(names, pa.binary()), **columns})


def _with_first_line(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Rows by name and line, with the line of the name's first row in place of the name."""
    name, line = None, -1
    for table in tables:
        lines, starts = table["line"].to_numpy(), np.ones(table.num_rows, np.bool_)
        starts[1:] = pc.not_equal(table["name"][1:], table["name"][:-1]).to_numpy()
        firsts = lines[starts]
        if table["name"][0].as_py() == name:  # the table before ends with rows of this name
            firsts[0] = line
        repeats = np.diff(np.flatnonzero(starts), append=table.num_rows)
        name, line = table["name"][-1].as_py(), int(firsts[-1])
        yield table.drop_columns("name").append_column("first", pa.array(np.repeat(firsts, repeats)))
