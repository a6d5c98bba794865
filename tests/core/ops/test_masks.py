"""What the mask head should predict, against loops over pixels and samples; flips, resizes, the way through a batch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mask_samples import add_masks, blob, coded, decoded, triangle
from small_artifacts import BASE_IDS, TRAIN, rows_of, write_data

from regionclip_core.datasets.images import ImageReader
from regionclip_core.ops.boxes import flip_horizontal
from regionclip_core.ops.masks import ImageMasks
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatches, boxed_images

SIZE = (60, 80)


def plain(*masks: np.ndarray) -> ImageMasks:
    """Masks of an image that was neither resized nor flipped."""
    return ImageMasks([coded(mask) for mask in masks], SIZE, SIZE)


def sampled(mask: np.ndarray, y: float, x: float) -> float:
    """Bilinear between pixel centres; zero a pixel and more outside, the edge's value before."""
    height, width = mask.shape
    y, x = y - 0.5, x - 0.5
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    i, j = int(y), int(x)
    k, m = min(i + 1, height - 1), min(j + 1, width - 1)
    v, u = y - i, x - j
    rows = (1 - u) * mask[i, j] + u * mask[i, m], (1 - u) * mask[k, j] + u * mask[k, m]
    return float((1 - v) * rows[0] + v * rows[1])


def naive_cover(mask: np.ndarray, box: list[float], side: int) -> np.ndarray:
    """[side, side]: mean of the samples of each cell, as many an axis as a cell has pixels, rounded up."""
    x0, y0, x1, y1 = box
    h, w = (y1 - y0) / side, (x1 - x0) / side
    ny, nx = math.ceil(h), math.ceil(w)
    result = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            values = [
                sampled(mask, y0 + (i + (a + 0.5) / ny) * h, x0 + (j + (b + 0.5) / nx) * w)
                for a in range(ny)
                for b in range(nx)
            ]
            result[i, j] = np.mean(values)
    return result


def test_crops_against_a_loop_over_samples() -> None:
    masks = [blob(SIZE, seed) for seed in range(3)]
    rng = np.random.default_rng(0)
    corner, length = rng.uniform(-3, 50, (20, 2)), rng.uniform(0.3, 60, (20, 2))
    boxes = np.hstack([corner, corner + length]).astype(np.float32)
    rows = rng.integers(0, 3, 20)
    found = plain(*masks).crop(torch.from_numpy(rows), torch.from_numpy(boxes), 6).numpy()
    decided = 0
    for crop, row, box in zip(found, rows, boxes, strict=True):
        cover = naive_cover(masks[row], box.tolist(), 6)
        clear = np.abs(cover - 0.5) > 1e-5
        decided += clear.sum()
        np.testing.assert_array_equal(crop[clear], (cover >= 0.5)[clear])
    assert decided > 0.95 * found.size
    assert 0.1 < found.mean() < 0.9


def test_cells_of_whole_pixels_are_their_majority() -> None:
    """A box of 14 x 14 cells of 3 x 2 pixels each: no interpolation is left, and half covered counts."""
    mask = (np.random.default_rng(0).random(SIZE) > 0.5).astype(np.uint8)
    found = plain(mask).crop(torch.tensor([0]), torch.tensor([[10.0, 5, 10 + 14 * 2, 5 + 14 * 3]]), 14)[0]
    cells = mask[5:47, 10:38].reshape(14, 3, 14, 2).sum((1, 3))
    assert (cells == 3).any()
    np.testing.assert_array_equal(found.numpy(), cells >= 3)


@pytest.mark.parametrize("flipped", [False, True])
def test_resized_and_flipped_images_have_their_masks_with_them(flipped: bool) -> None:
    """The region of a resized, mirrored image shows what the same region of a mirrored mask shows."""
    mask = blob(SIZE, 1)
    seen = ImageMasks([coded(mask)], SIZE, (90, 131), flipped)
    mirrored = plain(np.ascontiguousarray(mask[:, ::-1] if flipped else mask))
    boxes = torch.tensor([[3.0, 5, 40, 50], [20, 2, 79, 59], [33.3, 11.1, 44.4, 55.5]])
    resized = boxes * torch.tensor([131 / 80, 90 / 60] * 2)
    rows = torch.zeros(3, dtype=torch.int64)
    assert (seen.crop(rows, resized, 14) == mirrored.crop(rows, boxes, 14)).float().mean() > 0.995
    assert not seen.crop(rows, resized, 14).equal(seen.crop(rows, resized, 14).flip(2))


def test_no_region_is_no_crop() -> None:
    assert plain(blob(SIZE, 0)).crop(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), 14).shape == (0, 14, 14)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = write_data(tmp_path_factory.mktemp("masks"), {"train": TRAIN})
    add_masks(folder, "train")
    return folder


def test_images_bring_the_masks_of_the_boxes_that_training_may_see(data: Folder) -> None:
    images = boxed_images(data, "train", set(BASE_IDS), masks=True)
    rows = {row.key: row for row in rows_of(data, "train")}
    assert sum(len(rows[image.row.key].boxes) - len(image.boxes) for image in images) == 4  # novel, unknown, a crowd
    for image in images:
        size = (image.row.height, image.row.width)
        assert not image.row.box_masks
        assert image.masks is not None
        for box, counts in zip(image.boxes.tolist(), image.masks, strict=True):
            np.testing.assert_array_equal(decoded(counts, size), triangle(box, size))
    assert all(image.masks is None for image in boxed_images(data, "train", set(BASE_IDS)))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_masks_of_a_batch_are_where_its_boxes_are(data: Folder, flip: float) -> None:
    """Each box holds its triangle, mirrored where the image was."""
    images = boxed_images(data, "train", set(BASE_IDS), masks=True)
    at = BoxBatches(
        images=images, reader=ImageReader(data), batch_size=5, image_size=96, max_size=130, flip=flip,
        mean=(0.5,) * 3, std=(0.25,) * 3, seed=0,
    )  # fmt: skip
    batch = at(0)
    assert batch.masks is not None
    half = torch.arange(8)[:, None] + torch.arange(8) < 7
    seen = 0
    for masks, boxes in zip(batch.masks, batch.boxes, strict=True):
        for crop in masks.crop(torch.arange(len(boxes)), boxes, 8):
            off_diagonal = torch.arange(8)[:, None] + torch.arange(8) != 7
            expected, sure = (half.flip(1), off_diagonal.flip(1)) if flip else (half, off_diagonal)
            assert crop[sure].equal(expected[sure])
            seen += 1
    assert seen == 6
    assert {masks.flipped for masks in batch.masks} == {bool(flip)}


def test_a_batch_without_masks_says_so(boxes_data: Folder) -> None:
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    at = BoxBatches(
        images=images, reader=ImageReader(boxes_data), batch_size=2, image_size=48, max_size=99, flip=0.5,
        mean=(0.5,) * 3, std=(0.25,) * 3, seed=0,
    )  # fmt: skip
    assert at(0).masks is None


def test_missing_masks_name_the_split_and_the_setting(boxes_data: Folder) -> None:
    with pytest.raises(
        ValueError, match=r"split 'train': image .* 2 boxes and 0 masks.*data\.splits\.train\.masks: true"
    ):
        boxed_images(boxes_data, "train", set(BASE_IDS), masks=True)


def test_a_flip_of_boxes_is_the_flip_of_masks() -> None:
    """The two conventions of mirroring, on the box of a mask: continuous coordinates, so no pixel is lost."""
    mask = triangle((10, 20, 30, 50), SIZE)
    box = torch.tensor([[10.0, 20, 30, 50]])
    mirrored = np.ascontiguousarray(mask[:, ::-1])
    crop = plain(mirrored).crop(torch.tensor([0]), flip_horizontal(box, 80), 10)
    assert crop.equal(plain(mask).crop(torch.tensor([0]), box, 10).flip(2))
