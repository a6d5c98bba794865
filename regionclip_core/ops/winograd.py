"""3x3 convolutions by Winograd's minimal filtering F(4x4, 3x3): 36 multiplications for 16 outputs instead of 144.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308, section 4): with three matrices,
y = A^T [(G g G^T) * (B^T d B)] A for a filter g and a tile d of 6 x 6 inputs, summed over channels, which is 36 matrix
products of all tiles with all filters. The matrices follow from five points (the construction of Cook and Toom). With
the paper's points 0, +-1 and +-2 float32 loses a digit; with points whose powers stay near 1 the error is that of
conv2d (Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution", arXiv 1803.10986).

oneDNN, which runs torch's convolutions on a CPU, doesn't use this. cuDNN does where it pays, so a GPU gets conv2d.

Shapes: N maps of C channels and (H, W) cells, O output channels, (h, w) tiles of 4 x 4 outputs. Maps are channels-last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_OUT, _IN = 4, 6  # sides of a tile's outputs and inputs
_POINTS = np.array([0, 2 / 3, -2 / 3, 3 / 2, -3 / 2])


def _matrices() -> tuple[Tensor, Tensor, Tensor]:
    """Return A^T, G and B^T for both axes at once: float32[16, 36], [36, 9] and [36, 36]."""
    at, g, bt = np.zeros((_OUT, _IN)), np.zeros((_IN, 3)), np.zeros((_IN, _IN))
    at[:, :-1] = _POINTS ** np.arange(_OUT)[:, None]
    for row, point in enumerate(_POINTS):
        others = np.delete(_POINTS, row)
        g[row] = point ** np.arange(3) / np.prod(point - others)
        bt[row, :-1] = np.poly(others)[::-1]
    # The sixth point is infinity.
    at[-1, -1] = g[-1, -1] = 1
    bt[-1] = np.poly(_POINTS)[::-1]
    both = [torch.from_numpy(np.kron(matrix, matrix)).float() for matrix in (at, g, bt)]
    return both[0], both[1], both[2]


_AT, _G, _BT = _matrices()


def winograd_weight(weight: Tensor) -> Tensor:
    """Return the transformed filters float32[36, C, O] of `weight` [O, C, 3, 3]."""
    outputs, channels = weight.shape[:2]
    return (_G @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(-1, channels, outputs)


def winograd_conv(x: Tensor, transformed: Tensor, bias: Tensor) -> Tensor:
    """Return conv2d(x, weight, bias, padding=1) of x [N, C, H, W], for `transformed` = winograd_weight(weight)."""
    x = x.permute(0, 2, 3, 1)
    n, height, width, channels = x.shape
    h, w = -(-height // _OUT), -(-width // _OUT)  # outputs beyond the map are cut off again
    x = F.pad(x, (0, 0, 1, _OUT * w + 1 - width, 1, _OUT * h + 1 - height))
    tiles = _BT @ _Tiles.apply(x).view(_IN * _IN, n * h * w * channels)
    products = torch.bmm(tiles.view(_IN * _IN, n * h * w, channels), transformed)
    y = _AT @ products.view(_IN * _IN, n * h * w * len(bias))  # [4 * 4, N * h * w * O]
    y = y.view(_OUT, _OUT, n, h, w, len(bias)).permute(2, 3, 0, 4, 1, 5).reshape(n, _OUT * h, _OUT * w, len(bias))
    return y[:, :height, :width].permute(0, 3, 1, 2) + bias.view(-1, 1, 1)


class _Tiles(torch.autograd.Function):
    """Overlapping tiles [6, 6, N, h, w, C] of padded maps [N, 4h + 2, 4w + 2, C].

    Its own backward, since that of Tensor.unfold takes seven times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.unfold(1, _IN, _OUT).unfold(2, _IN, _OUT).permute(4, 5, 0, 1, 2, 3).contiguous()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].new_zeros(ctx.shape)
        height, width = ctx.shape[1] - _IN + 1, ctx.shape[2] - _IN + 1
        for row in range(_IN):
            for column in range(_IN):
                total[:, row : row + height : _OUT, column : column + width : _OUT] += gradients[0][row, column]
        return total
