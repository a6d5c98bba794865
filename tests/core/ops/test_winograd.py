"""Winograd's form of a convolution against conv2d, values and gradients, and against float64."""

import pytest
import torch
import torch.nn.functional as F

from regionclip_core.ops.winograd import winograd_conv, winograd_weight


def inputs(n: int, channels: int, outputs: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(height)
    x = torch.randn(n, channels, height, width, generator=generator).relu()
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) * (2 / 9 / channels) ** 0.5
    return x.contiguous(memory_format=torch.channels_last), weight, torch.randn(outputs, generator=generator)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 7), (14, 14), (4, 8), (9, 3)])
def test_values_and_gradients_are_conv2ds(size: tuple[int, int]) -> None:
    given = [tensor.requires_grad_() for tensor in inputs(3, 16, 24, *size)]
    x, weight, bias = given
    found, expected = winograd_conv(x, winograd_weight(weight), bias), F.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    probe = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((result * probe).sum(), given) for result in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_no_digit_is_lost() -> None:
    """The error against float64 is at most twice conv2d's own; with the points 0, 1, -1, 2, -2 it is four times."""
    x, weight, bias = inputs(2, 256, 64, 14, 14)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    results = winograd_conv(x, winograd_weight(weight), bias), F.conv2d(x, weight, bias, padding=1)
    ours, theirs = (float((result - exact).abs().max()) for result in results)
    assert ours < 2 * max(theirs, 1e-6 * float(exact.abs().max()))


def test_no_maps() -> None:
    x, weight, bias = inputs(0, 8, 8, 14, 14)
    assert winograd_conv(x, winograd_weight(weight), bias).shape == (0, 8, 14, 14)
