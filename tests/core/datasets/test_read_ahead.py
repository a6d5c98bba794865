"""Reading ahead: the same results in the same order, errors at their items, and no more than was asked for."""

from __future__ import annotations

import threading
import time
from contextlib import closing

import numpy as np
import pytest

from regionclip_core.datasets.images import ImageReader, encode_png
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.read_ahead import read_ahead
from regionclip_core.storage.records import Folder


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_and_errors_come_in_the_order_of_the_items(threads: int) -> None:
    def read(item: int) -> int:
        time.sleep(0.002 * (item % 3))  # later ones are done first
        if item % 5 == 2:
            raise ValueError(str(item))
        return item * item

    found = []
    with closing(read_ahead(read, range(20), threads, 4)) as ahead:
        for item, result in ahead:
            try:
                found.append((item, result()))
            except ValueError as error:
                found.append((item, -int(str(error))))
    assert found == [(item, -item if item % 5 == 2 else item * item) for item in range(20)]


def test_results_can_be_asked_for_after_the_last_item() -> None:
    with closing(read_ahead(lambda item: time.sleep(0.01) or -item, range(9), 1, 4)) as ahead:
        assert [result() for _, result in list(ahead)] == [-item for item in range(9)]


def test_it_reads_so_far_ahead_and_in_threads() -> None:
    begun: list[tuple[int, bool]] = []
    main, enough = threading.get_ident(), threading.Event()

    def read(item: int) -> None:
        begun.append((item, threading.get_ident() == main))
        if len(begun) == 6:
            enough.set()

    with closing(read_ahead(read, range(100), 2, 5)) as ahead:
        next(ahead)
        assert enough.wait(10)
        time.sleep(0.05)
        assert sorted(begun) == [(item, False) for item in range(6)]  # the first, and five ahead of it
    assert len(begun) == 6


def test_without_threads_nothing_is_read_before_it_is_asked_for() -> None:
    begun: list[int] = []
    results = [result for _, result in read_ahead(begun.append, range(3), 0, 5)]
    assert begun == []
    results[1]()
    assert begun == [1]


def test_threads_share_a_reader(tmp_path) -> None:
    """Images behind each other in two files: every read needs its own place in the right file."""
    folder, rng = Folder(str(tmp_path)), np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (9, 10, 3), dtype=np.uint8) for _ in range(40)]
    rows = []
    for file in range(2):
        packed = [encode_png(picture) for picture in pictures[file::2]]
        folder.write_bytes(f"{file}.tar", b"head" + b"".join(packed))
        ends = np.cumsum([4, *map(len, packed)]).tolist()
        rows.append([IndexRow("", 0, f"{file}.tar", ends[i], len(one), 10, 9) for i, one in enumerate(packed)])
    turns = [row for pair in zip(*rows, strict=True) for row in pair] * 5
    with ImageReader(folder) as reader, closing(read_ahead(reader.read, turns, 8, 50)) as ahead:
        for number, (_, image) in enumerate(ahead):
            assert np.array_equal(image(), pictures[number % 40])
