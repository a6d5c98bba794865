"""Detections with their names: as pictures, tables, supervision's and COCO's results, read back by those libraries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from regionclip_core.detection.drawing import draw
from regionclip_core.detection.results import NamedDetections

CLASSES = ("cat", "dog", "tea pot")
BOXES = [[10.5, 20, 60, 90], [12, 22, 60, 92], [100, 10, 140, 50.25], [11, 20, 60, 90]]
SIZE = (120, 160)


def found(masks: bool = False) -> NamedDetections:
    """Four detections: the second lies on the first under another name, the fourth under the same one."""
    bitmaps = np.zeros((len(BOXES), *SIZE), np.uint8)
    for bitmap, (x0, y0, x1, y1) in zip(bitmaps, np.array(BOXES).astype(int), strict=True):
        bitmap[y0:y1, x0 : (x0 + x1) // 2] = 1
    return NamedDetections(
        torch.tensor(BOXES),
        torch.tensor([0.9, 0.6, 0.5, 0.4]),
        torch.tensor([2, 0, 1, 2]),
        torch.tensor([3, 1, 0, 2]),
        [coco_mask.encode(np.asfortranarray(one))["counts"] for one in bitmaps] if masks else None,
        classes=CLASSES,
        size=SIZE,
    )


def test_names_and_rows() -> None:
    every = found(masks=True)
    assert every.names == ["tea pot", "cat", "dog", "tea pot"] and len(every) == 4
    assert every.at_least(0.5).names == ["tea pot", "cat", "dog"]
    some = every.of([2, 0])
    assert some.names == ["dog", "tea pot"] and some.proposal.tolist() == [0, 3]
    assert some.boxes.tolist() == [BOXES[2], BOXES[0]] and some.masks == [every.masks[2], every.masks[0]]  # type: ignore[index]
    assert len(every.of([])) == 0 and every.of([]).boxes.shape == (0, 4)


@pytest.mark.parametrize("seed", range(5))
def test_doubles_are_those_of_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 80, (30, 2))
    boxes = np.hstack([corners, corners + rng.uniform(5, 60, (30, 2))]).astype(np.float32)
    scores = np.sort(rng.random(30).astype(np.float32))[::-1].copy()
    rows = torch.arange(30)
    given = NamedDetections(
        torch.from_numpy(boxes), torch.from_numpy(scores), rows % 3, rows, classes=CLASSES, size=(200, 200)
    )

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
        both = max(0.0, width) * max(0.0, height)
        return float(both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both))

    kept: list[int] = []
    for i in range(30):
        if all(iou(boxes[i], boxes[j]) <= 0.4 for j in kept):
            kept.append(i)
    assert given.without_doubles(0.4).proposal.tolist() == kept and len(kept) < 30
    assert len(given.without_doubles(1)) == 30


def test_a_plot_is_the_commands_drawing_without_doubles() -> None:
    grey = np.full((*SIZE, 3), 90, np.uint8)
    one, every = found(), found()
    expected = draw(grey, one.of([0, 2]), CLASSES, 0)
    assert np.array_equal(one.plot(grey), expected)
    assert np.array_equal(one.plot(Image.fromarray(grey), score=0.45), expected)
    assert np.array_equal(one.plot(grey, iou=1), draw(grey, every, CLASSES, 0))
    assert np.array_equal(one.plot(grey, score=0.6), draw(grey, one.of([0]), CLASSES, 0))
    with pytest.raises(ValueError, match="the image that was searched, of 160 x 120 pixels, got one of 120 x 160"):
        one.plot(grey.transpose(1, 0, 2))


def test_a_table_has_a_row_per_detection() -> None:
    table = found().to_pandas()
    assert table["name"].tolist() == ["tea pot", "cat", "dog", "tea pot"]
    assert np.allclose(table[["xmin", "ymin", "xmax", "ymax"]].to_numpy(), BOXES)
    assert table["label"].tolist() == [2, 0, 1, 2] and np.allclose(table["score"], [0.9, 0.6, 0.5, 0.4])
    assert found().of([]).to_pandas().shape == (0, 7)


def test_supervision_takes_boxes_names_and_masks() -> None:
    theirs = found(masks=True).to_supervision()
    assert np.allclose(theirs.xyxy, BOXES) and theirs.class_id.tolist() == [2, 0, 1, 2]
    assert theirs.data["class_name"].tolist() == ["tea pot", "cat", "dog", "tea pot"]
    assert theirs.mask.shape == (4, *SIZE) and theirs.mask.dtype == bool
    assert theirs.mask.sum(axis=(1, 2)).tolist() == [25 * 70, 24 * 70, 20 * 40, 24 * 70]
    assert np.allclose(theirs[theirs.data["class_name"] == "dog"].xyxy, BOXES[2:3])  # names are cut with the rows
    assert found().to_supervision().mask is None
    for empty in (found().of([]), found(masks=True).of([])):
        assert len(empty.to_supervision()) == 0


@pytest.mark.parametrize("masks", [False, True])
def test_cocos_own_library_reads_the_results(tmp_path: Path, masks: bool) -> None:
    ids = {"cat": 17, "dog": 18, "tea pot": 99, "bus": 6}
    annotations = {
        "images": [{"id": 7, "height": SIZE[0], "width": SIZE[1], "file_name": "a.jpg"}],
        "categories": [{"id": number, "name": name} for name, number in ids.items()],
        "annotations": [],
        "info": {},
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    (tmp_path / "results.json").write_text(json.dumps(found(masks).to_coco(7, ids)))
    results = COCO(str(tmp_path / "instances.json")).loadRes(str(tmp_path / "results.json"))
    loaded = results.loadAnns(results.getAnnIds(imgIds=[7]))
    assert [results.cats[one["category_id"]]["name"] for one in loaded] == found().names
    assert np.allclose([one["score"] for one in loaded], [0.9, 0.6, 0.5, 0.4])
    if masks:
        assert [int(results.annToMask(one).sum()) for one in loaded] == [25 * 70, 24 * 70, 20 * 40, 24 * 70]
    else:
        corners = np.array([one["bbox"] for one in loaded])
        assert np.allclose(np.hstack([corners[:, :2], corners[:, :2] + corners[:, 2:]]), BOXES)
    assert [row["category_id"] for row in found().to_coco(7)] == [2, 0, 1, 2]
    with pytest.raises(ValueError, match=r"no id for \['dog', 'tea pot'\]; it has \['cat'\]"):
        found().to_coco(7, {"cat": 1})


@pytest.mark.parametrize("name", ["pandas", "supervision"])
def test_a_library_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"to_{name} needs {name}: pip install {name}"):
        getattr(found(), f"to_{name}")()
