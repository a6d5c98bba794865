"""The order of training samples."""

from __future__ import annotations

import numpy as np
import pytest

from regionclip_core.images import BadImage
from regionclip_core.sampling import EpochOrder, ImageCache, first_readable


def test_every_epoch_is_a_new_permutation() -> None:
    order = EpochOrder(7, seed=1)
    epochs = [[order[e * 7 + i] for i in range(7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_position_means_the_same_item_whenever_it_is_asked_for() -> None:
    straight = [EpochOrder(5, 3)[p] for p in range(20)]
    resumed = EpochOrder(5, 3)
    assert [resumed[p] for p in range(11, 20)] == straight[11:]
    assert [EpochOrder(5, 4)[p] for p in range(20)] != straight


def test_a_bad_image_gives_way_to_the_next() -> None:
    def read(item: int) -> str:
        if item in (2, 3):
            raise BadImage("bad_image", f"item {item} is cut short")
        return f"pixels {item}"

    assert first_readable([0, 1, 2, 3, 4], 2, read) == (4, "pixels 4")
    assert first_readable([0, 1, 2, 3, 4], 1, read) == (1, "pixels 1")
    with pytest.raises(BadImage, match="item 2"):
        first_readable([2, 3], 0, read)


def test_the_cache_gives_what_reading_gives_and_keeps_to_its_budget() -> None:
    reads: list[str] = []

    def read(name: str) -> np.ndarray:
        reads.append(name)
        return np.full((4, 4, 3), ord(name[0]), np.uint8)  # 48 bytes

    cache = ImageCache(read, budget_bytes=100)
    for _ in range(3):
        for number, name in enumerate("abc"):
            assert np.array_equal(cache.read(number, name), np.full((4, 4, 3), ord(name), np.uint8))
    assert [reads.count(name) for name in "abc"] == [1, 1, 3]
