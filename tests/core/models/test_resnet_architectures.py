"""Every CLIP ResNet by its name, against open_clip's own modules put together plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from small_towers import TEXT, tower
from torch import nn
from torchvision.ops import roi_align

from regionclip_core.config.architectures import model_config, tower_of
from regionclip_core.models.clip import build_clip
from regionclip_core.models.resnet_encoder import ResNetEncoder
from regionclip_core.models.towers import region_encoder

BOXES = torch.tensor([[0.0, 0.0, 250.0, 190.0], [30.5, 12.0, 99.0, 171.0], [200.0, 100.0, 260.0, 120.0]])
NARROW: dict[str, Any] = {"layers": [1, 2, 1, 1], "width": 16}
EXPECTED = {  # image side, RoI side, embedding
    "RN50": (224, 14, 1024),
    "RN50-quickgelu": (224, 14, 1024),
    "RN101": (224, 14, 512),
    "RN50x4": (288, 18, 640),
    "RN50x16": (384, 24, 768),
    "RN50x64": (448, 28, 1024),
}


def shaken(visual: nn.Module) -> nn.Module:
    """Batch norms that do something; open_clip starts the last one of each block at 0."""
    generator = torch.Generator().manual_seed(0)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.8, 1.2, generator=generator)
            module.bias.data.normal_(std=0.1, generator=generator)
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.6, 1.4, generator=generator)
    return visual


def check(name: str, **changes: Any) -> None:
    visual = shaken(tower(name, **changes))
    side, roi, embedding = EXPECTED[name]
    image = torch.randn(1, 3, 190, 250, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        [res4] = visual.forward_intermediates(image, indices=[3], intermediates_only=True)["image_intermediates"]
        aligned = roi_align(res4, [BOXES], output_size=roi, spatial_scale=1 / 16, sampling_ratio=0, aligned=True)
        expected = visual.attnpool(visual.layer4(aligned))
        found = ResNetEncoder(visual)(image, [BOXES])
    assert found.shape == (3, embedding)
    assert visual.image_size == side
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("name", ["RN50", pytest.param("RN101", marks=pytest.mark.slow), "RN50x4"])
def test_true_architectures_against_open_clip(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RN50x16", "RN50x64"])
def test_true_large_architectures_against_open_clip(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", ["RN50x16", "RN50x64"])
def test_large_architectures_made_narrow(name: str) -> None:
    check(name, **NARROW)


@pytest.mark.parametrize("name", EXPECTED)
def test_by_name(name: str) -> None:
    description = {**model_config(name), "text_cfg": TEXT}
    assert tower_of(description).stride == 16
    description["vision_cfg"] = {**description["vision_cfg"], **NARROW}
    encoder = region_encoder(build_clip(description, name, 0))
    side, roi, embedding = EXPECTED[name]
    assert isinstance(encoder, ResNetEncoder)
    assert (encoder.roi_size, encoder.embed_dim, encoder.feature_dim) == (roi, embedding, 16 * 32)
    visual = ModifiedResNet(NARROW["layers"], embedding, 16 * 32 // 64, side, 16)
    assert list(encoder.state_dict()) == list(visual.state_dict())  # in the order of every checkpoint
