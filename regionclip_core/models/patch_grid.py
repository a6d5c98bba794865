"""Images of any size as grids of patches, for towers that were trained on squares of one size.

Shapes: B images, (H, W) the padded canvas, p the patch's side in pixels, (h, w) a grid of patches, C channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = tuple[int, int]


def map_by_grid(
    images: Tensor, sizes: Sequence[tuple[int, int]] | None, patch: int, encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Features [B, C, max h, max w] of images [B, 3, H, W], each seen without the batch's padding.

    An image of (height, width) becomes a grid of ceil(height / p) x ceil(width / p) patches; the last row and column
    are filled up with zeros, the mean colour. `encode` gets the images of one grid, [n, 3, h*p, w*p], and gives
    [n, C, h, w]. Beyond an image's own grid its last row and column go on, as RoIAlign has it at the edge of a map.

    `sizes`: (height, width) of each image without padding; None: the canvas.
    """
    canvas = (int(images.shape[2]), int(images.shape[3]))
    groups: defaultdict[Grid, list[int]] = defaultdict(list)
    for row, (height, width) in enumerate([canvas] * len(images) if sizes is None else sizes):
        groups[-(-height // patch), -(-width // patch)].append(row)
    if len(groups) == 1:  # no copy of the batch
        [(grid, rows)] = groups.items()
        return encode(_fit(images, grid, patch))
    height, width = max(h for h, _ in groups), max(w for _, w in groups)
    maps, order = [], []
    for (h, w), rows in groups.items():
        found = encode(_fit(images[rows], (h, w), patch))
        maps.append(F.pad(found, (0, width - w, 0, height - h), mode="replicate"))
        order += rows
    return torch.cat(maps)[torch.tensor(order).argsort().to(images.device)]


def _fit(images: Tensor, grid: Grid, patch: int) -> Tensor:
    """Exactly `grid` patches: padding cut off on the right and below, or zeros put there."""
    height, width = grid[0] * patch, grid[1] * patch
    images = images[:, :, :height, :width]
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))


def resize_positions(positions: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Positional embeddings [h*w, C] of a grid, row by row, for another grid: [h'*w', C].

    Antialiased bicubic, which is how open_clip and timm fit weights to another image size.
    """
    if grid == target:
        return positions
    maps = positions.reshape(*grid, -1).permute(2, 0, 1)[None]
    resized = F.interpolate(maps, target, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).flatten(0, 1)
