"""Pictures of detections: boxes where they were found, labels that neither overlap nor leave the picture, tints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from regionclip_core.detection.drawing import Rectangle, class_colour, draw, free_place, label_font
from regionclip_core.detection.inference import Detections

NAMES = ("cat", "dog", "bus", "lamp", "tea pot")


def detections(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Detections:
    rows = torch.arange(len(boxes))
    return Detections(
        torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels) if labels else rows % len(NAMES), rows
    )


@pytest.mark.parametrize(("height", "width", "scale"), [(600, 900, 1), (256, 200, 2), (60, 50, 9), (2000, 1500, 1)])
def test_a_box_is_where_it_was_found_in_its_classs_colour(height: int, width: int, scale: int) -> None:
    grey = np.full((height, width, 3), 90, np.uint8)
    box = [0.2 * width // 1, 0.5 * height // 1, 0.7 * width // 1, 0.9 * height // 1]
    picture = draw(grey, detections([box], [0.8], [3]), NAMES, 0.5)
    assert picture.size == (width * scale, height * scale)
    drawn = (np.asarray(picture) == class_colour(3)).all(axis=2)
    x0, y0, x1, y1 = (int(v * scale) for v in box)
    line = max(2, round(max(picture.size) / 300))  # as thick as the picture is large
    for y in (y0, y0 + line - 1, y1, y1 - line + 1):
        assert drawn[y, x0 : x1 + 1].all()
    for x in (x0, x0 + line - 1, x1, x1 - line + 1):
        assert drawn[y0 : y1 + 1, x].all()
    assert not drawn[y0 + line : y1 - line, x0 + line : x1 - line].any()
    label = drawn[:y0].any(axis=1).nonzero()[0]
    assert y0 - 1 == label.max() and 12 <= len(label) < max(picture.size) / 20  # above the box, as high as its text
    assert not drawn[y1 + 1 :].any() and not drawn[y0:, :x0].any()
    assert (np.asarray(picture)[label.min() : y0, x0:] > 240).all(axis=2).any()  # white letters


def test_what_is_sure_enough_is_shown_and_the_best_on_top() -> None:
    grey = np.full((600, 900, 3), 90, np.uint8)
    boxes = [[100.0, 100, 300, 300], [500, 100, 700, 300]]
    both = np.asarray(draw(grey, detections(boxes, [0.75, 0.25]), NAMES, 0.25))
    sure = np.asarray(draw(grey, detections(boxes, [0.75, 0.25]), NAMES, 0.26))
    none = np.asarray(draw(grey, detections([], []), NAMES, 0.0))
    assert (none == 90).all()
    assert (sure[:, 450:] == 90).all()
    assert np.array_equal(both[:, :450], sure[:, :450])
    assert not (both[:, 450:] == 90).all()
    same = [[100.0, 100, 300, 300]] * 2
    top = np.asarray(draw(grey, detections(same, [0.8, 0.7]), NAMES, 0.0))
    best = np.asarray(draw(grey, detections(same[:1], [0.8]), NAMES, 0.0))
    top, best = top[:300], best[:300]  # below the box is the other one's label
    assert np.array_equal(top[best != 90], best[best != 90])


def overlap(a: Rectangle, b: Rectangle) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


@pytest.mark.parametrize("seed", range(20))
def test_labels_neither_cover_each_other_nor_leave_the_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width, height = 512, 384
    centre, side = rng.uniform(0, 1, (40, 2)) * [width, height], rng.uniform(10, 200, (40, 2))
    boxes = np.clip(np.hstack([centre - side / 2, centre + side / 2]), 0, [width, height] * 2).astype(int)
    taken: list[Rectangle] = []
    for box in boxes.tolist():
        place = free_place((int(rng.integers(40, 160)), 17), box, (width, height), taken)
        if place is not None:
            assert place[0] >= 0 and place[1] >= 0 and place[2] <= width and place[3] <= height
            assert not any(overlap(place, other) for other in taken)
            taken.append(place)
    assert len(taken) > 35  # supervision's spreading left overlaps in four of five such pictures


def test_a_full_picture_leaves_labels_out_and_a_long_label_is_cut() -> None:
    taken: list[Rectangle] = []
    while (place := free_place((50, 20), (10, 10, 40, 40), (100, 60), taken)) is not None:
        taken.append(place)
    assert 3 <= len(taken) <= 6
    grey = np.full((600, 300, 3), 90, np.uint8)
    found = detections([[100.0, 100, 300, 300]] * 60, [0.9] * 60, [0] * 60)
    drawn = np.asarray(
        draw(grey, found, ["a name that is much longer than the picture is wide, and then some more"], 0)
    )
    colour = (drawn == class_colour(0)).all(axis=2)
    assert colour[:, 0].any() and colour[:, -1].any()


def test_colours_tell_classes_apart() -> None:
    colours = np.array([class_colour(label) for label in range(20)])
    distance = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(20)
    assert distance.min() >= 40
    assert class_colour(7) == class_colour(7)


@pytest.mark.parametrize("name", ["café", "ёжик", "Straße", "naïve łódź"])
def test_names_beyond_ascii_are_readable(name: str) -> None:
    """No letter is the box that a font shows for characters that it lacks."""
    shown, font = label_font(name, 20)
    assert shown == name
    box = font.getmask("\uffff").getbbox(), bytes(font.getmask("\uffff"))
    assert all((font.getmask(letter).getbbox(), bytes(font.getmask(letter))) != box for letter in name if letter != " ")


def test_a_script_that_the_usual_font_lacks_is_looked_for_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    _, usual = label_font("cat", 20)
    assert label_font("猫 1", 20)[1].getname()  # whether or not there is such a font, something is drawn
    asked: list[bool] = []
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: asked.append(True) or ["/nowhere.ttf"])
    shown, font = label_font("猫 2 собака", 20)
    assert (shown, font.getname()) == ("\\u732b 2 собака", usual.getname())  # escaped, where no font has it
    assert asked == [True]
    assert label_font("a\nb", 20)[0] == "a\\u000ab"  # a line break would end the drawing
    grey = np.full((600, 900, 3), 90, np.uint8)
    found = detections([[100.0, 100, 300, 300]], [0.9], [0])
    escaped = [np.asarray(draw(grey, found, [name], 0)) for name in ("\\u732b\\u732b", "猫猫")]
    assert np.array_equal(*escaped)


def test_masks_are_tinted_in_their_classs_colour_and_the_best_is_on_top() -> None:
    grey = np.full((600, 900, 3), 90, np.uint8)
    shapes = np.zeros((3, 600, 900), np.uint8)
    shapes[0, 100:300, 100:300] = 1
    shapes[1, 200:400, 200:400] = 1
    shapes[2, 500:550, 500:550] = 1
    boxes = [[100.0, 100, 300, 300], [200, 200, 400, 400], [500, 500, 550, 550]]
    found = detections(boxes, [0.9, 0.8, 0.1])
    found = replace(found, masks=[coco_mask.encode(np.asfortranarray(shape))["counts"] for shape in shapes])
    picture = np.asarray(draw(grey, found, NAMES, 0.5))
    first, second, both = picture[150, 150], picture[350, 350], picture[250, 250]
    np.testing.assert_allclose(first, 0.55 * 90 + 0.45 * np.array(class_colour(0)), atol=1)
    np.testing.assert_allclose(second, 0.55 * 90 + 0.45 * np.array(class_colour(1)), atol=1)
    assert (both == first).all()
    assert (picture[520, 520] == 90).all()  # its score is too low
    assert (picture[450, 150] == 90).all()
    plain = np.asarray(draw(grey, replace(found, masks=None), NAMES, 0.5))
    changed = (plain != picture).any(axis=2)
    assert not changed[(shapes[:2].sum(axis=0) == 0)].any()
