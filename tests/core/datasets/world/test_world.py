"""The embedded world: same bytes everywhere, tight boxes, true captions."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest

from regionclip_core.datasets.world.categories import CATEGORIES, icon_polygons
from regionclip_core.datasets.world.contact_sheet import contact_sheet, sample_grid
from regionclip_core.datasets.world.palette import FIXED, NAMED, vary, vary_all
from regionclip_core.datasets.world.sample import (
    MAX_COVERED,
    Arrangement,
    WorldSample,
    arrange,
    compose,
    make_sample,
    sample_generator,
)
from regionclip_core.datasets.world.sprites import VISIBLE_ALPHA, Pose, rasterise

BASE = [category.name for category in CATEGORIES if not category.novel]
NOVEL = [category.name for category in CATEGORIES if category.novel]
SIZES = {"closeup": 80, "scene": 128}
OBJECTS, OBJECT_SIZE = (3, 7), (0.11, 0.24)
NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
PLURALS = {category.plural: category.name for category in CATEGORIES}
NAME = "|".join(sorted((re.escape(n) for c in CATEGORIES for n in (c.name, c.plural)), key=len, reverse=True))
COLOUR = "|".join(NAMED)
PHRASE = rf"(a|an|one) (?:(?:big|large|small|little|tiny) )?(?:({COLOUR}) )?({NAME})\b"


@cache
def samples(kind: str, count: int) -> list[WorldSample]:
    return [make_sample(kind, 0, f"test-{kind}", i, SIZES[kind], OBJECTS, OBJECT_SIZE) for i in range(count)]


def parts_of(kind: str, index: int) -> Arrangement:
    return arrange(sample_generator(0, f"test-{kind}", index), kind, SIZES[kind], OBJECTS, OBJECT_SIZE)


def text_digest(sample: WorldSample) -> str:
    content = [sample.captions, sample.boxes.tolist(), sample.labels]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


# ---------------------------------------------------------------- categories


def test_the_split_has_48_base_and_17_novel_categories_with_unique_names():
    names = [category.name for category in CATEGORIES]
    assert len(BASE) == 48
    assert len(NOVEL) == 17
    assert sorted(BASE + NOVEL) == sorted(set(names))
    assert len({category.plural for category in CATEGORIES}) == len(CATEGORIES)
    assert len({category.icon for category in CATEGORIES}) == len(CATEGORIES)


def test_no_name_is_a_word_of_another_name():
    names = [category.name for category in CATEGORIES]
    for name in names:
        others = " ; ".join(other for other in names if other != name)
        assert not re.search(rf"\b{name}s?\b", others), name


def test_every_category_is_drawn_by_a_handful_of_polygons_in_several_colours():
    for category in CATEGORIES:
        roles, polygons = icon_polygons(category)
        assert 3 <= len(polygons) <= 30, category.name
        assert len(set(roles)) >= 2, category.name
        assert "main" in roles, category.name
        extent = np.abs(np.concatenate(polygons)).max()
        assert 40 <= extent <= 56, category.name
        assert len(category.colours) >= 3, category.name
        assert set(category.colours) <= set(NAMED), category.name


def test_silhouettes_of_any_two_categories_differ():
    masks = {}
    for category in CATEGORIES:
        roles, polygons = icon_polygons(category)
        tile = rasterise(roles, polygons, Pose(1, 0, 0, 1), 48, dict.fromkeys(roles, (0, 0, 0)), None)
        mask = np.zeros((52, 52), dtype=bool)
        x, y = (52 - tile.width) // 2, (52 - tile.height) // 2
        mask[y : y + tile.height, x : x + tile.width] = np.asarray(tile.getchannel("A")) > 127
        masks[category.name] = mask
    names = list(masks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            overlap = (masks[first] & masks[second]).sum() / (masks[first] | masks[second]).sum()
            assert overlap < 0.93, (first, second, overlap)


# ---------------------------------------------------------------- determinism


GOLDEN = [
    ("closeup", 0, "train", 0, "938ce5a404264ea1", "af5098ee57648e44"),
    ("closeup", 7, "captions", 12345, "7be8f75cb85916ad", "9a7fe1f0e0424773"),
    ("scene", 0, "train", 0, "bf7d1c9e177fea47", "bc582f946114d16c"),
    ("scene", 7, "val", 499, "0a3f98c2a672d727", "7190b575a3c82972"),
    ("scene", 3, "val", 1, "36fe9f8361691538", "01b3a26b624f8618"),
]


@pytest.mark.parametrize(("kind", "seed", "stream", "index", "pixels", "text"), GOLDEN)
def test_samples_are_the_golden_ones(kind: Any, seed: int, stream: str, index: int, pixels: str, text: str):
    sample = make_sample(kind, seed, stream, index, SIZES[kind], OBJECTS, OBJECT_SIZE)
    assert hashlib.sha256(sample.image.tobytes()).hexdigest()[:16] == pixels
    assert text_digest(sample) == text


def test_seed_stream_and_index_each_change_the_sample():
    cases = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    images = {make_sample("scene", *case, 64, (3, 4), (0.2, 0.3)).image.tobytes() for case in cases}
    assert len(images) == 4


# ---------------------------------------------------------------- images and boxes


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_arrays_have_the_promised_shapes_and_types(kind: str):
    for sample in samples(kind, 60):
        side = SIZES[kind]
        assert sample.image.shape == (side, side, 3)
        assert sample.image.dtype == np.uint8
        assert sample.boxes.shape == (len(sample.labels), 4)
        assert sample.boxes.dtype == np.float32
        assert (sample.boxes[:, :2] >= 0).all()
        assert (sample.boxes[:, 2:] <= side).all()
        assert 1 <= len(sample.captions) <= 2


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_boxes_are_the_naive_bounds_of_each_visible_object(kind: str):
    side = SIZES[kind]
    for index in range(25):
        parts = parts_of(kind, index)
        owner: dict[tuple[int, int], int] = {}
        for number, (sprite, (left, top, _, _)) in enumerate(zip(parts.sprites, parts.places, strict=True)):
            alpha = np.asarray(sprite.tile)[:, :, 3].tolist()
            for y, row in enumerate(alpha):
                for x, value in enumerate(row):
                    if value >= VISIBLE_ALPHA:
                        owner[(left + x, top + y)] = number
        assert max(max(pixel) for pixel in owner) < side
        for number, box in enumerate(samples(kind, 60)[index].boxes.tolist()):
            pixels = [pixel for pixel, who in owner.items() if who == number]
            xs, ys = [x for x, _ in pixels], [y for _, y in pixels]
            assert box == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_boxes_bound_what_changes_when_the_object_is_left_out(kind: str):
    overlaps = []
    for index in range(40):
        parts = parts_of(kind, index)
        sample = samples(kind, 60)[index]
        for number, box in enumerate(sample.boxes):
            keep = [i for i in range(len(parts.sprites)) if i != number]
            without = compose(parts.background.image, [parts.sprites[i] for i in keep], [parts.places[i] for i in keep])
            change = np.abs(sample.image.astype(int) - np.asarray(without).astype(int)).max(axis=2) > 8
            rows, columns = np.nonzero(change)
            seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            shared = np.minimum(seen[2:], box[2:]) - np.maximum(seen[:2], box[:2])
            union = np.prod(seen[2:] - seen[:2]) + np.prod(box[2:] - box[:2]) - np.prod(shared)
            overlaps.append(np.prod(shared) / union)
    assert np.mean(overlaps) > 0.95
    assert np.quantile(overlaps, 0.02) > 0.75


def test_scene_objects_keep_the_asked_number_and_size_and_hardly_overlap():
    sizes, counts = [], Counter()
    for sample in samples("scene", 150):
        counts[len(sample.labels)] += 1
        extent = (sample.boxes[:, 2:] - sample.boxes[:, :2]).max(axis=1)
        sizes.extend(extent.tolist())
        for i, first in enumerate(sample.boxes):
            for second in sample.boxes[i + 1 :]:
                shared = np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None).prod()
                smaller = min((box[2:] - box[:2]).prod() for box in (first, second))
                assert shared / smaller <= MAX_COVERED + 0.02
    assert set(counts) == set(range(OBJECTS[0], OBJECTS[1] + 1))
    assert min(sizes) >= OBJECT_SIZE[0] * 128 - 3
    assert max(sizes) <= OBJECT_SIZE[1] * 128 + 1
    assert 0.16 < np.mean(sizes) / 128 < 0.19


def test_closeups_show_one_to_three_large_objects():
    counts = Counter(len(sample.labels) for sample in samples("closeup", 300))
    assert counts[1] / 300 == pytest.approx(0.60, abs=0.09)
    assert counts[2] / 300 == pytest.approx(0.25, abs=0.09)
    assert counts[3] / 300 == pytest.approx(0.15, abs=0.09)
    alone = [(s.boxes[0, 2:] - s.boxes[0, :2]).max() / 80 for s in samples("closeup", 300) if len(s.labels) == 1]
    assert 0.36 <= min(alone) < 0.45
    assert 0.8 < max(alone) <= 0.87


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_categories_are_drawn_uniformly(kind: str):
    counts: Counter[str] = Counter()
    for index in range(700):
        sample = make_sample(kind, 9, "frequency", index, 48, OBJECTS, (0.18, 0.24))
        counts.update(sample.labels)
    total = sum(counts.values())
    expected = total / len(CATEGORIES)
    assert set(counts) == {category.name for category in CATEGORIES}
    novel = sum(counts[name] for name in NOVEL) / total
    assert novel == pytest.approx(17 / 65, abs=0.04)
    # Repeats widen the spread a little over a multinomial's: five of its standard deviations.
    assert max(abs(count - expected) for count in counts.values()) < 5 * 1.2 * np.sqrt(expected)


def test_a_crowded_scene_holds_what_fits():
    sample = make_sample("scene", 0, "crowd", 0, 64, (30, 30), (0.3, 0.4))
    assert 3 <= len(sample.labels) < 30


# ---------------------------------------------------------------- captions


def mentions(caption: str) -> list[tuple[str, str]]:
    """(word found, category name) of every category in a caption, longest names first."""
    found = [match.group(1) for match in re.finditer(rf"\b({NAME})\b", caption)]
    return [(word, PLURALS.get(word, word)) for word in found]


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_captions_name_only_what_is_there_and_each_category_once(kind: str):
    for sample in samples(kind, 300):
        for caption in sample.captions:
            names = [name for _, name in mentions(caption)]
            assert names, caption
            assert len(names) == len(set(names)), caption
            assert set(names) <= set(sample.labels), (caption, sample.labels)


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_counts_and_plurals_in_captions_are_right(kind: str):
    several = r"(two|three|four|five|six|seven|a pair of|a couple of|several|a few|a group of)"
    checked = 0
    for sample in samples(kind, 300):
        have = Counter(sample.labels)
        for caption in sample.captions:
            text = caption.lower()
            for match in re.finditer(PHRASE, text):
                assert have[match.group(3)] == 1, (caption, sample.labels)
            for match in re.finditer(rf"\b{several} (?:(?:{COLOUR}) )?({NAME})\b", text):
                word, name = match.group(1), PLURALS[match.group(2)]
                if word in NUMBERS:
                    assert have[name] == NUMBERS[word], (caption, sample.labels)
                elif word in ("a pair of", "a couple of"):
                    assert have[name] == 2, (caption, sample.labels)
                else:
                    assert have[name] >= 3, (caption, sample.labels)
                checked += 1
            singles = len(re.findall(PHRASE, text))
            plurals = len(re.findall(rf"\b{several} (?:(?:{COLOUR}) )?({NAME})\b", text))
            assert singles + plurals == len(mentions(caption)), caption
    assert checked > 20


@pytest.mark.parametrize("kind", ["closeup", "scene"])
def test_colours_in_captions_are_the_drawn_ones(kind: str):
    checked = 0
    for index, sample in enumerate(samples(kind, 120)):
        drawn: dict[str, set[str]] = {}
        for sprite in parts_of(kind, index).sprites:
            drawn.setdefault(sprite.category.name, set()).add(sprite.colour)
        for caption in sample.captions:
            for match in re.finditer(rf"\b({COLOUR}) ({NAME})\b", caption.lower()):
                assert drawn[PLURALS.get(match.group(2), match.group(2))] == {match.group(1)}, caption
                checked += 1
    assert checked > 30


@pytest.mark.parametrize(
    ("words", "axis", "sign"),
    [
        (r"(?:on|to) the left of", 0, -1),
        (r"(?:on|to) the right of", 0, 1),
        (r"(?:above|over)", 1, -1),
        (r"(?:below|under)", 1, 1),
    ],
)
def test_relations_in_captions_hold(words: str, axis: int, sign: int):
    checked = 0
    for sample in samples("scene", 300) + samples("closeup", 300):
        for caption in sample.captions:
            text = caption.lower()
            match = re.search(rf"\b({NAME})(?: \w+)? {words} {PHRASE}", text)
            if match is None:
                continue
            boxes = [sample.boxes[sample.labels.index(name)] for name in (match.group(1), match.group(4))]
            first, second = ((box[axis] + box[axis + 2]) / 2 for box in boxes)
            assert (first - second) * sign > 0, caption
            checked += 1
    assert checked >= 10


def test_every_name_is_captioned_novel_ones_as_often_as_base_ones():
    counts: Counter[str] = Counter()
    for sample in samples("scene", 300) + samples("closeup", 300):
        for caption in sample.captions:
            counts.update(name for _, name in mentions(caption))
    assert set(counts) == {category.name for category in CATEGORIES}
    novel = np.mean([counts[name] for name in NOVEL])
    base = np.mean([counts[name] for name in BASE])
    assert novel / base == pytest.approx(1, abs=0.2)


def test_scene_captions_name_most_objects_and_at_most_five_kinds():
    for sample in samples("scene", 150):
        kinds = len(set(sample.labels))
        for caption in sample.captions:
            assert min(5, kinds) / 2 <= len(mentions(caption)) <= 5, (caption, sample.labels)


def test_captions_vary_in_grammar_and_stay_short():
    shapes: Counter[str] = Counter()
    captions = [c for sample in samples("closeup", 300) + samples("scene", 300) for c in sample.captions]
    for caption in captions:
        text = re.sub(rf"\b({NAME})\b", "N", caption.lower().rstrip("."))
        text = re.sub(rf"\b(?:pale |dark )?({COLOUR}) ", "", text)
        shapes[re.sub(r"\b(an|one)\b", "a", text)] += 1
        assert len(caption.split()) <= 32, caption
        assert "{" not in caption
        assert "  " not in caption
        assert not re.search(r"\ba [aeio]\w|\ban [^aeiou]", caption.lower()), caption
    assert len(shapes) > 0.6 * len(captions)
    assert max(shapes.values()) < 0.05 * len(captions)


# ---------------------------------------------------------------- sheets


def test_sheets_show_every_category_and_sample():
    sheet = np.asarray(contact_sheet(side=40, columns=10))
    assert sheet.shape == (7 * 70, 10 * 56, 3)
    for number in range(65):
        row, column = divmod(number, 10)
        cell = sheet[row * 70 + 6 : row * 70 + 46, column * 56 + 4 : column * 56 + 50]
        assert len(np.unique(cell.reshape(-1, 3), axis=0)) > 5
    grid = sample_grid(samples("closeup", 60)[:5], scale=2, columns=4)
    assert grid.size == (4 * 164, 2 * 164)


@pytest.mark.parametrize("seed", range(20))
def test_colours_varied_together_are_those_of_one_after_another(seed: int):
    """In the order of draws that the world began with: the common change, then one per channel."""
    together, each, naive = (np.random.default_rng(seed) for _ in range(3))
    expected = []
    for colour in FIXED.values():
        own = 8 // 3 if max(colour) - min(colour) < 16 else 8
        common = int(naive.integers(own - 8, 8 - own + 1))
        shift = naive.integers(-own, own + 1, size=3).tolist()
        expected.append(tuple(min(255, max(0, c + s + common)) for c, s in zip(colour, shift, strict=True)))
    assert vary_all(together, FIXED.values(), 8) == expected
    assert [vary(each, colour, 8) for colour in FIXED.values()] == expected
    assert together.random() == each.random() == naive.random()
