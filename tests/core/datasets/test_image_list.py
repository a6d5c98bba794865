"""The image list: entries grouped by image, a row group per shard, and all or nothing of it on disk."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from regionclip_core.datasets.image_list import ListedSource, Spool, by_image
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.source import Piece, ShardPlan
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.tars import TarWriter


class Numbers(ListedSource):
    """Images that say their number; from `broken` on, the file can't be read."""

    def __init__(self, folder: Path, count: int, broken: int | None = None) -> None:
        super().__init__("a/b", Folder(str(folder)), "a file")
        self.count, self.broken, self.reads = count, broken, 0

    def _read_files(self) -> tuple[Iterator[bytes], dict[str, Any]]:
        self.reads += 1

        def documents() -> Iterator[bytes]:
            for number in range(self.count):
                if number == self.broken:
                    raise ValueError("broken")
                yield json.dumps({"number": number}).encode()

        return documents(), {"lost": 7}

    def file_names(self, piece: Piece) -> Iterator[str]:
        return (f"{document['number']}.jpg" for document in self._documents(piece))

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        for document in self._documents(plan.piece):
            yield IndexRow(str(document["number"]), document["number"])


def test_entries_by_image_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 5, 40):
        images = rng.integers(-1, count, 60)
        order, first = by_image(images, count)
        for n in range(count):
            assert order[first[n] : first[n + 1]].tolist() == [i for i, image in enumerate(images) if image == n]


def test_texts_come_back_in_any_order_and_with_the_bytes_they_had() -> None:
    spool, texts = Spool(), ['"é"', '"caf\udce9"', "1", "[2, 3]"]
    assert [spool.append(text) for text in texts] == [0, 1, 2, 3]
    assert spool.joined([3, 0, 3]) == '[[2, 3], "é", [2, 3]]'.encode()
    assert spool.joined([1]) == b'["caf\xe9"]'
    assert spool.joined([]) == b"[]"


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    spool = Spool()
    monkeypatch.setattr(spool, "_file", Full())
    monkeypatch.setattr("tempfile.gettempdir", lambda: "/some/disk")
    with pytest.raises(OSError, match=r"No space left on device: '/some/disk'"):
        spool.append("1")


def test_a_worker_reads_the_row_group_of_its_shard(tmp_path: Path) -> None:
    driver, worker = Numbers(tmp_path, 11), Numbers(tmp_path, 0)
    pieces = driver.pieces(4)
    assert worker.pieces(4) == pieces == [Piece(0, 4), Piece(4, 8, ordinal=1), Piece(8, 11, ordinal=2)]
    assert (driver.reads, worker.reads) == (1, 0)
    assert worker._facts == {"lost": 7}
    listed = pq.ParquetFile(tmp_path / "a%2Fb.parquet")
    assert [listed.metadata.row_group(i).num_rows for i in range(listed.num_row_groups)] == [4, 4, 3]
    for piece in reversed(pieces):
        rows = list(worker.samples(ShardPlan(0, "a/b", piece), None))
        assert [row.image_id for row in rows] == list(range(piece.start, piece.stop))


def test_a_file_that_breaks_off_leaves_no_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"):
        Numbers(tmp_path, 11, broken=9).pieces(4)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"data\.splits\.a/b: no images are listed in a file"):
        Numbers(tmp_path, 0).pieces(4)
