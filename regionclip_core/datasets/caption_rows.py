"""The rows of a caption file, .jsonl, .csv or .tsv with the fields `file` and `caption`, and where each one stands.

A file is read row by row, and any row can be read again from its bytes alone. Bytes that are not UTF-8 become lone
surrogates: they cost their caption, not the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

LARGEST_ROW = 1 << 26
"""Bytes of a row, at most: what bounds the memory."""


class Place(NamedTuple):
    """Where a row stands."""

    offset: int
    bytes: int
    line: int
    """Number of its last line."""
    crc: int
    """CRC-32 of its bytes; 0 for a row that is too large to read."""


class CaptionRow(NamedTuple):
    """What a row says: a file and its caption; or, where `problem` is set, why it can't be used."""

    file: str = ""
    caption: object = ""
    problem: str | None = None


class _BadRow(ValueError):
    """A row that can't be used; the message says why."""


def caption_rows(url: str) -> CaptionRows:
    """The reader of a caption file's kind. ValueError when it is of no known kind."""
    kinds: dict[str, type[CaptionRows]] = {"jsonl": _JsonRows, "csv": _CsvRows, "tsv": _TsvRows}
    ending = url.rsplit(".", 1)[-1].lower()
    if ending not in kinds:
        raise ValueError(f"caption file {url} ends in .{ending}, expected .jsonl, .csv or .tsv")
    return kinds[ending](url)


class CaptionRows:
    """Rows that are lines."""

    has_header = True

    def __init__(self, url: str) -> None:
        self._url = url
        self._width, self._file, self._caption = 0, -1, -1

    def places(self, file: BinaryIO) -> Iterator[tuple[Place, str]]:
        """Place and text of each row that is not empty, no text if it is too large; first comes the header, if any.

        Raises:
            ValueError: from here on the file can't be cut into rows.
        """
        offset = line = 0
        while raw := file.readline(LARGEST_ROW + 1):
            line += 1
            size = len(raw)
            if size > LARGEST_ROW:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(1 << 20)
                    size += len(raw)
                yield Place(offset, size, line, 0), ""
            else:
                text = _decode(raw, offset)
                if not self._is_empty(text):
                    yield Place(offset, size, line, zlib.crc32(raw)), text
            offset += size

    def _is_empty(self, text: str) -> bool:
        return not text.removesuffix("\n").strip("\r")

    def _fields(self, text: str) -> list[str]:
        raise NotImplementedError

    def set_header(self, text: str) -> None:
        """Find the columns. ValueError when they are not there."""
        header = self._fields(text) if text else []
        if "file" not in header or "caption" not in header:
            raise ValueError(f"{self._url}: expected a header with `file` and `caption`, found {header[:10]}")
        self._width, self._file, self._caption = len(header), header.index("file"), header.index("caption")

    def row(self, place: Place, text: str) -> CaptionRow:
        """What a row says; `text` is of its bytes."""
        if self.is_too_large(place):
            problem = f"{place.bytes} bytes, at most {LARGEST_ROW}"
        else:
            try:
                return self._read(text)
            except _BadRow as error:
                problem = str(error)
        return CaptionRow(problem=f"line {place.line}: {problem}")

    def is_too_large(self, place: Place) -> bool:
        """Whether the row is not to be read at all."""
        return place.bytes > LARGEST_ROW

    def decode(self, place: Place, data: bytes) -> str:
        """The text of a row from its bytes. ValueError when they are others than were scanned."""
        if len(data) != place.bytes or zlib.crc32(data) != place.crc:
            raise ValueError(f"{self._url} has changed since this run began; run again")
        return _decode(data, place.offset)

    def _read(self, text: str) -> CaptionRow:
        """Raises _BadRow."""
        fields = self._fields(text)
        if len(fields) <= max(self._file, self._caption):
            raise _BadRow(f"{len(fields)} fields, expected {self._width}")
        return _row(fields[self._file], fields[self._caption])


class _JsonRows(CaptionRows):
    """One object a line."""

    has_header = False

    def _is_empty(self, text: str) -> bool:
        return not text.strip()

    def _read(self, text: str) -> CaptionRow:
        try:
            body = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _BadRow("not valid JSON") from error
        if not isinstance(body, dict) or "file" not in body:
            raise _BadRow("no object with the fields `file` and `caption`")
        return _row(body["file"], body.get("caption"))


class _TsvRows(CaptionRows):
    """Nothing is quoted in a .tsv: captions hold quotes."""

    def _fields(self, text: str) -> list[str]:
        return text.removesuffix("\n").rstrip("\r").split("\t")


_LINE_END = re.compile(r"\r\n|\r|\n")
# Fields, quoted or not, and behind them a quote that is not closed.
_BEFORE_OPEN_QUOTE = re.compile(r'(?:(?:"(?:[^"]++|"")*+"[^,\r\n]*+|[^",\r\n][^,\r\n]*+)?+,)*+"')


class _CsvRows(CaptionRows):
    """Quoted as spreadsheets do: a row may be of several lines. A quote left open takes in the rows that follow."""

    def places(self, file: BinaryIO) -> Iterator[tuple[Place, str]]:
        lines = _CountedLines(file, self._url)
        try:
            for fields in _csv_reader(lines):
                if lines.ended:  # inside quotes: a row outside them ends with its line
                    raise ValueError(
                        f"{self._url}, line {_open_quote(lines)}: a quote is opened and not closed up to the end of "
                        "the file; close it, or use .tsv or .jsonl"
                    )
                if fields:
                    yield lines.place(), lines.text()
                lines.next_row()
        except csv.Error as error:
            raise ValueError(f"{self._url}, line {lines.number}: not valid CSV ({error})") from error

    def _fields(self, text: str) -> list[str]:
        return next(_csv_reader(io.StringIO(text, newline="")))

    def _read(self, text: str) -> CaptionRow:
        lines = len(_LINE_END.findall(text.rstrip("\r\n"))) + 1
        if lines > 1:
            try:
                next(_csv_reader(io.StringIO(text, newline=""), strict=True))
            except csv.Error as error:
                raise _BadRow(
                    f"{lines} lines held together by a quote, and text behind the closing one: expected quotes to be "
                    "closed, and those inside a text to be doubled"
                ) from error
        return super()._read(text)


def _open_quote(lines: _CountedLines) -> int:
    """Number of the line in which the row that was read last opens a quote that it does not close."""
    before = _BEFORE_OPEN_QUOTE.match(lines.text())
    assert before is not None
    return lines.first_number() + len(_LINE_END.findall(before[0]))


class _CountedLines:
    """The lines of a file, ended as the csv module wants them, and the bytes of those since the last row's end."""

    def __init__(self, file: BinaryIO, url: str) -> None:
        self._lines = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="")
        self._url = url
        self._start = self._bytes = self._crc = 0
        self._parts: list[str] = []
        self.number = 0
        """Of the last line."""
        self.ended = False
        """Whether the csv module asked for more lines than there are."""

    def __iter__(self) -> Iterator[str]:
        while line := self._lines.readline(LARGEST_ROW + 1):
            data = line.encode("utf-8", "surrogateescape")
            self._bytes += len(data)
            if self._bytes > LARGEST_ROW:
                raise ValueError(
                    f"{self._url}, line {self.number + 1}: a row of more than {LARGEST_ROW} bytes, which starts at "
                    f"byte {self._start}; expected a quote to be closed before. Mend the file, or use .tsv or .jsonl"
                )
            self.number += 1
            self._crc = zlib.crc32(data, self._crc)
            text = line.removeprefix("\ufeff") if self.number == 1 else line
            self._parts.append(text)
            yield text
        self.ended = True

    def first_number(self) -> int:
        """Of the row's first line."""
        return self.number - len(self._parts) + 1

    def place(self) -> Place:
        return Place(self._start, self._bytes, self.number, self._crc)

    def text(self) -> str:
        return "".join(self._parts)

    def next_row(self) -> None:
        self._start += self._bytes
        self._bytes = self._crc = 0
        self._parts.clear()


def _csv_reader(lines: io.StringIO | _CountedLines, strict: bool = False) -> Iterator[list[str]]:
    # Not the csv module's own limit of 128 kB: an overlong caption is its row's problem, not the file's.
    csv.field_size_limit(2**31 - 1)
    return csv.reader(lines, strict=strict)


def _row(file: object, caption: object) -> CaptionRow:
    if not isinstance(file, str) or not file:
        raise _BadRow("field `file` is empty or no text")
    return CaptionRow(file, "" if caption is None else caption)


def _decode(data: bytes, offset: int) -> str:
    text = data.decode("utf-8", "surrogateescape")
    return text.removeprefix("\ufeff") if offset == 0 else text
