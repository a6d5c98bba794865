"""WebDataset tars in img2dataset's layout: `<key>.jpg`, `<key>.txt`, `<key>.json`. One tar is one shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from regionclip_core.config.tree import TarsSplit
from regionclip_core.datasets.cleaning import clean_captions, reasons, stem
from regionclip_core.datasets.images import EXTENSIONS, MAX_BYTES, BadImage, check_image
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.source import Found, Piece, ShardPlan, Source
from regionclip_core.storage.locations import list_files, open_location, printable
from regionclip_core.storage.tars import BadTar, TarSample, TarWriter, scan_tar

ID_STRIDE = 10_000_000
"""Image ids of tar number t begin at t * ID_STRIDE: a tar's length is not known before it is read."""
_MAX_TEXT = 2**24  # bytes of a .txt or .json member that are read
_BLOCK = 2**23  # bytes fetched at a time from a remote tar


class TarsSource(Source):
    """Samples of tars, read in place by offset later on: nothing is copied.

    Captions come from `.txt`, else from `caption` in `.json`. A key is `<tar's name>/<key in the tar>`, since many sets
    number their samples anew in each tar. Every image is decoded once (JPEGs at an eighth), so that a bad one is
    known before any model sees it.
    """

    def __init__(self, name: str, split: TarsSplit) -> None:
        self._name, self._split = name, split

    def pieces(self, shard_size: int) -> list[Piece]:
        urls = [url for url, _ in list_files(self._split.urls)]
        names = [stem(url) for url in urls]
        if len(set(names)) < len(names):
            names = [f"{number:05d}" for number in range(len(urls))]
        return [Piece(url=url, name=name, ordinal=i) for i, (url, name) in enumerate(zip(urls, names, strict=True))]

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        piece = plan.piece
        seen: set[str] = set()
        number = piece.ordinal * ID_STRIDE
        with open_location(piece.url, _BLOCK) as file:
            scan = scan_tar(file)
            while True:
                try:
                    sample = next(scan, None)
                except BadTar as error:
                    row = IndexRow(f"{piece.name}/#damaged", number, piece.url, status="bad_tar", reason=str(error))
                    yield Found(row)
                    return
                if sample is None:
                    return
                if number + 2 > (piece.ordinal + 1) * ID_STRIDE:
                    raise ValueError(f"{piece.url} has more than {ID_STRIDE} samples; split it into smaller tars")
                for found in _found(sample, file, piece, number, seen):
                    yield found
                    number += 1


def _found(sample: TarSample, file: BinaryIO, piece: Piece, number: int, seen: set[str]) -> Iterator[Found]:
    """The sample's row, and one more where members came twice."""
    key = f"{piece.name}/{printable(sample.key)}"
    first = key not in seen
    seen.add(key)
    if not first:
        yield _duplicate(key, number, piece, "second sample with this key in the tar")
        return
    yield _one(sample, file, piece, key, number)
    if sample.repeated:
        what = ", ".join(sorted(set(sample.repeated)))
        yield _duplicate(key, number + 1, piece, f"second sample with this key in the tar (its {what} came twice)")


def _duplicate(key: str, number: int, piece: Piece, reason: str) -> Found:
    # The number keeps the row's key unique.
    row = IndexRow(f"{key}#{number}", number, piece.url, status="bad_duplicate_key", reason=reason)
    return Found(row)


def _one(sample: TarSample, file: BinaryIO, piece: Piece, key: str, number: int) -> Found:
    if sample.unsafe:
        reason = reasons(sample.unsafe)
        return Found(IndexRow(key, number, piece.url, status="bad_unsafe_member", reason=reason))
    extension = next((e for e in sample.members if e in EXTENSIONS), None)
    if extension is None:
        reason = f"no image among the members {', '.join(printable(e) for e in sample.members)}"[:500]
        return Found(IndexRow(key, number, piece.url, status="bad_image", reason=reason))
    offset, size = sample.members[extension]
    captions, dropped = _captions(sample, file)
    try:
        if size > MAX_BYTES:
            raise BadImage("bad_image", f"image of {size} bytes, at most {MAX_BYTES}")
        header = check_image(_read(file, (offset, size)))
    except BadImage as error:
        row = IndexRow(key, number, piece.url, offset, size, status=error.status, reason=error.reason)
        return Found(row)
    status, reason = "ok", reasons(dropped)
    if not captions:
        status, reason = "bad_caption", reason or "no caption: neither a .txt member nor `caption` in a .json one"
    row = IndexRow(
        key, number, piece.url, offset, size, header.width, header.height, captions, status=status, reason=reason
    )
    return Found(row)


def _captions(sample: TarSample, file: BinaryIO) -> tuple[list[str], list[str]]:
    """(captions, why others were dropped)."""
    text = sample.members.get("txt")
    if text is not None:
        if text[1] > _MAX_TEXT:
            return [], [f"caption member of {text[1]} bytes"]
        return clean_captions([_read(file, text)])
    member = sample.members.get("json")
    if member is None:
        return [], []
    if member[1] > _MAX_TEXT:
        return [], [f"json member of {member[1]} bytes"]
    try:
        body = json.loads(_read(file, member).decode("utf-8", "surrogateescape").removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return [], ["json member is not valid JSON"]
    caption = body.get("caption") if isinstance(body, dict) else None
    return clean_captions([] if caption is None else [caption])


def _read(file: BinaryIO, member: tuple[int, int]) -> bytes:
    file.seek(member[0])
    return file.read(member[1])
