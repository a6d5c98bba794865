"""A folder of images and one caption file: .jsonl, .csv or .tsv with the fields `file` and `caption`."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from urllib.parse import quote

from regionclip_core.config.tree import FolderSplit
from regionclip_core.datasets.caption_rows import CaptionRow
from regionclip_core.datasets.caption_scan import CaptionScan
from regionclip_core.datasets.cleaning import clean_captions, reasons
from regionclip_core.datasets.images import BadImage, check_image, read_image_file
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.source import Found, Piece, ShardPlan, Source, even_pieces
from regionclip_core.storage.locations import absolute, join, printable, unsafe_name
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tars import TarWriter


class FolderSource(Source):
    """Images by the file names of a caption file, in the order of their first row; each is decoded once."""

    def __init__(self, name: str, split: FolderSplit, scratch: Folder | None = None) -> None:
        """`scratch` is a folder for where the rows of each image stand in the caption file; None: a temporary one."""
        self._name, self._split = name, split
        self._images = absolute(split.images)
        if scratch is None:
            self._own = TemporaryDirectory(prefix="regionclip-captions-")
            scratch = Folder(self._own.name)
        self._scratch = scratch
        self._scan: CaptionScan | None = None

    def pieces(self, shard_size: int) -> list[Piece]:
        count = len(self._scanned())
        if count == 0:
            where = f"data.splits.{self._name}.captions"
            raise ValueError(f"{where}: no images are named in {self._split.captions}; give another file or drop it")
        return even_pieces(count, shard_size)

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        piece = plan.piece
        images = self._scanned().images(piece.start, piece.stop)
        for number, (file, rows) in enumerate(images, start=piece.start):
            yield self._sample(file, rows, number)

    def _scanned(self) -> CaptionScan:
        """Once a run, by whoever asks first: the driver, when it counts the images."""
        if self._scan is None:
            self._scan = CaptionScan(absolute(self._split.captions), self._scratch, quote(self._name, safe=""))
        return self._scan

    def _sample(self, file: str, rows: list[CaptionRow], number: int) -> Found:
        key = printable(file)
        problems = [row.problem for row in rows if row.problem is not None]
        if problems:
            return Found(IndexRow(key, number, status="bad_caption", reason=problems[-1]))
        unsafe = unsafe_name(file)
        if unsafe is not None:
            return Found(IndexRow(key, number, status="bad_unsafe_member", reason=unsafe))
        url = join(self._images, file)
        try:
            data = read_image_file(url)
            header = check_image(data)
        except BadImage as error:
            return Found(IndexRow(key, number, url, status=error.status, reason=error.reason))
        captions, dropped = clean_captions(row.caption for row in rows)
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
