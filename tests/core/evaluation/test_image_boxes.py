"""The file of boxes, against a list of them."""

import os
import tempfile
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from regionclip_core.evaluation import image_boxes
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections


def images(count, rng, most=9):
    """What `CategoryRows.add` takes, for each image; some have no boxes."""
    for number in range(count):
        n = int(rng.integers(0, most))
        corners = rng.random((n, 2))
        boxes = np.concatenate((corners, rng.random((n, 2))), axis=1)
        masks = [rng.bytes(int(size)) for size in rng.integers(0, 30, n)]
        image = ImageDetections(count - number, boxes, rng.random(n).round(1), rng.integers(0, 5, n), masks)
        yield image, rng.random(n) < 0.8, {"area": rng.random(n), "crowd": rng.random(n) < 0.5, "score": image.scores}


@pytest.mark.parametrize("few", [1, 20, 10_000])
def test_a_category_comes_back_as_it_was_added(few, monkeypatch):
    monkeypatch.setattr(image_boxes, "BATCH_ROWS", few)
    file, expected = CategoryRows(), {label: [] for label in range(6)}
    for image, kept, columns in images(60, np.random.default_rng(0)):
        file.add(image, kept, **columns)
        for i in np.flatnonzero(kept):
            row = {name: values[i] for name, values in columns.items()}
            row |= {"image_id": image.image_id, "bbox": image.boxes[i].tolist(), "mask": image.masks[i]}
            expected[int(image.labels[i])].append({**row, "label": image.labels[i]})
    assert file.has_masks
    for label in (3, 5, 0, 1, 2, 4, 3):  # in any order, again, and one that has none
        assert file.read(label).to_pylist() == expected[label]
    assert len(expected[5]) == 0 < len(expected[0])


def test_nothing_added():
    file = CategoryRows()
    assert not file.has_masks
    assert file.read(0).num_rows == 0


def test_masks_are_there_when_every_image_came_with_them():
    some = [one for one in images(30, np.random.default_rng(4)) if one[1].all()]
    empty, other = (next(one for one in some if len(one[1]) == n) for n in (0, 3))
    file = CategoryRows()
    file.add(empty[0], empty[1], **empty[2])
    assert file.has_masks  # a model that makes masks and finds nothing
    file.add(replace(other[0], masks=None), other[1], **other[2])
    assert not file.has_masks
    masks = [one["mask"] for label in range(5) for one in file.read(label).to_pylist()]
    assert masks == [None] * 3


def test_memory_holds_what_is_not_yet_written(monkeypatch):
    monkeypatch.setattr(image_boxes, "BATCH_ROWS", 500)
    file, held, rng = CategoryRows(), [], np.random.default_rng(2)
    before = pa.total_allocated_bytes()
    for _ in range(20):
        for image, kept, columns in images(100, rng):
            file.add(image, kept, **columns)
        held.append(pa.total_allocated_bytes() - before)
    assert max(held) < 500 * 2000
    assert os.fstat(file._file.fileno()).st_size > 500_000
    file.read(2)
    assert pa.total_allocated_bytes() - before < 500 * 2000


def test_the_file_has_no_name_and_disappears(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    file = CategoryRows()
    for image, kept, columns in images(10, np.random.default_rng(3)):
        file.add(image, kept, **columns)
    rows = file.read(1)
    assert list(tmp_path.iterdir()) == []
    expected = rows.to_pylist()
    del file
    assert rows.to_pylist() == expected
