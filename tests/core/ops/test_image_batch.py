"""The official pretraining's resize rule: sizes against its golden and torchvision, pixels against Pillow."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from places import GOLDEN as GOLDEN_FOLDER
from torchvision.transforms.functional import resize as torchvision_resize

from regionclip_core.ops.image_batch import ImageBatch, pixel_batch, resize_uint8, resized_shape

GOLDEN = json.loads((GOLDEN_FOLDER / "misc.json").read_text())["image_sizes"]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


@pytest.mark.parametrize("case", GOLDEN)
def test_sizes_are_the_official_ones(case: dict[str, list[int]]) -> None:
    assert list(resized_shape(*case["input_hw"], 800, 1333, "pretraining")) == case["pretrain_hw"]


def test_sizes_against_torchvision() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(8, 400, 2).tolist()
        short_side = int(rng.integers(8, 120))
        max_side = short_side + int(rng.integers(1, 150))
        if min(height, width) == short_side:  # where torchvision has changed its mind since
            continue
        image = torch.zeros(1, height, width, dtype=torch.uint8)
        expected = torchvision_resize(image, [short_side], max_size=max_side, antialias=False).shape[1:]
        assert resized_shape(height, width, short_side, max_side, "pretraining") == tuple(expected)


def photo(height: int, width: int) -> np.ndarray:
    """uint8[H, W, 3] with what photographs have: slopes, edges, fine texture and clipped highlights."""
    rng = np.random.default_rng([height, width])
    y, x = np.mgrid[:height, :width]
    image = 128 + 90 * np.sin(x / 17)[..., None] * np.cos(y / 11)[..., None] * np.array([1, 0.7, -0.8])
    image += rng.normal(0, 12, (height, width, 3))
    for _ in range(12):
        top, left = rng.integers(0, height), rng.integers(0, width)
        image[top : top + rng.integers(4, 60), left : left + rng.integers(4, 60)] = rng.uniform(-20, 275, 3)
    return image.clip(0, 255).astype(np.uint8)


def pillow(array: np.ndarray, height: int, width: int, method: Image.Resampling) -> np.ndarray:
    """Along the rows, then along the columns: Pillow's order until it began to choose by the work that each makes.

    Between the two, values are cut to 0..255, so that the order shows beside hard edges, where bicubic overshoots.
    """
    wide = Image.fromarray(array).resize((width, array.shape[0]), method)
    return np.asarray(wide.resize((width, height), method), np.float64)


@pytest.mark.parametrize(
    ("size", "short_side", "max_side"),
    [((120, 160), 200, 333), ((300, 400), 96, 160), ((210, 97), 60, 100), ((100, 130), 100, 110), ((90, 91), 89, 300)],
)
def test_pixels_are_pillows(size: tuple[int, int], short_side: int, max_side: int) -> None:
    array = photo(*size)
    image = torch.from_numpy(array).permute(2, 0, 1)
    batch = pixel_batch([image], short_side, max_side, MEAN, STD, "pretraining").to("cpu")
    height, width = resized_shape(*size, short_side, max_side, "pretraining")
    assert batch.sizes == [(height, width)]
    pixels = (batch.tensor[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    found = pixels.permute(1, 2, 0).numpy()
    assert np.abs(found - pillow(array, height, width, Image.Resampling.BICUBIC)).max() < 0.01  # float32's rounding
    if (height, width) != size:  # or this would show nothing
        assert np.abs(found - pillow(array, height, width, Image.Resampling.BILINEAR)).max() > 10


@pytest.mark.parametrize("method", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_every_value_is_pillows_at_many_sizes(method: Image.Resampling) -> None:
    rng = np.random.default_rng(3)
    for _ in range(60):
        size, shape = rng.integers(2, 260, 2).tolist(), rng.integers(1, 260, 2).tolist()
        array = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        image = torch.from_numpy(array).permute(2, 0, 1)
        for layout in (image, image.contiguous()):
            found = resize_uint8(layout, (shape[0], shape[1]), method.name.lower())
            assert np.array_equal(found.permute(1, 2, 0).numpy(), pillow(array, *shape, method)), (size, shape)


def test_a_photo_at_the_official_size_is_pillows_own_resize() -> None:
    """In one call, as the official code makes it (detectron2's ResizeShortestEdge, 800 pixels)."""
    array = photo(480, 640)
    batch = pixel_batch([torch.from_numpy(array).permute(2, 0, 1)], 800, 1333, (0, 0, 0), (1, 1, 1)).to("cpu")
    expected = np.asarray(Image.fromarray(array).resize((1067, 800), Image.Resampling.BILINEAR))
    assert np.array_equal((batch.tensor[0] * 255).round().permute(1, 2, 0).numpy(), expected)


def test_an_image_of_the_right_short_side_is_left_alone() -> None:
    image = torch.from_numpy(photo(60, 200)).permute(2, 0, 1)
    batch = pixel_batch([image], 60, 100, MEAN, STD, "pretraining").to("cpu")
    assert batch.sizes == [(60, 200)]
    pixels = (batch.tensor[0] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
    torch.testing.assert_close(pixels.round(), image.float(), atol=0, rtol=0)


def test_every_image_may_have_its_own_short_side() -> None:
    images = [torch.from_numpy(photo(*size)).permute(2, 0, 1) for size in [(80, 100), (50, 40), (64, 64)]]
    together = pixel_batch(images, [40, 60, 50], 80, MEAN, STD).to("cpu")
    assert together.sizes == [(40, 50), (75, 60), (50, 50)]
    for i, (image, side) in enumerate(zip(images, [40, 60, 50], strict=True)):
        alone = pixel_batch([image], side, 80, MEAN, STD).to("cpu")
        height, width = together.sizes[i]
        assert torch.equal(together.tensor[i, :, :height, :width], alone.tensor[0])
    with pytest.raises(ValueError, match="zip"):
        pixel_batch(images, [40, 60], 80, MEAN, STD).to("cpu")


def test_images_travel_as_bytes_and_are_normalised_where_they_arrive() -> None:
    images = [torch.from_numpy(photo(*size)).permute(2, 0, 1) for size in [(80, 100), (50, 40), (64, 64)]]
    batch = pixel_batch(images, 40, 60, MEAN, STD)
    assert batch.tensor.dtype == torch.uint8 and batch.tensor.shape == (3, 3, 50, 50)
    boxes = torch.tensor([[0.0, 10.0, 20.0, 30.0]])
    assert torch.equal(batch.to_input(1, boxes), boxes)
    arrived = pickle.loads(pickle.dumps(batch)).to("cpu")
    assert type(arrived) is ImageBatch and arrived.sizes == batch.sizes == [(40, 50), (50, 40), (40, 40)]
    assert arrived.original_sizes == [(80, 100), (50, 40), (64, 64)]
    for i, (height, width) in enumerate(batch.sizes):
        pixels = resize_uint8(images[i], (height, width), "bilinear")
        expected = (pixels / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        assert torch.equal(arrived.tensor[i, :, :height, :width], expected)
        assert not arrived.tensor[i, :, height:].any() and not arrived.tensor[i, :, :, width:].any()
