"""Region embeddings of a CLIP ViT: dense patch features and RoIAlign.

CLIP trains the class token alone, and nothing makes a patch's last state describe that patch. So the last block leaves
its attention out and passes on the values: a patch then keeps its own content, in the space that the projection to
text was trained for: Zhou et al., "Extract Free Dense Labels from CLIP" (MaskCLIP, arXiv 2112.01071); with RoIAlign
and a mean per region: Wu et al., CLIPSelf (arXiv 2310.01403).

What the projection to text was trained on is the class token: a sum of values, one term per block and patch. With
`value_blocks` the features are these terms alone, of the last blocks, without the residual, which no class token has.

Shapes: B images, (H, W) the padded canvas, p the patch's side in pixels, (h, w) a grid of patches, N = h*w, C the
tower's width, R regions, D embedding.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from regionclip_core.models.region_encoder import Part, RegionEncoder, Sizes, mean_bins

ROI_SIZE = 7
"""Bins per side, as many as the official ResNet's region maps have; at CLIP's own 224 px they tile the grids of
ViT-B/32 and ViT-B/16 exactly."""
Grid = tuple[int, int]


class VitEncoder(RegionEncoder):
    """The modules of a CLIP ViT under their own names (`conv1`, ..., `transformer`, `ln_post`, `proj`).

    The whole image as a region doesn't give CLIP's own embedding of it, which comes from the class token. Both are in
    one space.
    """

    roi_size = bins = ROI_SIZE

    def __init__(self, visual: VisionTransformer, value_blocks: int = 0) -> None:
        """Take a deep copy of `visual`; the CLIP model it belongs to is not touched afterwards.

        Args:
            value_blocks: 0: the features are what the last block makes of a patch by itself. n: the sum, before the
                last norm, of what the values of the last n blocks would add to it.
        """
        super().__init__()
        visual = copy.deepcopy(visual)
        self.class_embedding: nn.Parameter = visual.class_embedding
        self.positional_embedding: nn.Parameter = visual.positional_embedding
        self.proj: nn.Parameter = visual.proj
        self.conv1: nn.Module = visual.conv1
        self.ln_pre: nn.Module = visual.ln_pre
        self.transformer: nn.Module = visual.transformer
        self.ln_post: nn.Module = visual.ln_post
        self.stride = visual.patch_size[0]
        self.embed_dim = visual.output_dim
        self.feature_dim = visual.conv1.out_channels
        self.grid: Grid = visual.grid_size
        self.value_blocks = checked_value_blocks(value_blocks, len(self._blocks()))
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Return patch features [B, C, h, w] after the last norm; `pool` projects, which is cheaper after its mean."""
        return map_by_grid(images, sizes, self.stride, self.patches)

    def patches(self, images: Tensor) -> Tensor:
        """Encode images [n, 3, h*p, w*p] of one grid to [n, C, h, w]."""
        x = self.conv1(images)
        grid = (x.shape[2], x.shape[3])
        positions = self.positional_embedding
        x = x.flatten(2).transpose(1, 2) + resize_positions(positions[1:], self.grid, grid)  # [n, N, C]
        token = (self.class_embedding + positions[0]).expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([token, x], dim=1))  # [n, 1 + N, C]
        *blocks, last = self._blocks()
        first_summed = len(blocks) + 1 - self.value_blocks
        values = []
        for number, block in enumerate(blocks):
            if number >= first_summed:
                values.append(self.part(functools.partial(own_values, block), x[:, 1:]))
            x = self.part(block, x)
        # The class token is not needed any more: in the blocks, patches have attended to it.
        final = own_values if self.value_blocks else value_path
        values.append(self.part(functools.partial(final, last), x[:, 1:]))
        x = self.ln_post(sum(values[1:], start=values[0]))
        return x.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]

    def pool(self, region_maps: Tensor, shares_RN: Tensor | None = None) -> Tensor:
        """Average the bins of [R, C, k, k], then project: [R, D], not normalised."""
        return mean_bins(region_maps, shares_RN) @ self.proj

    def parts(self) -> list[Part]:
        """List patch embedding and positions, then the blocks by quarters."""
        embedding: Part = [self.conv1, self.class_embedding, self.positional_embedding, self.ln_pre]
        return [embedding, *quarters(self._blocks())]

    def never_trained(self) -> Iterable[nn.Parameter]:
        """List what gets no gradient because the last block has no attention: distributed training would wait for it.

        The last block's values would have a gradient, but they share a tensor with its queries and keys, which weight
        decay would shrink to nothing. Nothing is lost: the output projection comes right after the values, and can
        learn the same.
        """
        last = self._blocks()[-1]
        frozen = [last.attn.in_proj_weight, last.attn.in_proj_bias]
        if self.value_blocks:
            frozen += [parameter for part in (last.ln_2, last.mlp, last.ls_2) for parameter in part.parameters()]
        return [*frozen, self.class_embedding] if len(self._blocks()) == 1 else frozen

    def _blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.transformer.resblocks)  # type: ignore[arg-type]


def checked_value_blocks(wanted: int, blocks: int) -> int:
    """Return `wanted`; ValueError where a tower of so many blocks has no such last blocks."""
    if not 0 <= wanted <= blocks:
        raise ValueError(
            f"teacher.value_blocks: expected at most the {blocks} blocks of the image tower (came: {wanted})"
        )
    return wanted


def own_values(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """Return what a block's attention adds to each token of [n, N, C] if it attends to itself alone."""
    attention, width = block.attn, tokens.shape[2]
    # in_proj holds queries, keys and values one below the other: the last third makes values.
    values = F.linear(block.ln_1(tokens), attention.in_proj_weight[-width:], attention.in_proj_bias[-width:])
    return block.ls_1(attention.out_proj(values))  # type: ignore[no-any-return]


def value_path(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """Run a transformer block on [n, N, C] in which every token attends to itself alone."""
    tokens = tokens + own_values(block, tokens)
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))  # type: ignore[no-any-return]


def quarters(blocks: Iterable[nn.Module]) -> list[Part]:
    """Return the blocks in four consecutive lists of about equal length."""
    blocks = list(blocks)
    ends = [round(len(blocks) * number / 4) for number in range(5)]
    return [list(blocks[start:end]) for start, end in pairwise(ends)]


# ---------------------------------------------------------------- images of any size for towers of one size


def map_by_grid(images: Tensor, sizes: Sizes | None, patch: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Return features [B, C, max h, max w] of images [B, 3, H, W], each seen without the batch's padding.

    An image of (height, width) becomes a grid of ceil(height / p) x ceil(width / p) patches; the last row and column
    are filled up with zeros, the mean colour. Beyond an image's own grid its last row and column are repeated, which
    is how RoIAlign treats the edge of a map.

    Args:
        sizes: (height, width) of each image without padding; None: the canvas.
        encode: images of one grid, [n, 3, h*p, w*p], to [n, C, h, w].
    """
    canvas = (int(images.shape[2]), int(images.shape[3]))
    groups: defaultdict[Grid, list[int]] = defaultdict(list)
    for row, (height, width) in enumerate([canvas] * len(images) if sizes is None else sizes):
        groups[-(-height // patch), -(-width // patch)].append(row)
    if len(groups) == 1:  # no copy of the batch
        return encode(_fit(images, next(iter(groups)), patch))
    height, width = max(h for h, _ in groups), max(w for _, w in groups)
    maps, order = [], []
    for (h, w), rows in groups.items():
        found = encode(_fit(images[rows], (h, w), patch))
        maps.append(F.pad(found, (0, width - w, 0, height - h), mode="replicate"))
        order += rows
    return torch.cat(maps)[torch.tensor(order).argsort().to(images.device)]


def _fit(images: Tensor, grid: Grid, patch: int) -> Tensor:
    """Cut or fill images on the right and below to exactly `grid` patches."""
    height, width = grid[0] * patch, grid[1] * patch
    images = images[:, :, :height, :width]
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))


def resize_positions(positions: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Fit positional embeddings [h*w, C] of a grid, row by row, to another grid: [h'*w', C].

    Antialiased bicubic, which is how open_clip and timm fit weights to another image size.
    """
    if grid == target and not torch.compiler.is_exporting():  # an exported graph takes any grid
        return positions
    maps = positions.reshape(*grid, -1).permute(2, 0, 1)[None]
    resized = F.interpolate(maps, target, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].permute(1, 2, 0).flatten(0, 1)
