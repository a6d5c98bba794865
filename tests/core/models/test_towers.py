"""RegionEncoder against the official visual encoder, RoIAlign, stage 4, attention pool and gradients."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from places import GOLDEN as GOLDEN_FOLDER
from torch import nn
from torchvision.ops import roi_align

from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.models.clip import create_clip
from regionclip_core.models.resnet_encoder import ResNetEncoder, pool_single_query
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import normalize_and_pad, pixel_batch, resized_shape

GOLDEN = np.load(GOLDEN_FOLDER / "region_features.npz")
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FEATURE_TOLERANCE = {"atol": 5e-6, "rtol": 5e-6}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


@pytest.fixture(params=["contiguous", "channels_last"])
def encoder(request):
    visual = ModifiedResNet(layers=(2, 2, 2, 2), output_dim=32, heads=4, image_size=224, width=8)
    weights = {key[2:]: golden(key) for key in GOLDEN.files if key.startswith("w/")}
    missing, unexpected = visual.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    encoder = ResNetEncoder(visual).train()
    encoder.freeze(2)
    if request.param == "channels_last":
        encoder = encoder.to(memory_format=torch.channels_last)
    return encoder


@pytest.fixture
def images():
    return normalize_and_pad([golden("image0_rgb_u8"), golden("image1_rgb_u8")], MEAN, STD)


def boxes():
    return [golden("boxes0"), golden("boxes1")]


def test_normalised_and_padded_batch(images):
    assert images.shape == (2, 3, 190, 213)
    torch.testing.assert_close(images, golden("input_tensor"), atol=1e-6, rtol=1e-6)


def test_every_step_matches_the_official_one(encoder, images):
    features = encoder.features(images)
    torch.testing.assert_close(features, golden("res4"), **FEATURE_TOLERANCE)
    maps = encoder.regions(features, boxes())
    torch.testing.assert_close(maps, golden("res5"), **FEATURE_TOLERANCE)
    torch.testing.assert_close(maps.mean((2, 3)), golden("region_feats_meanpool"), **FEATURE_TOLERANCE)
    torch.testing.assert_close(encoder.pool(maps), golden("region_feats"), **FEATURE_TOLERANCE)
    torch.testing.assert_close(encoder(images, boxes()), golden("region_feats"), **FEATURE_TOLERANCE)


@pytest.mark.parametrize("side", [1, 9, 14, 15])
def test_the_narrowest_image_has_features(encoder, side):
    """Where the official code fails, those of the image with zeros beside it."""
    image = torch.randn(1, 3, side, 70)
    canvas = torch.zeros(1, 3, 15, 70)
    canvas[:, :, :side] = image
    for given, padded in ((image, canvas), (image.mT, canvas.mT)):
        features = encoder.features(given)
        assert min(features.shape[2:]) == 1
        assert torch.equal(features, encoder.features(padded))


def test_roi_align_matches_the_official_one(encoder):
    features = golden("res4")
    if encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last):
        features = features.contiguous(memory_format=torch.channels_last)
    rois = torch.cat([F.pad(b, (1, 0), value=number) for number, b in enumerate(boxes())])
    aligned = encoder.align(features, rois)
    assert aligned.shape == (20, 128, 14, 14)
    torch.testing.assert_close(aligned[:, :16], golden("roi_aligned_first16ch"), **FEATURE_TOLERANCE)
    torch.testing.assert_close(aligned[:4], golden("roi_aligned_full_box0to3"), **FEATURE_TOLERANCE)


def test_global_feature_matches_the_official_one(encoder, images):
    canvas = [torch.tensor([[0.0, 0.0, 213.0, 190.0]])] * 2
    torch.testing.assert_close(encoder(images, canvas), golden("global_feats"), **FEATURE_TOLERANCE)


def test_gradients_match_the_official_ones(encoder, images):
    (encoder(images, boxes()) * golden("probe")).sum().backward()
    parameters = dict(encoder.named_parameters())
    checked = [key[5:] for key in GOLDEN.files if key.startswith("grad/")]
    assert len(checked) == 12
    for key in checked:
        torch.testing.assert_close(parameters[key].grad, golden(f"grad/{key}"), atol=1e-5, rtol=1e-4)
    for key, parameter in parameters.items():
        frozen = key.startswith(("conv", "bn", "layer1")) or ".bn" in key or "downsample.1" in key
        assert (parameter.grad is None) == frozen, key


@pytest.mark.parametrize(("heads", "channels", "side"), [(1, 8, 1), (4, 64, 2), (8, 32, 3)])
def test_single_query_is_the_full_attention_pool(heads, channels, side):
    torch.manual_seed(heads)
    pool = AttentionPool2d(side, channels, heads, 12)
    for parameter in pool.parameters():
        nn.init.normal_(parameter, std=0.3)
    maps = torch.randn(5, channels, side, side, requires_grad=True)
    expected, actual = pool(maps), pool_single_query(pool, maps)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    wanted = [maps, *pool.parameters()]
    probe = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad((actual * probe).sum(), wanted),
        torch.autograd.grad((expected * probe).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def small_clip(**architecture):
    config = ClipArchitecture(vision_width=8, embed_dim=16, text_width=16, text_heads=2, **architecture)
    clip = create_clip(TeacherConfig(weights="random", architecture=config), seed=1)
    torch.manual_seed(0)
    for module in clip.model.visual.modules():  # open_clip's start leaves all residual branches at 0
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return clip


@pytest.mark.parametrize("size", [64, 96])
def test_reference_resolution_sets_the_roi_size(size):
    encoder = region_encoder(small_clip(image_size=size))
    assert encoder.roi_size == size // 16
    features = encoder.features(torch.randn(2, 3, 160, 128))
    maps = encoder.regions(features, [torch.tensor([[0.0, 0.0, 50.0, 60.0]]), torch.zeros(0, 4)])
    assert maps.shape == (1, 256, size // 32, size // 32)
    assert encoder.pool(maps).shape == (1, encoder.embed_dim) == (1, 16)
    assert encoder.feature_dim == 256


def test_encoder_is_the_visual_tower_in_two_parts():
    clip = small_clip()
    encoder = region_encoder(clip)
    images = torch.randn(3, 3, 64, 64)
    whole = encoder.pool(encoder.layer4(encoder.features(images)))
    torch.testing.assert_close(whole, clip.encode_images(images), **FEATURE_TOLERANCE)
    features = encoder.features(images)
    box = [torch.tensor([[5.0, 9.0, 40.0, 62.0]])] * 3
    aligned = roi_align(features, box, 4, 1 / 16, encoder.sampling_ratio, aligned=True)
    torch.testing.assert_close(encoder(images, box), encoder.pool(encoder.layer4(aligned)))


def test_sampling_ratio_is_used():
    encoder = region_encoder(small_clip())
    images, box = torch.randn(1, 3, 256, 256), [torch.tensor([[3.0, 3.0, 250.0, 240.0]])]
    adaptive = encoder(images, box)
    encoder.sampling_ratio = 1
    assert not torch.allclose(encoder(images, box), adaptive, atol=1e-4)


def test_no_boxes_at_all():
    encoder = region_encoder(small_clip())
    out = encoder(torch.randn(2, 3, 64, 96), [torch.zeros(0, 4)] * 2)
    out.sum().backward()
    assert out.shape == (0, 16)


@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing(freeze_at):
    encoder = region_encoder(small_clip())
    encoder.freeze(5)
    encoder.freeze(freeze_at)
    trainable = {key.split(".")[0] for key, p in encoder.named_parameters() if p.requires_grad}
    stem = {"conv1", "conv2", "conv3"}
    parts = [stem, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}, {"attnpool"}]
    assert trainable == set().union(*parts[freeze_at:])


def test_norms_never_move():
    encoder = region_encoder(small_clip()).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items() if "bn" in key or "downsample.1" in key}
    optimizer = torch.optim.SGD([p for p in encoder.parameters() if p.requires_grad], lr=0.1)
    encoder(torch.randn(2, 3, 64, 64), [torch.tensor([[0.0, 0.0, 64.0, 64.0]])] * 2).sum().backward()
    optimizer.step()
    after = encoder.state_dict()
    assert before
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert encoder.training
    assert encoder.layer4.training
    assert not any(m.training for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))


def test_clip_model_is_not_touched():
    clip = small_clip()
    encoder = region_encoder(clip)
    encoder.freeze(5)
    with torch.no_grad():
        encoder.conv1.weight.zero_()
    assert clip.model.visual.conv1.weight.abs().sum() > 0
    assert clip.model.visual.conv1.weight.requires_grad


@pytest.mark.parametrize("case", json.loads((GOLDEN_FOLDER / "misc.json").read_text())["image_sizes"])
def test_resized_shape_is_the_official_detection_rule(case):
    assert list(resized_shape(*case["input_hw"], 800, 1333)) == case["detection_test_hw"]
    assert list(resized_shape(*case["input_hw"], 640, 1333)) == case["detection_train640_hw"]


def test_a_batch_is_resized_as_pillow_does():
    from PIL import Image

    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    arrays = [np.asarray(Image.fromarray(small).resize((w, h))) for w, h in [(120, 90), (50, 80)]]
    batch = pixel_batch([torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays], 60, 90, MEAN, STD).to("cpu")
    assert batch.sizes == [(60, 80), (90, 56)]
    assert batch.original_sizes == [(90, 120), (80, 50)]
    assert batch.tensor.shape == (2, 3, 90, 80)
    for tensor, array, (h, w) in zip(batch.tensor, arrays, batch.sizes, strict=True):
        expected = np.asarray(Image.fromarray(array).resize((w, h), Image.Resampling.BILINEAR), dtype=np.float64)
        pixels = (tensor[:, :h, :w] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255
        assert np.abs(pixels.permute(1, 2, 0).numpy() - expected).max() <= 1.01  # one level, from rounding
        assert not tensor[:, h:].any()
        assert not tensor[:, :, w:].any()


def test_boxes_go_to_the_input_and_back():
    batch = pixel_batch([torch.zeros(3, 427, 640, dtype=torch.uint8)], 128, 1333, MEAN, STD).to("cpu")
    assert batch.sizes == [(128, 192)]
    whole = torch.tensor([[0.0, 0.0, 640.0, 427.0]])
    torch.testing.assert_close(batch.to_input(0, whole), torch.tensor([[0.0, 0.0, 192.0, 128.0]]))
    torch.testing.assert_close(batch.to_original(0, batch.to_input(0, whole)), whole)


def test_global_boxes():
    images = [torch.zeros(3, 64, 96, dtype=torch.uint8), torch.zeros(3, 80, 64, dtype=torch.uint8)]
    batch = pixel_batch(images, 64, 200, MEAN, STD).to("cpu")
    assert [b.tolist() for b in batch.global_boxes()] == [[[0, 0, 96, 64]], [[0, 0, 64, 80]]]
    assert [b.tolist() for b in batch.global_boxes("padded")] == [[[0, 0, 96, 80]]] * 2


@pytest.mark.parametrize("count", [2, 40, 300])
def test_embeddings_and_gradients_are_those_of_the_plain_modules(count):
    """Few regions: convolved after RoIAlign; many: before it, in several parts. Stage 4 is wide enough for Winograd."""
    config = ClipArchitecture(vision_width=32, embed_dim=16, text_width=16, text_heads=2, image_size=64)
    visual = create_clip(TeacherConfig(weights="random", architecture=config), seed=1).model.visual.eval()
    generator = torch.Generator().manual_seed(count)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(std=0.1, generator=generator)
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    encoder = ResNetEncoder(visual).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 96, 128, generator=generator)
    low = torch.rand(count, 2, generator=generator) * 90
    box = torch.cat([low, low + torch.rand(count, 2, generator=generator) * 60], dim=1)  # some leave the image
    boxes = [box[: count // 2], box[count // 2 :]]

    found = encoder(images, boxes)
    x = visual.act1(visual.bn1(visual.conv1(images)))
    x = visual.act2(visual.bn2(visual.conv2(x)))
    x = visual.avgpool(visual.act3(visual.bn3(visual.conv3(x))))
    x = visual.layer3(visual.layer2(visual.layer1(x)))
    expected = visual.attnpool(visual.layer4(roi_align(x, boxes, 4, 1 / 16, 0, aligned=True)))

    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.detach().abs().max()), rtol=1e-4)
    with torch.no_grad():  # no graph: other parts, the same result
        torch.testing.assert_close(
            encoder(images, boxes), found, atol=1e-6 * float(found.detach().abs().max()), rtol=1e-5
        )
        maps = encoder.regions(encoder.features(images), boxes)
        torch.testing.assert_close(encoder.pool(maps), found, atol=1e-6 * float(found.detach().abs().max()), rtol=1e-5)
    probe = torch.randn(found.shape, generator=generator)
    (found * probe).sum().backward()
    (expected * probe).sum().backward()
    plain = dict(visual.named_parameters())
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad and name != "attnpool.k_proj.bias":  # its gradient is zero but for rounding
            wanted = plain[name].grad
            torch.testing.assert_close(parameter.grad, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=1e-3)
