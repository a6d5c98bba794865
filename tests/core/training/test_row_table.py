"""Rows on disk are the rows of the index, in its order, and leave nothing behind."""

from __future__ import annotations

import gc
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from regionclip_core.datasets.index import IndexRow, index_name, read_index, read_index_table, write_index
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import INDEX, PROPOSED
from regionclip_core.training import row_table
from regionclip_core.training.row_table import RowTable


def same(one: IndexRow, other: IndexRow) -> bool:
    """Every field alike, also in type and precision."""
    for field in fields(IndexRow):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
            if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
                return False
        elif a != b or type(a) is not type(b):
            return False
    return True


def random_row(rng: np.random.Generator, number: int) -> IndexRow:
    count = int(rng.integers(0, 4))
    lvis = bool(rng.uniform() < 0.5)
    bad = bool(rng.uniform() < 0.2)
    return IndexRow(
        key=f"train/ä{number}",
        image_id=number * 2**33,
        url=f"images-{number % 3}.tar",
        offset=number * 2**32,
        size=int(rng.integers(1, 99)),
        width=int(rng.integers(1, 99)),
        height=int(rng.integers(1, 99)),
        captions=[f"caption {n} ☃" for n in range(rng.integers(0, 3))],
        boxes=rng.uniform(0, 99, (count, 4)).astype(np.float32),
        box_labels=rng.integers(-1, 5, count).astype(np.int32),
        box_crowd=rng.uniform(size=count) < 0.3,
        box_area=rng.uniform(0, 99, count).astype(np.float32),
        box_masks=[rng.bytes(int(rng.integers(0, 9))) for _ in range(count)],
        neg_labels=rng.integers(0, 5, 3).astype(np.int32) if lvis else None,
        not_exhaustive_labels=np.zeros(0, np.int32) if lvis else None,
        status="bad_image" if bad else "ok",
        reason="torn" if bad else None,
    )


@pytest.fixture
def data(tmp_path: Path) -> Folder:
    """Shards of 7, 0, 1 and 12 rows."""
    folder, rng = Folder(str(tmp_path / "data")), np.random.default_rng(0)
    for shard, count in enumerate((7, 0, 1, 12)):
        with folder.write(index_name(shard)) as file:
            write_index(file, [random_row(rng, 100 * shard + n) for n in range(count)], "digest")
    return folder


@pytest.mark.parametrize("part", [1024, 5, 3])
def test_rows_are_those_of_the_index(data: Folder, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    """Whatever the parts of the file."""
    monkeypatch.setattr(row_table, "_BATCH_ROWS", part)
    expected = [row for shard in range(4) for row in read_index(data, shard)]
    rows = RowTable(read_index_table(data, shard) for shard in range(4))
    assert len(rows) == len(expected) == 20
    for number in np.random.default_rng(1).permutation(20).tolist():
        assert same(rows[number], expected[number])
        assert rows.value("captions", number) == expected[number].captions
        assert rows.boxes("boxes", number).tobytes() == expected[number].boxes.tobytes()
    for name in ("box_labels", "box_crowd"):
        for found, row in zip(rows.lists(name), expected, strict=True):
            assert found.tolist() == getattr(row, name).tolist()
    for number in (20, -1):
        with pytest.raises(IndexError):
            rows[number]


def test_columns_that_are_left_out_and_added(data: Folder) -> None:
    names = [name for name in INDEX.names if name not in ("box_masks", "captions")]
    boxes = [[[float(n), 0.0, n + 1.5, 2.0]] * (n % 3) for n in range(7)]
    table = read_index_table(data, 0, columns=names).append_column(PROPOSED, pa.array(boxes, PROPOSED.type))
    rows = RowTable([table])
    for number, row in enumerate(read_index(data, 0)):
        assert rows[number].box_masks == rows[number].captions == ()
        assert rows[number].boxes.tobytes() == row.boxes.tobytes()
        assert rows.boxes(PROPOSED.name, number).tolist() == boxes[number]
    assert len(RowTable([])) == len(RowTable([table.slice(0, 0)])) == 0


def test_the_file_has_no_name_and_goes_with_the_table(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))

    def mapped() -> bool:
        return str(scratch) in Path("/proc/self/maps").read_text()

    if not os.path.exists("/proc/self/maps"):
        pytest.skip("needs /proc")
    rows = RowTable(read_index_table(data, shard) for shard in range(4))
    assert rows[3].key == read_index(data, 0)[3].key
    assert mapped()
    assert list(scratch.iterdir()) == []
    del rows
    gc.collect()
    assert not mapped()
