"""A folder of images and one caption file: .jsonl, .csv or .tsv with the fields `file` and `caption`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from regionclip_core.checks import clean_captions, printable, reasons, unsafe_name
from regionclip_core.config import FolderSplit
from regionclip_core.images import BadImage, check_image, read_image_file
from regionclip_core.index import IndexRow
from regionclip_core.locations import absolute, join, read_location
from regionclip_core.sources import Found, Piece, ShardPlan, Source, even_pieces
from regionclip_core.tars import TarWriter


@dataclass
class Entry:
    """One image of the caption file with all its captions, or (without a file) one line that can't be used."""

    file: str
    captions: list[object] = field(default_factory=list)
    problem: str | None = None


class FolderSource(Source):
    """Images by the file names of a caption file, in the order of their first row; each is decoded once."""

    def __init__(self, name: str, split: FolderSplit) -> None:
        self._name, self._split = name, split
        self._images = absolute(split.images)
        self._entries: list[Entry] | None = None

    def pieces(self, shard_size: int) -> list[Piece]:
        return even_pieces(len(self._load()), shard_size)

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        entries = self._load()
        for number in range(plan.piece.start, plan.piece.stop):
            yield self._sample(entries[number], number)

    def _load(self) -> list[Entry]:
        if self._entries is None:
            self._entries = read_captions(absolute(self._split.captions))
        return self._entries

    def _sample(self, entry: Entry, number: int) -> Found:
        key = printable(entry.file)
        if entry.problem is not None:
            return Found(IndexRow(key, number, status="bad_caption", reason=entry.problem))
        unsafe = unsafe_name(entry.file)
        if unsafe is not None:
            return Found(IndexRow(key, number, status="bad_unsafe_member", reason=unsafe))
        url = join(self._images, entry.file)
        try:
            data = read_image_file(url)
            header = check_image(data)
        except BadImage as error:
            return Found(IndexRow(key, number, url, status=error.status, reason=error.reason))
        captions, dropped = clean_captions(entry.captions)
        row = IndexRow(
            key,
            number,
            url,
            size=len(data),
            width=header.width,
            height=header.height,
            captions=captions,
            status="ok" if captions else "bad_caption",
            reason=reasons(dropped),
        )
        return Found(row, ("lost_caption",) * bool(captions and dropped))


def read_captions(url: str) -> list[Entry]:
    """Group the rows of a caption file by image.

    Raises:
        ValueError: of no known kind, or the fields `file` and `caption` are missing.
        FileNotFoundError: no such file.
    """
    # Bytes that are not UTF-8 become lone surrogates: they cost their caption, not the file.
    text = read_location(url).decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    kind = url.rsplit(".", 1)[-1].lower()
    if kind == "jsonl":
        rows = _json_lines(text)
    elif kind in ("csv", "tsv"):
        rows = _table(_csv_rows(text, url) if kind == "csv" else _tsv_rows(text), url)
    else:
        raise ValueError(f"caption file {url} ends in .{kind}, expected .jsonl, .csv or .tsv")
    entries: dict[str, Entry] = {}
    for line, file, caption in rows:
        if not isinstance(file, str) or not file:
            name = f"{url.rsplit('/', 1)[-1]}#{line}"
            problem = caption if file is None else "field `file` is empty or no text"
            entries[name] = Entry(name, problem=f"line {line}: {problem}")
            continue
        entries.setdefault(file, Entry(file)).captions.append("" if caption is None else caption)
    return list(entries.values())


def _json_lines(text: str) -> Iterator[tuple[int, object, object]]:
    """(line number, file, caption); for a line that can't be read (line number, None, what is wrong)."""
    for line, raw in enumerate(text.split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            yield line, None, "not valid JSON"
            continue
        if not isinstance(body, dict) or "file" not in body:
            yield line, None, "no object with the fields `file` and `caption`"
            continue
        yield line, body["file"], body.get("caption")


def _tsv_rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields). Nothing is quoted in a .tsv: captions hold quotes."""
    for line, raw in enumerate(text.split("\n"), start=1):
        if raw.strip("\r"):
            yield line, raw.rstrip("\r").split("\t")


def _csv_rows(text: str, url: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields), quoted as spreadsheets do."""
    # Not the csv module's own limit of 128 kB: an overlong caption is its row's problem, not the file's.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{url}, line {reader.line_num}: not valid CSV ({error})") from error


def _table(rows: Iterator[tuple[int, list[str]]], url: str) -> Iterator[tuple[int, object, object]]:
    """(line number, file, caption); for a line that can't be read (line number, None, what is wrong)."""
    _, header = next(rows, (0, []))
    if "file" not in header or "caption" not in header:
        raise ValueError(f"{url}: expected a header with `file` and `caption`, found {header[:10]}")
    file, caption = header.index("file"), header.index("caption")
    for line, row in rows:
        if len(row) <= max(file, caption):
            yield line, None, f"{len(row)} fields, expected {len(header)}"
        else:
            yield line, row[file], row[caption]
