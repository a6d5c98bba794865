"""Crops against Pillow, pixel arithmetic, and CLIP's own image encoder."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_artifacts import pillow_crop
from small_towers import CONVNEXT, SIGLIP, VIT
from small_towers import small_clip as small_towers_clip

from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.models.clip import create_clip
from regionclip_core.models.crops import CropEncoder, crop_windows, cut_crops

FILL = (123, 117, 104)


def smooth_image(height=70, width=90, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def tensor(array):
    return torch.from_numpy(array.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("box", "context", "window"),
    [
        ([10, 20, 30, 50], 1.0, (5, 20, 30)),
        ([10, 20, 30, 50], 1.2, (2, 17, 36)),
        ([10, 20, 11, 20.4], 1.0, (10, 20, 1)),
        ([40, 40, 40, 40], 1.5, (40, 40, 1)),  # no area
        ([-20, 0, 20, 10], 1.0, (-20, -15, 40)),
    ],
)
def test_windows(box, context, window):
    assert crop_windows(torch.tensor([box]), context) == [window]


def test_windows_are_centred_on_the_box():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(200, 2, generator=generator) * 40], dim=1)
    for box, (left, top, side) in zip(boxes.double(), crop_windows(boxes, 1.3), strict=True):
        assert abs(side - 1.3 * max(box[2] - box[0], box[3] - box[1])) <= 0.5
        assert abs(left + side / 2 - (box[0] + box[2]) / 2) <= 0.5
        assert abs(top + side / 2 - (box[1] + box[3]) / 2) <= 0.5


@pytest.mark.parametrize("box", [[20, 20, 60, 45], [30, 10, 40, 20], [-15, -5, 30, 30], [70, 50, 120, 95]])
def test_crops_match_pillow(box):
    array = smooth_image()
    left, top, side = crop_windows(torch.tensor([box]), 1.2)[0]
    square = Image.new("RGB", (side, side), FILL)
    square.paste(Image.fromarray(array), (-left, -top))
    expected = np.asarray(square.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.int64)
    actual = cut_crops(tensor(array), torch.tensor([box]), 1.2, 32, FILL)
    assert actual.shape == (1, 3, 32, 32)
    assert actual.dtype == torch.uint8
    assert np.abs(actual[0].permute(1, 2, 0).numpy().astype(np.int64) - expected).max() <= 1


def test_memory_layout_of_the_image_does_not_matter():
    image = tensor(smooth_image())  # a view of interleaved colours
    boxes = torch.tensor([[5.0, 6.0, 40.0, 30.0], [60.0, 40.0, 99.0, 80.0]])
    assert torch.equal(cut_crops(image, boxes, 1.2, 16, FILL), cut_crops(image.contiguous(), boxes, 1.2, 16, FILL))


def test_box_outside_the_image_is_the_mean_colour():
    crop = cut_crops(tensor(smooth_image()), torch.tensor([[200.0, 200.0, 220.0, 230.0]]), 1.2, 8, FILL)
    assert (crop == torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1)).all()


def test_no_boxes():
    assert cut_crops(tensor(smooth_image()), torch.zeros(0, 4), 1.2, 8, FILL).shape == (0, 3, 8, 8)


def small_clip():
    config = ClipArchitecture(vision_width=8, embed_dim=16, text_width=16, text_heads=2)
    clip = create_clip(TeacherConfig(weights="random", architecture=config), seed=3)
    torch.manual_seed(0)
    for module in clip.model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return clip


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_encoder_is_clip_on_the_crops(batch_size):
    clip = small_clip()
    images = [tensor(smooth_image(seed=1)), tensor(smooth_image(64, 64, seed=2)), tensor(smooth_image(seed=3))]
    boxes = [
        torch.tensor([[5.0, 6.0, 40.0, 30.0], [60.0, 40.0, 99.0, 80.0]]),
        torch.zeros(0, 4),
        torch.tensor([[1.0, 1.0, 80.0, 60.0]]),
    ]
    fill = [round(255 * value) for value in clip.mean]
    rows = []
    for image, image_boxes in zip(images, boxes, strict=True):
        for box in image_boxes:
            crop = cut_crops(image, box[None], 1.5, 64, fill).numpy().astype(np.float64) / 255
            crop = (crop - np.reshape(clip.mean, (1, 3, 1, 1))) / np.reshape(clip.std, (1, 3, 1, 1))
            rows.append(clip.model.encode_image(torch.from_numpy(crop).float()))
    actual = CropEncoder(clip, context=1.5, batch_size=batch_size)(images, boxes)
    assert not actual.requires_grad
    torch.testing.assert_close(actual, torch.cat(rows).detach(), atol=1e-5, rtol=1e-5)


def test_a_vit_works_too():
    from regionclip_core.models.clip import build_clip

    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    clip = build_clip({"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "tiny-vit", 0)
    image, box = tensor(smooth_image()), torch.tensor([[5.0, 6.0, 40.0, 30.0]])
    crop = cut_crops(image, box, 1.2, 32, [round(255 * value) for value in clip.mean]).float() / 255
    crop = (crop - torch.tensor(clip.mean).view(3, 1, 1)) / torch.tensor(clip.std).view(3, 1, 1)
    actual = CropEncoder(clip)([image], [box])
    torch.testing.assert_close(actual, clip.model.encode_image(crop).detach(), atol=1e-5, rtol=1e-5)


def test_nothing_to_encode():
    encoder = CropEncoder(small_clip())
    assert encoder([], []).shape == (0, 16)
    assert encoder([tensor(smooth_image())], [torch.zeros(0, 4)]).shape == (0, 16)


@pytest.mark.parametrize("description", [VIT, SIGLIP, CONVNEXT], ids=["vit", "siglip", "convnext"])
def test_any_image_tower_sees_the_crop_that_pillow_makes(description):
    clip = small_towers_clip(description)
    arrays = [smooth_image(seed=1), smooth_image(64, 64, seed=2)]
    boxes = [torch.tensor([[5.0, 6.0, 40.0, 30.0], [60.0, 40.0, 99.0, 80.0]]), torch.tensor([[1.0, 1.0, 60.0, 30.0]])]
    crops = [pillow_crop(a, box.tolist(), 1.3, clip) for a, some in zip(arrays, boxes, strict=True) for box in some]
    with torch.no_grad():
        expected = torch.cat([clip.model.encode_image(crop[None]) for crop in crops])
    actual = CropEncoder(clip, context=1.3, batch_size=2)([tensor(array) for array in arrays], boxes)
    assert actual.shape == (3, 24)
    # A level of 255 here and there is rounded the other way.
    assert (actual - expected).abs().max() < 0.02 * expected.abs().max()
    assert (torch.cosine_similarity(actual, expected) > 0.9995).all()
    assert (torch.cosine_similarity(actual[[1, 2, 0]], expected) < 0.999).all()
