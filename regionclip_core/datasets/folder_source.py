"""A folder of images and one caption file: .jsonl, .csv or .tsv with the fields `file` and `caption`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from regionclip_core.config.tree import FolderSplit
from regionclip_core.datasets.caption_file import caption_rows_by_image
from regionclip_core.datasets.cleaning import clean_captions, reasons
from regionclip_core.datasets.image_list import ListedSource
from regionclip_core.datasets.images import BadImage, check_image, read_image_file
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.source import ShardPlan
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import absolute, join, printable, unsafe_name
from regionclip_core.storage.tars import TarWriter


class FolderSource(ListedSource):
    """Images by the file names of a caption file, in the order of their first row; each is decoded once."""

    def __init__(self, name: str, split: FolderSplit, scratch: Folder) -> None:
        super().__init__(name, scratch, f"captions: {split.captions}")
        self._captions, self._images = absolute(split.captions), absolute(split.images)

    def _read_files(self) -> tuple[Iterator[bytes], dict[str, Any]]:
        return caption_rows_by_image(self._captions), {}

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        for number, rows in enumerate(self._documents(plan.piece), start=plan.piece.start):
            file = rows[0][0]
            key = printable(file)
            problems = [problem for _, _, problem in rows if problem is not None]
            if problems:
                yield IndexRow(key, number, status="bad_caption", reason=problems[-1])
                continue
            unsafe = unsafe_name(file)
            if unsafe is not None:
                yield IndexRow(key, number, status="bad_unsafe_member", reason=unsafe)
                continue
            url = join(self._images, file)
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
