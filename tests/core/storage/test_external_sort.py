"""Sorting on disk."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from regionclip_core.storage.external_sort import sorted_tables


def random_tables(seed: int, tables: int, rows: int) -> list[pa.Table]:
    rng = random.Random(seed)
    numbers = rng.sample(range(10 * tables * rows), tables * rows)
    names = [rng.choice(["", "a", "ab", "é", "日", "𝄞"]) for _ in numbers]
    whole = pa.table({"name": names, "number": numbers, "bytes": [str(n).encode() for n in numbers]})
    return [whole.slice(i * rows, rows) for i in range(tables)]


@pytest.mark.parametrize(("memory", "count", "rows"), [(1, 130, 1), (1, 40, 5), (2_000, 40, 30), (1 << 25, 40, 30)])
def test_all_rows_in_order(memory: int, count: int, rows: int) -> None:
    """130 runs: four of the second level, and too many to be merged at once."""
    tables = random_tables(rows, count, rows)
    found = pa.concat_tables(sorted_tables(tables, [("name", "ascending"), ("number", "descending")], memory=memory))
    expected = [row for table in tables for row in table.to_pylist()]
    assert found.to_pylist() == sorted(expected, key=lambda row: (row["name"], -row["number"]))
    by_bytes = pa.concat_tables(sorted_tables(tables, [("bytes", "ascending")], memory=memory))
    assert by_bytes.to_pylist() == sorted(expected, key=lambda row: row["bytes"])


@pytest.mark.parametrize("memory", [1, 500, 1 << 25])
def test_rows_with_equal_keys_are_combined_in_the_order_they_came_in(memory: int) -> None:
    def joined(table: pa.Table) -> pa.Table:
        texts: dict[str, str] = {}
        for row in table.to_pylist():
            texts[row["name"]] = texts.get(row["name"], "") + row["text"]
        return pa.table({"name": list(texts), "text": list(texts.values())})

    tables = [table.set_column(1, "text", table["number"].cast("string")) for table in random_tables(0, 40, 9)]
    tables = [table.select(["name", "text"]) for table in tables]
    found = pa.concat_tables(sorted_tables(tables, [("name", "ascending")], joined, memory))
    assert found.to_pylist() == joined(pa.concat_tables(tables).sort_by("name")).to_pylist()


def test_nothing_is_nothing() -> None:
    assert list(sorted_tables([], [("name", "ascending")])) == []
    assert list(sorted_tables([pa.table({"name": pa.array([], "string")})], [("name", "ascending")])) == []


def test_no_file_is_left_or_ever_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None
    most = 0

    def broken() -> Iterator[pa.Table]:
        nonlocal most
        for table in random_tables(0, 50, 20):
            assert list(tmp_path.iterdir()) == []
            if open_files is not None:
                most = max(most, len(os.listdir("/proc/self/fd")) - open_files)
            yield table
        raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        list(sorted_tables(broken(), [("number", "ascending")], memory=1))
    if open_files is not None:
        assert 0 < most < 40  # runs are on disk, and merged before they are too many
        assert len(os.listdir("/proc/self/fd")) == open_files


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(OSError, match=f"No space left on device: '{tempfile.gettempdir()}'"):
        list(sorted_tables(random_tables(0, 5, 20), [("number", "ascending")], memory=1))
