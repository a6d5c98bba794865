"""RoIAlign as matrix products against torchvision's kernel, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
import torchvision.ops

from regionclip_core.ops.roi_align import roi_align

STRIDE = 16


def regions(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Regions of two maps in and around an image, thin ones and ones without area among them."""
    size = STRIDE * torch.tensor([width, height])
    low = torch.rand(count, 2, generator=generator) * size * 1.6 - 60
    box = torch.cat([low, low + torch.rand(count, 2, generator=generator) * size * 0.8], dim=1)
    box[0] = torch.tensor([5.0, 5.0, 5.0, 40.0])
    box[1] = torch.tensor([0.0, 0.0, *size.tolist()])
    box[2] = torch.tensor([-3e3, -2e3, 3e3, 2e3])
    box[3] = torch.tensor([3e3, 3e3, 4e3, 4e3])
    return torch.cat([torch.randint(0, 2, (count, 1), generator=generator).float(), box], dim=1)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
@pytest.mark.parametrize(("bins", "mean_of"), [(14, 1), (14, 2), (7, 1), (5, 2)])
def test_values_and_gradients_are_torchvisions(bins: int, mean_of: int, sampling_ratio: int) -> None:
    generator = torch.Generator().manual_seed(bins)
    for height, width in [(1, 1), (1, 9), (5, 4), (12, 30), (50, 76)]:
        maps = torch.randn(2, 40, height, width, generator=generator, requires_grad=True)
        rois = regions(20, height, width, generator)
        found = roi_align(maps, rois, bins, 1 / STRIDE, sampling_ratio, mean_of)
        expected = torchvision.ops.roi_align(maps, rois, bins, 1 / STRIDE, sampling_ratio, aligned=True)
        if mean_of > 1:
            expected = F.avg_pool2d(expected, mean_of)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        probe = torch.randn(found.shape, generator=generator)
        gradients = [torch.autograd.grad((result * probe).sum(), maps)[0] for result in (found, expected)]
        torch.testing.assert_close(*gradients, atol=2e-4, rtol=1e-4)


def test_a_region_with_its_edges_exchanged_is_empty() -> None:
    rois = torch.tensor([[0.0, 60.0, 10.0, 20.0, 50.0]])
    assert not roi_align(torch.ones(1, 3, 8, 8), rois, 7, 1 / STRIDE).any()


def test_no_regions() -> None:
    maps = torch.ones(2, 3, 8, 8, requires_grad=True)
    found = roi_align(maps, torch.zeros(0, 5), 7, 1 / STRIDE)
    found.sum().backward()
    assert found.shape == (0, 3, 7, 7)
    assert maps.grad is not None
    assert not maps.grad.any()
