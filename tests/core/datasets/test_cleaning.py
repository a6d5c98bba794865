"""Checks of raw captions, boxes and names: what is kept, and the reason for what is not."""

from __future__ import annotations

import numpy as np
import pytest

from regionclip_core.datasets.cleaning import MAX_CAPTION, clean_box, clean_captions, reasons
from regionclip_core.storage.locations import unsafe_name


def test_captions() -> None:
    raw = ["  a dog ", b"caf\xc3\xa9", b"\xff\xfe", "", " \n", "x" * (MAX_CAPTION + 1), "\ud800", 7, "y" * MAX_CAPTION]
    kept, dropped = clean_captions(raw)
    assert kept == ["a dog", "café", "y" * MAX_CAPTION]
    assert [d.split(" (")[0] for d in dropped] == [
        "caption is not UTF-8",
        "caption is empty",
        "caption is empty",
        f"caption of {MAX_CAPTION + 1} characters, at most {MAX_CAPTION}",
        "caption is not valid Unicode",
        "caption is a int, expected text",
    ]


def test_what_nobody_can_see_is_no_caption() -> None:
    unseen = ["\0\0", "\u200b\u200d\u2060", "\ufeff", b"\xef\xbb\xbf \n", "\u3000\u2028\x1b\x07", "\xad"]
    assert clean_captions(unseen) == ([], ["caption is empty"] * len(unseen))
    seen = ["a\0b", "\u200bx", "🐕", "!", "\u0301", "\ue000", "一"]
    assert clean_captions(seen) == (seen, [])
    assert clean_captions(["\ufeff a dog", "\ufeffcaf\xe9".encode()]) == (["a dog", "café"], [])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4)),
        ((-5, -5, 10, 10), (0, 0, 10, 10)),
        ((90, 40, 130, 70), (90, 40, 100, 50)),
        ((3, 3, 3, 9), "zero area"),
        ((9, 3, 3, 9), "zero area"),
        ((100, 0, 120, 10), "outside"),
        ((-9, 0, -1, 10), "outside"),
        ((99.9999999, 0, 120, 10), "outside"),  # nothing is left of it in float32
        ((0, float("nan"), 1, 1), "not finite"),
        ((0, 0, float("inf"), 1), "not finite"),
    ],
)
def test_boxes(box: tuple[float, ...], expected: object) -> None:
    kept, problem = clean_box(box, 100, 50)
    if isinstance(expected, str):
        assert kept is None
        assert problem is not None
        assert expected in problem
    else:
        assert problem is None
        np.testing.assert_array_equal(kept, expected)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../a.jpg",
        "a/../../b.jpg",
        "..\\a.jpg",
        "C:\\a.jpg",
        "s3://b/a.jpg",
        "",
        "a\0b",
        "a\udcff.jpg",
        "\ud800",
    ],
)
def test_unsafe_names(name: str) -> None:
    reason = unsafe_name(name)
    assert reason is not None
    reason.encode("utf-8")  # it goes to an Arrow column


def test_safe_names() -> None:
    for name in ["a.jpg", "a/b..c.jpg", "...jpg", "a b/ü.jpg"]:
        assert unsafe_name(name) is None


def test_reasons_count_repeats() -> None:
    assert reasons([]) is None
    assert reasons(["a", "b", "a"]) == "2 x a; b"
