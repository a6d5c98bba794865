"""The mask head against plain sums over its weights, its official names, and the loss against a loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regionclip_core.detection.detector import MaskHead
from regionclip_core.detection.losses import mask_loss


def official(channels: int) -> dict[str, list[int]]:
    """Names and shapes of the official LVIS checkpoints' `roi_heads.mask_head.*` (shared/reference)."""
    return {
        "deconv.weight": [channels, 256, 2, 2],
        "deconv.bias": [256],
        "predictor.weight": [1, 256, 1, 1],
        "predictor.bias": [1],
    }


@pytest.mark.parametrize(("channels", "side"), [(2048, 7), (2560, 9)])  # RN50, RN50x4
def test_names_and_shapes_are_the_official_ones(channels: int, side: int) -> None:
    head = MaskHead(channels)
    assert {name: list(tensor.shape) for name, tensor in head.state_dict().items()} == official(channels)
    with torch.no_grad():
        assert head(torch.zeros(2, channels, side, side)).shape == (2, 2 * side, 2 * side)


def test_values_against_plain_sums() -> None:
    torch.manual_seed(0)
    head, x = MaskHead(6).double(), torch.randn(3, 6, 4, 4, dtype=torch.float64)
    torch.nn.init.normal_(head.deconv.bias)
    torch.nn.init.normal_(head.predictor.bias)
    weight, bias = head.deconv.weight.detach().numpy(), head.deconv.bias.detach().numpy()
    out, offset = head.predictor.weight.detach().numpy()[0, :, 0, 0], head.predictor.bias.item()
    expected = np.zeros((3, 8, 8))
    for i in range(8):
        for j in range(8):  # with stride 2, each output cell has one input cell and one corner of the kernel
            hidden = x.numpy()[:, :, i // 2, j // 2] @ weight[:, :, i % 2, j % 2] + bias
            expected[:, i, j] = np.maximum(hidden, 0) @ out + offset
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_initial_weights() -> None:
    """He's normal by fan-out, which is the input channels' side of a transposed convolution; a flat predictor."""
    torch.manual_seed(0)
    head = MaskHead(512)
    assert head.deconv.weight.std().item() == pytest.approx((2 / (512 * 4)) ** 0.5, rel=0.01)
    assert head.predictor.weight.std().item() == pytest.approx(0.001, rel=0.2)
    assert not head.deconv.bias.any() and not head.predictor.bias.any()


def test_loss_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 5, generator=generator, dtype=torch.float64) * 3
    wanted = torch.rand(4, 5, 5, generator=generator) > 0.5
    total = 0.0
    for value, label in zip(logits.flatten().tolist(), wanted.flatten().tolist(), strict=True):
        p = 1 / (1 + np.exp(-value))
        total -= np.log(p if label else 1 - p)
    assert float(mask_loss(logits, wanted)) == pytest.approx(total / 100, rel=1e-12)


def test_no_foreground_gives_a_zero_with_gradients_of_zero() -> None:
    """Every parameter takes part, or the other ranks of a distributed training would wait for it."""
    head = MaskHead(6)
    maps = torch.randn(3, 6, 4, 4, requires_grad=True)
    loss = mask_loss(head(maps[torch.zeros(3, dtype=torch.bool)]), torch.zeros(0, 8, 8, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    for tensor in [maps, *head.parameters()]:
        assert tensor.grad is not None
        assert not tensor.grad.any()
