"""Training boxes: what reaches training, and that pixels and boxes stay together on the way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_artifacts import (
    BASE_IDS,
    COLOURS,
    NOVEL_IDS,
    Picture,
    painted_box,
    rows_of,
    tear,
    unnormalised,
    write_data,
)

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatch, BoxBatches, BoxedImage, boxed_images, labelled_boxes

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def naive_boxes(row: IndexRow, allowed: tuple[int, ...]) -> list[tuple[list[float], int]]:
    kept = []
    for box, label, crowd in zip(row.boxes, row.box_labels, row.box_crowd, strict=True):
        if int(label) in allowed and not crowd:
            kept.append((box.tolist(), int(label)))
    return kept


def batches(data: Folder, images: list[BoxedImage], **settings: Any) -> Any:
    defaults: dict[str, Any] = {"batch_size": 2, "image_size": 48, "max_size": 200, "flip": 0.0, "seed": 5}
    at = BoxBatches(images=images, reader=ImageReader(data), mean=MEAN, std=STD, **{**defaults, **settings})
    return lambda step: at(step).to("cpu")


def assert_same(one: BoxBatch, other: BoxBatch) -> None:
    assert torch.equal(one.images.tensor, other.images.tensor)
    assert one.images.sizes == other.images.sizes
    assert one.seeds == other.seeds
    for a, b in zip(one.boxes + one.labels + one.extra, other.boxes + other.labels + other.extra, strict=True):
        assert torch.equal(a, b)


def canvas(batch: BoxBatch, i: int) -> torch.Tensor:
    """One image of a batch without its padding."""
    height, width = batch.images.sizes[i]
    return batch.images.tensor[i, :, :height, :width]


@pytest.mark.parametrize("allowed", [BASE_IDS, NOVEL_IDS, (0, 1, 2, 3), (1,), ()])
def test_labelled_boxes_against_a_loop(boxes_data: Folder, allowed: tuple[int, ...]) -> None:
    for row in rows_of(boxes_data, "train"):
        boxes, labels = labelled_boxes(row, set(allowed))
        assert boxes.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert list(zip(boxes.tolist(), labels.tolist(), strict=True)) == naive_boxes(row, allowed)


def test_novel_objects_crowds_and_bad_images_never_reach_training(boxes_data: Folder) -> None:
    expected = {
        row.key: naive_boxes(row, BASE_IDS)
        for row in rows_of(boxes_data, "train")
        if row.status == "ok" and naive_boxes(row, BASE_IDS)
    }
    assert [len(boxes) for boxes in expected.values()] == [1, 1, 1, 2, 1]  # three images have nothing to learn from
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    assert [image.row.key for image in images] == list(expected)
    for image in images:
        assert list(zip(image.boxes.tolist(), image.labels.tolist(), strict=True)) == expected[image.row.key]
        assert image.extra.shape == (0, 4)


def test_only_base_boxes_of_the_world(world: dict[str, Folder]) -> None:
    vocabulary = Vocabulary.from_json(world["data"].read_json("categories.json"))
    names = [vocabulary.names[label] for row in rows_of(world["data"], "train") for label in row.box_labels]
    assert set(names) & set(vocabulary.novel)  # or this test would show nothing
    images = boxed_images(world["data"], "train", set(vocabulary.base_ids))
    seen = [vocabulary.names[int(label)] for image in images for label in image.labels]
    assert sorted(seen) == sorted(name for name in names if name in vocabulary.base)


def test_a_split_without_a_usable_box_is_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, {"train": [[Picture(40, 40, ((1, 1, 20, 20),), (1,)), Picture(40, 40)]]})
    with pytest.raises(ValueError, match="split 'train' has no image with a box of the wanted categories"):
        boxed_images(data, "train", set(BASE_IDS))


def test_boxes_of_another_vocabulary_are_refused(boxes_data: Folder, tmp_path: Path) -> None:
    data = Folder(shutil.copytree(boxes_data.url, tmp_path / "other").as_posix())
    data.write_json("categories.json", Vocabulary(("cat", "dog", "bus", "mug"), base=("cat", "bus")).to_json())
    with pytest.raises(ValueError, match="its box labels are of vocabulary"):
        boxed_images(data, "train", set(BASE_IDS))


@pytest.mark.parametrize(("image_size", "flip"), [(48, 0.0), (48, 1.0), (48, 0.5), (96, 0.5), (31, 0.5)])
def test_boxes_are_where_their_pixels_are(boxes_data: Folder, image_size: int, flip: float) -> None:
    """Every box and extra box encloses the colour it was painted in, flipped or resized as the image was."""
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    images = [replace(image, extra=image.boxes + torch.tensor([-1.0, -2, 1, 2])) for image in images]
    at = batches(boxes_data, images, batch_size=5, image_size=image_size, flip=flip)
    flips = set()
    for step in range(3):
        batch = at(step)
        for i in range(5):
            pixels = unnormalised(canvas(batch, i), MEAN, STD)
            ratio = torch.tensor(batch.images.sizes[i]) / torch.tensor(batch.images.original_sizes[i])
            y, x = ratio.tolist()
            assert min(batch.images.sizes[i]) == image_size
            for box, label, extra in zip(batch.boxes[i], batch.labels[i], batch.extra[i], strict=True):
                resized = batch.images.sizes[i] != batch.images.original_sizes[i]
                found = painted_box(pixels, COLOURS[label], tolerance=110 if resized else 60)
                # A resized edge is blurred over the pixels on both sides of it.
                np.testing.assert_allclose(box.numpy(), found, atol=1.0 if resized else 0.01)
                np.testing.assert_allclose(
                    extra.numpy(), box.numpy() + np.array([-x, -2 * y, x, 2 * y]), rtol=1e-5, atol=1e-4
                )
            plain = next(im for im in images if torch.equal(im.labels, batch.labels[i]) and _sized(im, batch, i))
            flips.add(bool((batch.boxes[i] - batch.images.to_input(i, plain.boxes)).abs().max() > 1e-3))
    assert flips == {0.0: {False}, 1.0: {True}, 0.5: {False, True}}[flip]


def _sized(image: BoxedImage, batch: BoxBatch, i: int) -> bool:
    """Whether the heights of the boxes, which no flip changes, are this image's."""
    scaled = batch.images.to_input(i, image.boxes)
    return bool(torch.allclose(scaled[:, [1, 3]], batch.boxes[i][:, [1, 3]], atol=1e-3))


def test_inputs_have_each_axis_scaled_by_its_own_rounded_ratio(tmp_path: Path) -> None:
    data = write_data(tmp_path, {"train": [[Picture(50, 71, ((5, 7, 61, 43),), (0,))]]})
    images = boxed_images(data, "train", {0})
    batch = batches(data, images, batch_size=1, image_size=33, max_size=40)(0)
    # 71 -> 33 * 71 / 50 = 46.9, too long: both shrink to 40 and 33 * 40 / 46.86 = 28.2.
    assert batch.images.sizes == [(28, 40)]
    np.testing.assert_allclose(
        batch.boxes[0].numpy(), [[5 * 40 / 71, 7 * 28 / 50, 61 * 40 / 71, 43 * 28 / 50]], rtol=1e-6
    )


def test_two_ranks_together_see_one_ranks_batch(boxes_data: Folder) -> None:
    """In the same order, flipped or not alike, with the same seeds for what the losses draw."""
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    whole = batches(boxes_data, images, batch_size=4, flip=0.5)
    parts = [batches(boxes_data, images, batch_size=4, flip=0.5, rank=rank, world_size=2) for rank in (0, 1)]
    for step in range(5):
        one, two = whole(step), [part(step) for part in parts]
        assert [len(part.images) for part in two] == [2, 2]
        assert one.images.sizes == two[0].images.sizes + two[1].images.sizes
        for name in ("boxes", "labels"):
            together = getattr(two[0], name) + getattr(two[1], name)
            assert all(torch.equal(a, b) for a, b in zip(getattr(one, name), together, strict=True))
        for i in range(4):
            assert torch.equal(canvas(one, i), canvas(two[i // 2], i % 2))
        assert two[0].seeds + two[1].seeds == one.seeds
        assert len(set(one.seeds)) == 4


def test_an_epoch_holds_every_image_once(boxes_data: Folder) -> None:
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    everything = sorted(str(image.boxes.tolist()) for image in images)
    parts = [batches(boxes_data, images, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    drawn = [part(step) for step in range(10) for part in parts]
    stream = [str(batch.images.to_original(0, batch.boxes[0]).round().tolist()) for batch in drawn]
    epochs = [stream[5 * epoch : 5 * epoch + 5] for epoch in range(4)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) > 1


def test_a_batch_depends_on_its_step_alone(boxes_data: Folder) -> None:
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    straight = batches(boxes_data, images, flip=0.5)
    expected = [straight(step) for step in range(8)][7]
    assert_same(batches(boxes_data, images, flip=0.5)(7), expected)
    with pytest.raises(AssertionError):
        assert_same(batches(boxes_data, images, flip=0.5, seed=6)(7), expected)


def test_every_image_draws_its_own_size_and_the_boxes_follow(boxes_data: Folder) -> None:
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    at = batches(boxes_data, images, batch_size=5, train_sizes=(24, 33, 48), flip=0.5)
    seen = []
    for step in range(12):
        batch = at(step)
        seen += [min(size) for size in batch.images.sizes]
        for i, boxes in enumerate(batch.boxes):
            pixels = unnormalised(canvas(batch, i), MEAN, STD)
            for box, label in zip(boxes, batch.labels[i], strict=True):
                found = painted_box(pixels, COLOURS[label], tolerance=110)
                np.testing.assert_allclose(box.numpy(), found, atol=1.0)
    counts = [seen.count(size) for size in (24, 33, 48)]
    assert sum(counts) == 60 and min(counts) >= 10
    again = batches(boxes_data, images, batch_size=5, train_sizes=(24, 33, 48), flip=0.5)(11)
    assert_same(again, at(11))


def test_an_image_with_a_factor_comes_so_often(boxes_data: Folder) -> None:
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    factors = np.array([3.0, 1.0, 2.0, 1.0, 1.0])
    parts = [batches(boxes_data, images, factors=factors, rank=rank, world_size=2) for rank in (0, 1)]
    drawn = [part(step) for step in range(8) for part in parts]
    stream = [str(batch.images.to_original(0, batch.boxes[0]).round().tolist()) for batch in drawn]
    names = [str(image.boxes.tolist()) for image in images]
    for epoch in (stream[:8], stream[8:]):
        assert [epoch.count(name) for name in names] == [3, 1, 2, 1, 1]


def test_a_torn_image_gives_way_to_another(boxes_data: Folder, tmp_path: Path) -> None:
    data = Folder(shutil.copytree(boxes_data.url, tmp_path / "torn").as_posix())
    images = boxed_images(data, "train", set(BASE_IDS))
    tear(data, images[1].row)
    keys = {str(image.boxes.tolist()): image.key for image in images}

    def seen(data: Folder) -> list[str]:
        at = batches(data, images, batch_size=5)
        return [
            keys[str(batch.images.to_original(i, boxes).round().tolist())]
            for batch in (at(0), at(1))
            for i, boxes in enumerate(batch.boxes)
        ]

    whole = seen(boxes_data)
    expected = [whole[place + 1] if whole[place] == images[1].key else whole[place] for place in range(5)]
    assert seen(data)[:5] == expected


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(boxes_data: Folder) -> None:
    images = boxed_images(boxes_data, "train", set(BASE_IDS))
    with pytest.raises(ValueError, match="batch_size 3 does not divide among 2 workers"):
        batches(boxes_data, images, batch_size=3, world_size=2)
