"""RoIAlign: on a GPU torchvision's kernel, on a CPU two small matrix products per region.

RoIAlign is linear in the map, and bilinear weights are products of one factor per axis. So the bins of a region are
A_y F A_x^T with A [k, H] the mean weights of a bin's samples along one axis. torchvision's CPU kernel instead reads
four cells per sample and channel, one after the other. Averaged rows of A give averaged bins at no cost.

Shapes: B images, C channels, (H, W) cells of a map, R regions, k bins per side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor

_SMALL = 2**19  # products of one region with a whole map


def roi_align(maps: Tensor, rois: Tensor, bins: int, scale: float, sampling_ratio: int = 0, mean_of: int = 1) -> Tensor:
    """Return the aligned regions [R, C, k, k] of maps [B, C, H, W]; equal to torchvision's with aligned=True.

    Args:
        rois: float[R, 5], the number of the map, then the box, xyxy in pixels of the input.
        bins: per side before averaging.
        scale: cells of the map per pixel of the input.
        sampling_ratio: samples per bin and axis; 0: adaptive, as many as the bin has cells, rounded up.
        mean_of: average mean_of x mean_of neighbouring bins, so that k = bins / mean_of.
    """
    if maps.device.type != "cpu":
        aligned = torchvision.ops.roi_align(maps, rois, bins, scale, sampling_ratio, aligned=True)
        return F.avg_pool2d(aligned, mean_of) if mean_of > 1 else aligned
    height, width = maps.shape[2:]
    # In float32 throughout, as the kernel does. Aligned: cell centres are at half pixels.
    box = rois[:, 1:].float() * scale - 0.5
    rows = axis_weights(box[:, 1], box[:, 3], bins, height, sampling_ratio)
    columns = axis_weights(box[:, 0], box[:, 2], bins, width, sampling_ratio)
    if mean_of > 1:
        whole = bins // mean_of * mean_of  # the last bin of an odd number is left out, as avg_pool2d does
        rows, columns = (
            a[:, :whole].view(len(rois), bins // mean_of, mean_of, a.shape[2]).mean(2) for a in (rows, columns)
        )
    last = maps.permute(0, 2, 3, 1).contiguous()
    found: Tensor = _Separable.apply(last, rois[:, 0].long().tolist(), rows, columns)
    return found.permute(0, 3, 1, 2)


def axis_weights(low: Tensor, high: Tensor, bins: int, size: int, sampling_ratio: int = 0) -> Tensor:
    """Return the mean bilinear weights [R, bins, size] of the samples of each bin along one axis.

    `low`, `high`: float32[R], the regions' edges in cells. Samples more than one cell outside the map count as zeros,
    and an edge at or beyond the other leaves no samples at all.
    """
    length = high - low
    adaptive = torch.ceil(length / bins).clamp(min=0).long()
    samples = adaptive if sampling_ratio == 0 else torch.full_like(adaptive, sampling_ratio)  # [R]
    number = torch.arange(int(samples.max()) if len(samples) else 0)
    per_bin = samples.clamp(min=1)[:, None, None]
    bin_size = (length / bins)[:, None, None]
    where = low[:, None, None] + torch.arange(bins)[:, None] * bin_size + (number + 0.5) * bin_size / per_bin
    counts = (number < samples[:, None, None]) & (where >= -1) & (where <= size)  # [R, bins, samples]
    where = where.clamp(min=0)
    below = where.long().clamp(max=size - 1)
    above = (below + 1).clamp(max=size - 1)
    fraction = (where - below).clamp(max=1) * (below < size - 1)  # at the map's end the last cell counts alone
    share = counts / per_bin
    weights = torch.zeros(len(low), bins, size)
    weights.scatter_add_(2, below, share * (1 - fraction))
    weights.scatter_add_(2, above, share * fraction)
    return weights


class _Separable(torch.autograd.Function):
    """Aligned regions [R, k, k, C] of maps [B, H, W, C], n at a time on the cells that their weights touch."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, maps: Tensor, images: list[int], rows: Tensor, columns: Tensor) -> Tensor:
        ctx.shape, ctx.given = maps.shape, (images, rows, columns)
        channels, bins = maps.shape[3], rows.shape[1]
        out = maps.new_empty(len(images), bins, bins, channels)
        for some, image, y, x in _groups(ctx.shape, images, rows, columns):
            cells = maps[image, y, x]
            flat = cells.as_strided((len(cells), cells[0].numel()), (cells.stride(0), 1), cells.storage_offset())
            part = torch.mm(rows[some, :, y].flatten(0, 1).to(maps.dtype), flat).view(-1, bins, *cells.shape[1:])
            torch.matmul(columns[some, None, :, x].to(maps.dtype), part, out=out[some])  # [n, k, k, C]
        return out

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        images, rows, columns = ctx.given
        gradient = gradients[0].contiguous()
        total = gradient.new_zeros(ctx.shape)
        for some, image, y, x in _groups(ctx.shape, images, rows, columns):
            part = torch.matmul(columns[some, None, :, x].mT.to(gradient.dtype), gradient[some])  # [n, k, x, C]
            cells = total[image, y, x]
            flat = cells.as_strided((len(cells), cells[0].numel()), (cells.stride(0), 1), cells.storage_offset())
            flat.addmm_(rows[some, :, y].flatten(0, 1).T.to(gradient.dtype), part.view(-1, flat.shape[1]))
        return total, None, None, None


def _groups(
    shape: torch.Size, images: list[int], rows: Tensor, columns: Tensor
) -> Iterator[tuple[slice, int, slice, slice]]:
    """Yield regions with the number of their map, and the rows and columns of its cells that their weights touch.

    One region at a time; with small maps all neighbours of one image, on the whole map: calls cost more than cells.
    """
    if shape[1:].numel() * rows.shape[1] <= _SMALL:
        start = 0
        for image, same in itertools.groupby(images):
            end = start + len(list(same))
            yield slice(start, end), image, slice(None), slice(None)
            start = end
    else:
        for r, (image, y, x) in enumerate(zip(images, _windows(rows), _windows(columns), strict=True)):
            yield slice(r, r + 1), image, y, x


def _windows(weights: Tensor) -> list[slice]:
    """Return the range of cells that each region's weights [R, k, size] touch; the first cell where it is none."""
    touched = (weights != 0).any(1)
    touched[:, 0] |= ~touched.any(1)
    first = touched.int().argmax(1)
    end = touched.shape[1] - touched.flip(1).int().argmax(1)
    return [slice(*window) for window in zip(first.tolist(), end.tolist(), strict=True)]
