"""The order of training samples."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from places import GOLDEN

from regionclip_core.datasets.images import BadImage
from regionclip_core.training.error_budget import ErrorRateExceeded
from regionclip_core.training.sampling import EpochOrder, RepeatOrder, first_readable, repeat_factors
from regionclip_core.training.unreadable_images import UnreadableImages


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


def test_repeat_factors_are_the_official_ones() -> None:
    golden = json.loads((GOLDEN / "misc.json").read_text())["repeat_factors"]
    labels = [np.array(ids, np.int64) for ids in golden["image_category_ids"]]
    found = repeat_factors(lambda: labels, golden["threshold"])
    np.testing.assert_allclose(found, golden["repeat_factor"], atol=1e-6)
    assert len(set(golden["repeat_factor"])) > 4


def test_repeat_factors_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 40, rng.integers(0, 6)) ** 2 // 40 for _ in range(200)]
    share = {c: sum(c in one for one in labels) / 200 for one in labels for c in one.tolist()}
    expected = [max([1.0, *((0.1 / share[c]) ** 0.5 for c in one.tolist())]) for one in labels]
    np.testing.assert_allclose(repeat_factors(lambda: labels, 0.1), expected, rtol=1e-12)
    assert max(expected) > 1.5
    assert repeat_factors(lambda: [np.zeros(0, np.int64)] * 3, 0.1).tolist() == [1, 1, 1]


def epochs_of(order: RepeatOrder, count: int) -> list[list[int]]:
    """The first epochs, cut where the order itself says that they begin."""
    position, epochs = 0, []
    for epoch in range(count):
        length = int(order._counts(epoch)[0].sum())
        epochs.append([order[p] for p in range(position, position + length)])
        position += length
    return epochs


def test_images_come_as_often_as_their_factor_says() -> None:
    factors = np.array([1.0, 1.25, 2.0, 3.5, 1.01])
    epochs = epochs_of(RepeatOrder(factors, seed=2), 4000)
    counts = np.array([[Counter(epoch)[i] for i in range(5)] for epoch in epochs])
    assert (counts >= np.floor(factors)).all() and (counts <= np.ceil(factors)).all()
    # Binomial: the standard error of a mean over 4,000 epochs is at most 0.008.
    np.testing.assert_allclose(counts.mean(0), factors, atol=0.03)
    assert len({len(epoch) for epoch in epochs}) > 2
    firsts = Counter(epoch[0] for epoch in epochs)  # shuffled: any image may be first, as often as it comes
    np.testing.assert_allclose([firsts[i] / 4000 for i in range(5)], factors / factors.sum(), atol=0.03)


def test_a_position_of_the_repeated_order_means_the_same_whenever_it_is_asked_for() -> None:
    factors = np.random.default_rng(0).uniform(1, 3, 30)
    straight = [RepeatOrder(factors, 3)[p] for p in range(400)]
    order = RepeatOrder(factors, 3)
    assert [order[p] for p in range(400)] == straight
    resumed = RepeatOrder(factors, 3)
    assert [resumed[p] for p in [399, 0, 250, 399, 61]] == [straight[p] for p in [399, 0, 250, 399, 61]]
    assert [RepeatOrder(factors, 4)[p] for p in range(400)] != straight


def test_without_rare_categories_an_epoch_is_a_permutation() -> None:
    epochs = epochs_of(RepeatOrder(np.ones(9), seed=0), 3)
    assert [sorted(epoch) for epoch in epochs] == [list(range(9))] * 3
    assert epochs[0] != epochs[1]


class Sample(NamedTuple):
    key: str


def test_an_unreadable_image_gives_way_to_the_next_of_the_order() -> None:
    order = EpochOrder(5, seed=0)
    numbers = [order[position] for position in range(10)]
    bad = set(numbers[2:4])

    def read(sample: Sample) -> str:
        if int(sample.key) in bad:
            raise BadImage("bad_image", f"{sample.key} is cut short")
        return f"pixels {sample.key}"

    def first(position: int, **limit: Any) -> str:
        unreadable = UnreadableImages(**limit)
        sample, pixels = first_readable(lambda place: Sample(str(order[place])), position, read, unreadable)
        assert pixels == f"pixels {sample.key}"
        return sample.key

    assert [first(position) for position in range(5)] == [str(numbers[n]) for n in (0, 1, 4, 4, 4)]
    with pytest.raises(ErrorRateExceeded, match=rf"1 of 5 images can't be read.*{numbers[2]}: {numbers[2]} is cut"):
        first(2, images=5, max_error_rate=0.1)
    bad |= {*range(5)}
    with pytest.raises(ErrorRateExceeded, match=r"100 images in a row can't be read.*--force"):
        first(0)
