"""A folder of images and one caption file: .jsonl, .csv, .tsv or .parquet with the fields `file` and `caption`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any, BinaryIO, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.config.encodings import as_utf_8
from regionclip_core.config.tree import FolderSplit
from regionclip_core.datasets.cleaning import clean_captions, reasons
from regionclip_core.datasets.image_list import ListedSource, Spool, by_image
from regionclip_core.datasets.images import BadImage, check_image, read_image_file
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.source import Piece, ShardPlan
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import absolute, file_in, open_location, printable, unsafe_name
from regionclip_core.storage.tars import TarWriter

LARGEST_FIELD = 1 << 26
"""Characters of one field of a .csv. A quote that is left open reaches it and is an error before memory is full."""
_DIGEST = 16  # bytes
_LINES = 'one object per line, {"file": "a.jpg", "caption": "a cat"}'


class FolderSource(ListedSource):
    """Images by the file names of a caption file, in the order of their first row; each is decoded once."""

    def __init__(self, name: str, split: FolderSplit, scratch: Folder) -> None:
        super().__init__(name, scratch, f"captions: {split.captions}")
        self._captions, self._images = absolute(split.captions), absolute(split.images).rstrip("/")

    def _read_files(self) -> tuple[Iterator[bytes], dict[str, Any]]:
        return caption_rows_by_image(self._captions), {}

    def check(self, first: Piece) -> None:
        self._check_images(self._images, [*islice(self.file_names(first), 20)])

    def file_names(self, piece: Piece) -> Iterator[str]:
        return (rows[0][0] for rows in self._documents(piece) if not rows[0][2])

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        for number, rows in enumerate(self._documents(plan.piece), start=plan.piece.start):
            file = rows[0][0]
            key = printable(file)
            problems = [problem for _, _, problem in rows if problem is not None]
            status, reason = ("bad_caption", problems[-1]) if problems else ("bad_unsafe_member", unsafe_name(file))
            if reason is not None:
                yield IndexRow(key, number, status=status, reason=reason)
                continue
            url = file_in(self._images, file)
            try:
                data = read_image_file(url)
                header = check_image(data)
            except BadImage as error:
                yield IndexRow(key, number, url, status=error.status, reason=error.reason)
                continue
            captions, dropped = clean_captions(caption for _, caption, _ in rows)
            yield IndexRow(
                key,
                number,
                url,
                size=len(data),
                width=header.width,
                height=header.height,
                captions=captions,
                status="ok" if captions else "bad_caption",
                reason=reasons(dropped),
                lost=("lost_caption",) if captions and dropped else (),
            )


def caption_rows_by_image(url: str) -> Iterator[bytes]:
    """Read a caption file once; yield a JSON document for each image, in the order of their first rows.

    A document is the list of the image's rows, [file, caption, problem] each. A row that can't be used has a problem,
    which says why, and is an image of its own, named by the file and the line. Bytes that are not UTF-8 become lone
    surrogates, so that they cost their caption and not the file.

    Memory while the file is read: about 100 bytes per row.

    Raises:
        FileNotFoundError: no such file.
        ValueError: of no known kind, no header with `file` and `caption`, or not to be cut into rows.
    """
    kind = url.rsplit(".", 1)[-1].lower()
    if kind not in ("jsonl", "csv", "tsv", "parquet"):
        raise ValueError(f"caption file {url} ends in .{kind}, expected .jsonl ({_LINES}), .csv, .tsv or .parquet")
    spool, digests = Spool(), bytearray()
    with open_location(url) as file:
        # In a .csv, any line end inside quotes belongs to the text; elsewhere a row ends with "\n" alone.
        newline = "" if kind == "csv" else "\n"
        text = io.TextIOWrapper(as_utf_8(file, url), "utf-8-sig", "surrogateescape", newline=newline)
        table = _csv(text, url) if kind == "csv" else _tsv(text) if kind == "tsv" else _parquet(file, url)
        for line, name, caption, problem in _jsonl(text, url) if kind == "jsonl" else _columns(table, url):
            if not problem and not (isinstance(name, str) and name):
                problem = "field `file` is empty or no text"
            if problem:
                name, caption, problem = f"{url.rsplit('/', 1)[-1]}#{line}", None, f"line {line}: {problem}"
            spool.append(json.dumps([name, "" if caption is None else caption, problem]))
            # Any text can be a name in JSON, also half a surrogate pair.
            digests += hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=_DIGEST).digest()
    _, first_rows, names = np.unique(np.frombuffer(digests, f"S{_DIGEST}"), return_index=True, return_inverse=True)
    images = np.argsort(np.argsort(first_rows))  # of each name: they are numbered by their first rows
    order, first = by_image(images[names], len(images))
    for n in range(len(images)):
        yield spool.joined(order[first[n] : first[n + 1]].tolist())


def _parquet(file: BinaryIO, url: str) -> Iterator[tuple[int, list[Any], str | None]]:
    """Yield (row, values, None) of a table's columns `file` and `caption`; first their names, as a header."""
    try:
        table = pq.ParquetFile(file)
        types = {field.name: str(field.type) for field in table.schema_arrow}
        columns = [name for name in types if name.strip().lower() in ("file", "caption")]
        for name in columns:
            if not types[name].removeprefix("dictionary<values=").startswith(("string", "large_string")):
                raise ValueError(f"{url}: column {name!r} holds {types[name]}, expected texts")
        yield 0, columns if len(columns) > 1 else [*types], None
        rows = (row for batch in table.iter_batches(columns=columns) for row in batch.to_pylist())
        yield from ((number, list(row.values()), None) for number, row in enumerate(rows, start=1))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{url}: no whole Parquet file ({error})") from error


def _jsonl(file: TextIO, url: str) -> Iterator[tuple[int, Any, Any, str | None]]:
    """Yield (line, file, caption, problem); one object per line. ValueError for a file that is one JSON value."""
    for number, line in enumerate(file, start=1):
        if number == 1 and re.match(r"\s*(\[\s*({|$)|{\s*$)", line):
            raise ValueError(f"{url} begins with {line[:20].strip()!r}, as one JSON list or object; expected {_LINES}")
        if not line.strip():
            continue
        try:
            body = json.loads(line)
        except (ValueError, RecursionError):
            yield number, None, None, "not valid JSON"
            continue
        if isinstance(body, dict) and "file" in body:
            yield number, body["file"], body.get("caption"), None
        else:
            yield number, None, None, "no object with the fields `file` and `caption`"


def _columns(rows: Iterator[tuple[int, list[Any], str | None]], url: str) -> Iterator[tuple[int, Any, Any, str | None]]:
    """Yield (line, file, caption, problem) from the fields of a table, whose first row is the header."""
    _, header, _ = next(rows, (0, [], None))
    names = [name.strip().lower() for name in header]
    if names.count("file") != 1 or names.count("caption") != 1:
        raise ValueError(f"{url}: expected a header with `file` and `caption`, once each, found {header[:10]}")
    file, caption = names.index("file"), names.index("caption")
    spaced = any(name != name.strip() for name in header)  # then so are the fields
    for line, fields, problem in rows:
        too_many = any(fields[len(header) :])
        if problem is None and (too_many or len(fields) <= max(file, caption)):
            problem = f"{len(fields)} fields, expected {len(header)}"
            problem += "; in a .csv, quote a text that holds the separator" if too_many else ""
        if spaced:
            fields = [field and field.strip() for field in fields]
        yield (line, None, None, problem) if problem else (line, fields[file], fields[caption], None)


def _tsv(file: TextIO) -> Iterator[tuple[int, list[str], str | None]]:
    """Yield (line, fields, problem). Nothing is quoted in a .tsv: captions hold quotes."""
    for number, line in enumerate(file, start=1):
        if text := line.removesuffix("\n").rstrip("\r"):
            yield number, text.split("\t"), None


def _csv(file: TextIO, url: str) -> Iterator[tuple[int, list[str], str | None]]:
    """Yield (line, fields, problem). Quoted as spreadsheets do: a row may be of several lines."""
    # Above the csv module's own limit of 128 kB: an overlong caption costs its row, not the file.
    csv.field_size_limit(LARGEST_FIELD)
    header = next(file, "")  # shows what separates the fields
    mark = next((m for m in ",;\t" if "file" in (cell.strip(' "\r\n').lower() for cell in header.split(m))), ",")
    dialect: Any = {"delimiter": mark, "skipinitialspace": f"{mark} " in header}
    lines: list[str] = []  # of the row that is being read
    ended = False

    def remembered() -> Iterator[str]:
        nonlocal ended
        for line in chain([header], file):
            lines.append(line)
            yield line
        ended = True

    # A quote that is left open makes one row of all that follow, up to the next quote or the end of the file.
    reader = csv.reader(remembered(), **dialect)
    try:
        for fields in reader:
            if ended:  # in the middle of a row: outside quotes, a row ends with its line
                raise ValueError(
                    f"{url}, line {reader.line_num - len(lines) + 1}: a quote is opened in this row and not closed up "
                    "to the end of the file; close it, or use .tsv or .jsonl"
                )
            problem = None
            if len(lines) > 1:
                try:
                    next(csv.reader(lines, strict=True, **dialect))
                except csv.Error:
                    problem = (
                        f"{len(lines)} lines held together by a quote, and text behind the closing one: expected "
                        "quotes to be closed, and those inside a text to be doubled"
                    )
            if fields:
                yield reader.line_num, fields, problem
            lines.clear()
    except csv.Error as error:
        raise ValueError(f"{url}, line {reader.line_num}: not valid CSV ({error})") from error
