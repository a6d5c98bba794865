"""Counting images that can't be read: whatever the order, once each, and when it is too many."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from regionclip_core.datasets.images import BadImage
from regionclip_core.training import error_budget
from regionclip_core.training.error_budget import ErrorRateExceeded
from regionclip_core.training.image_tally import SHOWN, ImageTally

CPU = torch.device("cpu")


def read(tally: ImageTally, numbers: list[int], bad: set[int]) -> ImageTally:
    for number in numbers:
        if number in bad:
            tally.bad(number, BadImage("bad_image", f"{number} is torn"))
        else:
            tally.good(number)
    return tally


def test_it_does_not_matter_in_which_order_how_often_or_by_whom_images_are_read() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 80, 200).tolist()
    bad = set(range(0, 80, 3))
    whole = read(ImageTally(100), numbers, bad)
    expected = {"ok": len(set(numbers) - bad), "bad_image": len(set(numbers) & bad)}
    assert whole.counts() == expected
    shown = [{"place": n, "key": str(n), "status": "bad_image", "reason": f"{n} is torn"} for n in sorted(bad)]
    assert whole.unreadable() == [one for one in shown if one["place"] in numbers][:SHOWN]
    assert whole.summary() == {"unreadable": json.loads(json.dumps(whole.unreadable()))}
    shuffled = rng.permutation(numbers).tolist()
    parts = [read(ImageTally(100), shuffled[part::3], bad) for part in range(3)]
    parts[2].add(parts[0])
    parts[2].add_state(parts[1].state(), "a checkpoint")
    assert (parts[2].counts(), parts[2].unreadable()) == (expected, whole.unreadable())


def test_only_the_first_look_at_a_bad_image_is_news() -> None:
    tally = ImageTally(5, place_of=lambda number: 4 - number, key_of=lambda number: f"{number}.jpg")
    error = BadImage("bad_image", "torn")
    assert [tally.bad(1, error), tally.bad(1, error), tally.bad(2, error)] == [True, False, True]
    assert [(one["place"], one["key"]) for one in tally.unreadable()] == [(2, "2.jpg"), (3, "1.jpg")]


def test_a_checkpoint_of_other_images_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step-1\.pt counts 4 images, expected 5"):
        ImageTally(5).add_state(ImageTally(4).state(), "checkpoint x/step-1.pt")


def test_all_is_good() -> None:
    tally = read(ImageTally(5, 0.0), [0, 1, 1], set())
    tally.check(CPU, final=True)
    assert (tally.counts(), tally.summary()) == ({"ok": 2}, {})
    assert ImageTally(0).counts() == {}


def test_too_many_bad_ones_stop_at_the_end_or_once_enough_or_all_were_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    tally = read(ImageTally(50, 0.1, images=40), list(range(20)), {3, 7, 11})
    tally.check(CPU)
    with pytest.raises(ErrorRateExceeded) as caught:
        tally.check(CPU, final=True)
    for part in (
        "15.0% of 20 samples are bad (3 bad_image); execution.max_error_rate is 0.1",
        "run it with --force",
        "--max-error-rate",
        "The first is '3', number 3 of the split: 3 is torn",
    ):
        assert part in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(error_budget, "ENOUGH_TO_JUDGE", 20)
        with pytest.raises(ErrorRateExceeded):
            tally.check(CPU)
    read(tally, list(range(20, 40)), {20, 30})  # all 40, a share of 12.5 %
    with pytest.raises(ErrorRateExceeded, match=r"^12\.5% of 40"):
        tally.check(CPU)
