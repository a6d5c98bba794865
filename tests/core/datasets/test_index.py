"""The index: what is written is read back, and its bytes depend on the rows alone."""

from __future__ import annotations

import io

import numpy as np
import pyarrow.parquet as pq
import pytest

from regionclip_core.datasets.index import IndexRow, read_index, split_shards, write_index
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import INDEX


def some_rows() -> list[IndexRow]:
    rng = np.random.default_rng(0)
    rows = []
    for i, n in enumerate([2, 0, 5]):
        corners = np.sort(rng.uniform(0, 100, (n, 2, 2)), axis=1).reshape(n, 4).astype(np.float32)
        rows.append(
            IndexRow(
                key=f"a/b.{i} Ω",
                image_id=2**40 + i,
                url="images-00003.tar",
                offset=2**35 + i,
                size=77,
                width=100,
                height=90,
                captions=["one", "two, “quoted”"][:i],
                boxes=corners,
                box_labels=rng.integers(-1, 5, n).astype(np.int32),
                box_crowd=rng.random(n) > 0.5,
                box_area=rng.random(n).astype(np.float32),
                box_masks=[bytes([48 + j]) * j for j in range(n)] if i else [],
                neg_labels=np.arange(i, dtype=np.int32) if i else None,
                not_exhaustive_labels=np.arange(2 * i, dtype=np.int32) if i < 2 else None,
            )
        )
    return [*rows, IndexRow("bad", 9, status="bad_image", reason="empty file (0 bytes)")]


def test_round_trip(tmp_path) -> None:
    folder = Folder(str(tmp_path))
    with folder.write("index-00003.parquet") as file:
        write_index(file, some_rows(), "digest")
    found = read_index(folder, 3, "digest")
    assert len(found) == 4
    for row, expected in zip(found, some_rows(), strict=True):
        for name in INDEX.names:
            value, wanted = getattr(row, name), getattr(expected, name)
            if isinstance(wanted, np.ndarray):
                np.testing.assert_array_equal(value, wanted)
                assert value.dtype == wanted.dtype
                assert value.shape == wanted.shape
            else:
                assert value == wanted or list(value) == list(wanted)
    assert [row.ok for row in found] == [True, True, True, False]


def test_schema_is_the_declared_one(tmp_path) -> None:
    buffer = io.BytesIO()
    write_index(buffer, some_rows(), "digest")
    assert pq.read_schema(io.BytesIO(buffer.getvalue())).remove_metadata().equals(INDEX)
    again = io.BytesIO()
    write_index(again, some_rows(), "digest")
    assert again.getvalue() == buffer.getvalue()


def test_no_rows(tmp_path) -> None:
    folder = Folder(str(tmp_path))
    with folder.write("index-00000.parquet") as file:
        write_index(file, [], "digest")
    assert read_index(folder, 0) == []


def test_another_vocabulary_is_refused(tmp_path) -> None:
    folder = Folder(str(tmp_path))
    with folder.write("index-00000.parquet") as file:
        write_index(file, some_rows(), "aaa")
    with pytest.raises(ValueError, match="vocabulary aaa, expected bbb"):
        read_index(folder, 0, "bbb")


def test_split_shards(tmp_path) -> None:
    folder = Folder(str(tmp_path))
    folder.write_json("splits.json", {"a": {"shards": [0, 1], "images": 7}, "b": {"shards": [2], "images": 3}})
    assert split_shards(folder, ["b", "a"]) == [0, 1, 2]
    assert split_shards(folder, ["b"]) == [2]
    with pytest.raises(ValueError, match=r"no split 'c'.*\['a', 'b'\]"):
        split_shards(folder, ["c"])
