"""The LVIS source against the annotation file itself, and what becomes of damaged entries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lvis_samples import BASE, CATEGORIES, COLOURS, NAMES, LvisSample, write_lvis
from pycocotools import mask as coco_mask
from source_samples import read_all

from regionclip_core.config.tree import CocoSplit, LvisSplit
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import Folder

ID_OF = {category_id: row for row, (category_id, _, _) in enumerate(CATEGORIES)}


def read(sample: LvisSample, vocabulary: Vocabulary | None = None, **settings: Any) -> list[IndexRow]:
    vocabulary = vocabulary or load_categories(str(sample.instances))
    return read_all(LvisSplit(**sample.split(**settings)), 5, vocabulary)


def edited(sample: LvisSample, edit: Callable[[dict[str, Any]], Any]) -> LvisSample:
    body = json.loads(sample.instances.read_text())
    edit(body)
    sample.instances.write_text(json.dumps(body))
    return sample


def test_categories_of_an_lvis_file(tmp_path: Path) -> None:
    vocabulary = load_categories(str(write_lvis(tmp_path).instances))
    assert vocabulary.names == NAMES
    assert vocabulary.base == BASE
    assert dict(vocabulary.groups) == {
        "rare": ("hot dog", "T-shirt"),
        "common": ("bow decorative ribbons", "drum musical instrument"),
        "frequent": ("aerosol can", "cat"),
    }


def test_against_the_file(tmp_path: Path) -> None:
    sample = write_lvis(tmp_path, 13)
    found = read(sample, captions=str(sample.captions))
    assert len(found) == 13
    assert not any(one.lost for one in found)
    for row, image in zip(found, sample.body["images"], strict=True):
        mine = [a for a in sample.body["annotations"] if a["image_id"] == image["id"]]
        assert (row.status, row.reason, row.image_id) == ("ok", None, image["id"])
        assert row.key == f"train2017/{image['id']:012d}.png"
        assert row.url == f"{tmp_path}/{row.key}"
        assert (row.height, row.width) == (64, 96)
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in mine)]
        np.testing.assert_allclose(row.boxes, np.reshape(boxes, (-1, 4)), atol=1e-4)
        assert row.box_labels.tolist() == [ID_OF[a["category_id"]] for a in mine]
        np.testing.assert_array_equal(row.box_area, np.float32([a["area"] for a in mine]))
        assert row.neg_labels.tolist() == [ID_OF[i] for i in image["neg_category_ids"]]
        assert row.not_exhaustive_labels.tolist() == [ID_OF[i] for i in image["not_exhaustive_category_ids"]]
        assert list(row.captions) == [f"a picture of a {NAMES[min(row.box_labels)]}"]
        for counts, annotation in zip(row.box_masks, mine, strict=True):
            wanted = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 64, 96))
            assert counts == wanted["counts"]
    assert any(len(one.neg_labels) for one in found) and any(len(one.not_exhaustive_labels) for one in found)


def test_masks_boxes_and_pixels_are_of_one_place(tmp_path: Path) -> None:
    """The last object drawn is not covered: its colour fills its mask and its box."""
    with ImageReader(Folder("unused")) as reader:
        for one in read(write_lvis(tmp_path)):
            pixels = reader.read(one).astype(int)
            mask = coco_mask.decode({"size": [64, 96], "counts": one.box_masks[-1]}).astype(bool)
            same = (pixels == COLOURS[one.box_labels[-1]]).all(-1)
            assert mask.sum() > 20
            assert (mask & same).sum() >= 0.9 * mask.sum()
            y, x = np.nonzero(mask)
            x1, y1, x2, y2 = one.boxes[-1]
            np.testing.assert_allclose([x.min(), y.min(), x.max() + 1, y.max() + 1], [x1, y1, x2, y2], atol=1.5)


def test_categories_outside_the_vocabulary_are_left_out_of_the_lists(tmp_path: Path) -> None:
    sample = write_lvis(tmp_path)
    everything, some = read(sample), read(sample, Vocabulary(("cat", "hot dog", "spoon")))
    rows = {2: 0, 3: 1}  # "cat" and "hot dog" in the two vocabularies
    for one, other in zip(everything, some, strict=True):
        assert not other.lost
        assert other.box_labels.tolist() == [rows.get(label, -1) for label in one.box_labels.tolist()]
        for name in ("neg_labels", "not_exhaustive_labels"):
            wanted = [rows[label] for label in getattr(one, name).tolist() if label in rows]
            assert getattr(other, name).tolist() == wanted


def test_masks_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    sample = write_lvis(tmp_path)
    assert all(one.box_masks == [] and len(one.boxes) for one in read(sample, masks=False))
    plain = CocoSplit(source="coco", images=str(tmp_path), instances=str(sample.instances), masks=True)
    rows = read_all(plain, vocabulary=Vocabulary(("cat",)))
    assert [list(row.box_masks) for row in rows] == [list(one.box_masks) for one in read(sample)]
    assert all(row.neg_labels is None and row.not_exhaustive_labels is None for row in rows)


def test_captions_files_add_no_images(tmp_path: Path) -> None:
    sample = write_lvis(tmp_path, 4)
    more = write_lvis(tmp_path, 9, name="more")
    assert len(read(sample, captions=str(more.captions))) == 4


def test_damaged_entries_cost_themselves(tmp_path: Path) -> None:
    def damage(body: dict[str, Any]) -> None:
        images = body["images"]
        images[0].pop("neg_category_ids")
        images[1]["not_exhaustive_category_ids"] = [3, 9999, [1]]
        images[2]["neg_category_ids"] = "3"
        images[3].pop("coco_url")
        images[4] |= {"file_name": "train2017/four.png", "coco_url": None}
        images[5]["coco_url"] = "http://images.cocodataset.org/../up.png"
        images[6] |= {key: images[0][key] for key in ("id", "coco_url")}
        images[7]["coco_url"] = images[1]["coco_url"]
        images[8]["width"] = "wide"
        images[9] = "no object"
        images[10]["neg_category_ids"] = [44, 3, 3, 44]
        first = next(a for a in body["annotations"] if a["image_id"] == images[11]["id"])
        first["segmentation"] = [[1, 2, 3]]

    sample = write_lvis(tmp_path)
    boxes = len(read(sample)[11].boxes)
    rows = read(edited(sample, damage))
    assert [row.status for row in rows] == [
        *["ok"] * 3,
        "bad_image",
        "ok",
        "bad_unsafe_member",
        "bad_duplicate_key",
        "bad_duplicate_key",
        "bad_image",
        "bad_image",
        "ok",
        "ok",
    ]
    assert [row.lost for row in rows[:3]] == [("lost_image_labels",)] * 3
    assert rows[0].reason == "neg_category_ids is not a list of category ids"
    assert rows[0].neg_labels.tolist() == []
    assert rows[1].reason == "not_exhaustive_category_ids holds ids that are no category of the file"
    assert rows[1].not_exhaustive_labels.tolist() == [0]
    assert rows[2].reason == "neg_category_ids is not a list of category ids"
    assert rows[4].key == "train2017/four.png"
    assert rows[10].neg_labels.tolist() == [0, 5]
    assert rows[11].lost == ("lost_box",)
    assert rows[11].reason == "box dropped: a polygon is not a list of x, y pairs"
    assert len(rows[11].boxes) == len(rows[11].box_masks) == len(rows[11].box_labels) == boxes - 1


def test_categories_that_clean_to_one_name_are_refused(tmp_path: Path) -> None:
    twice = edited(write_lvis(tmp_path), lambda body: body["categories"][0].update(id=3000, name="(cat)"))
    with pytest.raises(ValueError, match=r"the categories \[3000, 12\] are all called 'cat' once cleaned"):
        read(twice, Vocabulary(("cat",)))
