"""Masks of every form that annotation files have, against pycocotools, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from places import TINY_COCO
from pycocotools import mask as coco_mask

from regionclip_core.datasets.coco_source import BadMask, mask_counts


def decoded(counts: bytes, height: int, width: int) -> np.ndarray:
    mask: np.ndarray = coco_mask.decode({"size": [height, width], "counts": counts})
    return mask


def column_runs(mask: np.ndarray) -> list[int]:
    """Run lengths by walking down the columns, pixel by pixel."""
    runs, last = [0], 0
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != last:
            runs.append(0)
            last = pixel
        runs[-1] += 1
    return runs


def test_run_lengths_as_numbers_and_as_text_give_their_mask() -> None:
    rng = np.random.default_rng(0)
    for share in [0.0, 0.02, 0.5, 0.98, 1.0] * 12:
        height, width = rng.integers(1, 70, 2).tolist()
        mask = (rng.random((height, width)) < share).astype(np.uint8)
        text = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
        for counts in (column_runs(mask), text):
            found = mask_counts({"size": [height, width], "counts": counts}, height, width)
            np.testing.assert_array_equal(decoded(found, height, width), mask)


def test_a_rectangle_and_the_union_of_two() -> None:
    one, other = [2, 1, 6, 1, 6, 4, 2, 4], [5, 2, 9, 2, 9, 6, 5, 6]
    expected = np.zeros((8, 12), np.uint8)
    expected[1:4, 2:6] = 1
    np.testing.assert_array_equal(decoded(mask_counts([one], 8, 12), 8, 12), expected)
    expected[2:6, 5:9] = 1
    np.testing.assert_array_equal(decoded(mask_counts([one, other], 8, 12), 8, 12), expected)
    np.testing.assert_array_equal(decoded(mask_counts([one, [1, 1, 2, 2], other], 8, 12), 8, 12), expected)


@pytest.mark.skipif(not TINY_COCO.exists(), reason="needs tiny_coco")
def test_every_mask_of_tiny_coco() -> None:
    from pycocotools.coco import COCO

    coco = COCO(str(TINY_COCO / "annotations" / "instances_val2017.json"))
    kinds = set()
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        counts = mask_counts(annotation["segmentation"], image["height"], image["width"])
        np.testing.assert_array_equal(decoded(counts, image["height"], image["width"]), coco.annToMask(annotation))
        kinds.add(type(annotation["segmentation"]))
    assert kinds == {list, dict}


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "neither"),
        ("abc", "neither"),
        ([1, 1, 5, 1, 5, 5], "neither"),  # one polygon, not in a list
        ([], "three corners"),
        ([[]], "three corners"),
        ([[1, 1, 5, 1]], "three corners"),
        ([[1, 1, 5, 1, 5, 5, 7]], "x, y pairs"),
        ([[1, 1, 5, 1, 5, "5"]], "x, y pairs"),
        ([[1, 1, 5, 1, 5, True]], "x, y pairs"),
        ([[1, 1, 5, 1, 5, float("nan")]], "not finite"),
        ([[1, 1, 5, 1, 5, 1e300]], "not finite, or far outside"),
        ([[1, 1, 5, 1, 5, 10**400]], "not finite, or far outside"),
        ({"size": [4, 5]}, "whole numbers"),
        ({"size": [5, 4], "counts": [20]}, r"of size \[5, 4\], the image is \[4, 5\]"),
        ({"counts": [20]}, "of size None"),
        ({"size": [4, 5], "counts": [3, 4]}, "cover 7 pixels, the image has 20"),
        ({"size": [4, 5], "counts": [10, 11]}, "cover 21 pixels"),
        ({"size": [4, 5], "counts": [21, -1]}, "whole numbers"),
        ({"size": [4, 5], "counts": [20.0]}, "whole numbers"),
        ({"size": [4, 5], "counts": "é"}, "can't be read"),
        ({"size": [4, 5], "counts": "P"}, "end early"),
        ({"size": [4, 5], "counts": "P" * 40 + "0"}, "can't be read"),
        ({"size": [4, 5], "counts": "01"}, "cover 1 pixels"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: object, reason: str) -> None:
    with pytest.raises(BadMask, match=reason):
        mask_counts(json.loads(json.dumps(segmentation)), 4, 5)
