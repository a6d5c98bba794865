"""How many images may be unreadable: small and large splits, few and many."""

from __future__ import annotations

import logging
from unittest.mock import Mock

import numpy as np
import pytest

from regionclip_core.datasets.images import BadImage
from regionclip_core.training.error_budget import ErrorRateExceeded
from regionclip_core.training.unreadable_images import SHOWN, UnreadableImages


def read_all(unreadable: UnreadableImages, numbers: list[int], bad: set[int]) -> int:
    """Read until it stops; returns how many were read."""

    def read(number: int) -> str:
        if number in bad:
            raise BadImage("bad_image", f"no file {number}.jpg")
        return f"pixels {number}"

    for done, number in enumerate(numbers):
        try:
            assert unreadable.read(str(number), read, number) == (None if number in bad else f"pixels {number}")
        except ErrorRateExceeded:
            return done
    return len(numbers)


def epochs(images: int, count: int = 1, seed: int = 0) -> list[int]:
    rng = np.random.default_rng(seed)
    return [int(n) for _ in range(count) for n in rng.permutation(images)]


@pytest.mark.parametrize("seed", range(5))
def test_a_split_of_which_a_twentieth_is_missing_is_read_to_the_end_and_named(seed: int) -> None:
    """In whatever order the missing ones come, over several epochs."""
    unreadable, bad = UnreadableImages(5000, 0.1), set(range(1000, 1250))
    assert read_all(unreadable, epochs(5000, 3, seed), bad) == 15000
    assert unreadable.counts() == {"bad_image": 250}
    summary = unreadable.summary()["unreadable"]
    assert summary["images"] == 250
    assert len(summary["first"]) == SHOWN
    assert all(int(key) in bad and reason == f"no file {key}.jpg" for key, reason in summary["first"].items())


@pytest.mark.parametrize("images", [20, 2000, 100_000])
def test_a_split_of_which_half_is_missing_stops_soon(images: int) -> None:
    unreadable = UnreadableImages(images, 0.1)
    assert read_all(unreadable, epochs(images), set(range(0, images, 2))) < min(images, 260)


def test_the_limit_is_a_share_of_the_split() -> None:
    assert read_all(UnreadableImages(40, 0.1), epochs(40, 9), {1, 2, 3, 4}) == 360
    unreadable = UnreadableImages(40, 0.1)
    assert read_all(unreadable, list(range(40)), {1, 2, 3, 4, 9}) == 9
    for part in ("5 of 40 images can't be read", "max_error_rate is 0.1", "1: no file 1.jpg; 2: no", "--force"):
        assert part in str(unreadable.exceeded("5 of 40 images can't be read"))
    assert read_all(UnreadableImages(40, 0.0), list(range(40)), {7}) == 7


def test_without_a_limit_nothing_stops_and_good_images_leave_no_trace() -> None:
    unreadable = UnreadableImages()
    assert read_all(unreadable, list(range(300)), set(range(300))) == 300
    assert unreadable.counts() == {"bad_image": 300}
    good = UnreadableImages(3, 0.0)
    assert read_all(good, [0, 1, 2], set()) == 3
    assert (good.counts(), good.summary()) == ({}, {})


def test_an_unreadable_image_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        read_all(UnreadableImages(10), [3, 1, 3, 3], {3})
    assert [record.getMessage() for record in caplog.records] == ["going on without image 3: no file 3.jpg"]


def test_a_reason_that_several_images_have_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """And the image that stops the stage is none that it goes on without."""
    unreadable = UnreadableImages(20, 0.1)
    read = Mock(side_effect=BadImage("bad_image", "resized"))
    assert unreadable.read("1", read, 0) is unreadable.read("2", read, 0) is None
    with pytest.raises(ErrorRateExceeded, match=r"The first: 1, 2, 3: resized$"):
        unreadable.read("3", read, 0)
    assert [record.getMessage().split()[-2] for record in caplog.records] == ["1:", "2:"]
    assert unreadable.summary()["notes"] == ["3 unreadable images, the first: 1, 2, 3: resized"]


def test_other_errors_pass_through() -> None:
    def fail(item: int) -> None:
        raise ConnectionError("the store is away")

    unreadable = UnreadableImages(1)
    with pytest.raises(ConnectionError):
        unreadable.read("a", fail, 0)
    assert unreadable.counts() == {}
