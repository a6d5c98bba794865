"""WebDataset tars in img2dataset's layout: `<key>.jpg`, `<key>.txt`, `<key>.json`. One tar is one shard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO, cast

from regionclip_core.config.tree import TarsSplit
from regionclip_core.datasets.cleaning import clean_captions, reasons
from regionclip_core.datasets.images import EXTENSIONS, MAX_BYTES, REMOTE_BLOCK, BadImage, check_image
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.source import Piece, ShardPlan, Source
from regionclip_core.storage.locations import list_files, open_location, printable
from regionclip_core.storage.tars import BadTar, TarSample, TarWriter, scan_tar

ID_STRIDE = 10_000_000
"""Image ids of tar number t begin at t * ID_STRIDE: a tar's length is not known before it is read."""
_MAX_TEXT = 2**24  # bytes of a .txt or .json member that are read


class TarsSource(Source):
    """Samples of tars. Later stages read the images in place, by offset: nothing is copied.

    Captions come from `.txt`, else from `caption` in `.json`. A key is `<tar's name>/<key in the tar>`, since many sets
    begin to number their samples again in each tar. Every image is decoded once (JPEGs at an eighth of their size), so
    that a bad one is known before any model sees it.
    """

    def __init__(self, split: TarsSplit) -> None:
        self._split = split

    def pieces(self, shard_size: int) -> list[Piece]:
        urls = [url for url, _ in list_files(self._split.urls)]
        names = [url.rsplit("/", 1)[-1].rsplit(".", 1)[0] for url in urls]
        if len(set(names)) < len(names):
            names = [f"{number:05d}" for number in range(len(urls))]
        return [Piece(url=url, name=name, ordinal=i) for i, (url, name) in enumerate(zip(urls, names, strict=True))]

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        """Yield a row for each sample, and one more where members came twice."""
        piece = plan.piece
        number = piece.ordinal * ID_STRIDE
        seen: set[str] = set()
        with open_location(piece.url, REMOTE_BLOCK) as file:
            try:
                for sample in scan_tar(file):
                    if number + 2 + len(sample.members) > (piece.ordinal + 1) * ID_STRIDE:
                        raise ValueError(f"{piece.url} has more than {ID_STRIDE} samples; split it into smaller tars")
                    key = f"{piece.name}/{printable(sample.key)}"
                    dotted = [e for e in sample.members if e.rsplit(".", 1)[-1] in EXTENSIONS and not sample.unsafe]
                    if dotted and not EXTENSIONS & sample.members.keys():
                        for name in map(printable, dotted):
                            reason = (
                                f"one of {len(dotted)} images with the key {printable(sample.key)!r}: WebDataset cuts "
                                "names at the first dot, so that keys must have none; write the tar with other keys"
                            )
                            place = (f"{key}.{name}#{number}", number, piece.url)
                            yield IndexRow(*place, status="bad_image", reason=reason)
                            number += 1
                        continue
                    again = "second sample with this key in the tar" if key in seen else None
                    if again is None:
                        seen.add(key)
                        yield _row(sample, file, piece, key, number)
                        number += 1
                        if sample.repeated:
                            what = ", ".join(sorted(set(sample.repeated)))
                            again = f"second sample with this key in the tar (its {what} came twice)"
                    if again is not None:
                        # The number keeps the row's key unique.
                        yield IndexRow(f"{key}#{number}", number, piece.url, status="bad_duplicate_key", reason=again)
                        number += 1
            except BadTar as error:
                whole_name = printable(piece.url.rsplit("/", 1)[-1])  # with .tar.gz, which is what may be wrong
                key = whole_name if whole_name.startswith(piece.name) else f"{piece.name}/{whole_name}"
                yield IndexRow(f"{key}#damaged", number, piece.url, status="bad_tar", reason=str(error))


def _row(sample: TarSample, file: BinaryIO, piece: Piece, key: str, number: int) -> IndexRow:
    if sample.unsafe:
        return IndexRow(key, number, piece.url, status="bad_unsafe_member", reason=reasons(sample.unsafe))
    extension = next((e for e in sample.members if e in EXTENSIONS), None)
    if extension is None:
        reason = f"no image among the members {', '.join(printable(e) for e in sample.members)}"[:500]
        return IndexRow(key, number, piece.url, status="bad_image", reason=reason)
    offset, size = sample.members[extension]
    try:
        if size > MAX_BYTES:
            raise BadImage("bad_image", f"image of {size} bytes, at most {MAX_BYTES}")
        header = check_image(_read(file, offset, size))
    except BadImage as error:
        return IndexRow(key, number, piece.url, offset, size, status=error.status, reason=error.reason)
    captions, dropped = _captions(sample, file)
    status, problem = "ok", reasons(dropped)
    if not captions:
        status, problem = "bad_caption", problem or "no caption: neither a .txt member nor `caption` in a .json one"
    place = (piece.url, offset, size, header.width, header.height)
    return IndexRow(key, number, *place, captions, status=status, reason=problem)


def _captions(sample: TarSample, file: BinaryIO) -> tuple[list[str], list[str]]:
    """Return the captions, and why others were dropped."""
    kind = next((kind for kind in ("txt", "json") if kind in sample.members), None)
    if kind is None:
        return [], []
    offset, size = sample.members[kind]
    if size > _MAX_TEXT:
        return [], [f"{kind} member of {size} bytes, at most {_MAX_TEXT}"]
    caption: object = _read(file, offset, size)
    if kind == "json":
        try:
            body = json.loads(cast(bytes, caption).decode("utf-8-sig", "surrogateescape"))
        except (ValueError, RecursionError):
            return [], ["json member is not valid JSON"]
        caption = body.get("caption") if isinstance(body, dict) else None
    return clean_captions([] if caption is None else [caption])


def _read(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
