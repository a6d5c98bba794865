"""Region embeddings of a CLIP ViT: dense patch features and RoIAlign.

CLIP trains the class token alone: a patch's last state is whatever helped that token. So the last block leaves its
attention out and passes on the values, by which a patch keeps its own content in the space that the projection to
text was trained for: Zhou et al., "Extract Free Dense Labels from CLIP" (MaskCLIP, arXiv 2112.01071); with RoIAlign
and a mean a region: Wu et al., CLIPSelf (arXiv 2310.01403).

Shapes: B images, (h, w) a grid of patches, N = h*w, C the tower's width, R regions, D embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import pairwise

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from regionclip_core.models.patch_grid import map_by_grid, resize_positions
from regionclip_core.models.region_encoder import Part, RegionEncoder, Sizes

ROI_SIZE = 7
"""Bins a side, as many as the official ResNet's region maps have; at CLIP's own 224 px they tile the grids of
ViT-B/32 and ViT-B/16 exactly."""


class VitEncoder(RegionEncoder):
    """The modules of a CLIP ViT under their own names (`conv1`, ..., `transformer`, `ln_post`, `proj`).

    The whole image as a region is not CLIP's own embedding of it: no class token gathers it. Both are in one space.
    """

    roi_size = ROI_SIZE

    def __init__(self, visual: VisionTransformer) -> None:
        """Take a deep copy of `visual`; the CLIP model it belongs to is not touched afterwards."""
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
        self.grid: tuple[int, int] = visual.grid_size
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Patch features [B, C, h, w] after the last norm, before the projection (which `pool` applies: being linear,
        it may come after the mean)."""
        return map_by_grid(images, sizes, self.stride, self._patches)

    def pool(self, region_maps: Tensor) -> Tensor:
        """Mean over bins [R, C, k, k], then the projection: [R, D], not normalised."""
        return region_maps.mean((2, 3)) @ self.proj

    def parts(self) -> list[Part]:
        """Patch embedding and positions, then the blocks by quarters."""
        embedding: Part = [self.conv1, self.class_embedding, self.positional_embedding, self.ln_pre]
        return [embedding, *quarters(self._blocks())]

    def never_trained(self) -> Iterable[nn.Parameter]:
        """What the last block's missing attention leaves without a gradient, for which other ranks would wait.

        Its values have one, but share a tensor with queries and keys, which weight decay would wear down. Nothing is
        lost: the output projection follows the values immediately, so any change of them is one of it.
        """
        last = self._blocks()[-1]
        frozen = [last.attn.in_proj_weight, last.attn.in_proj_bias]
        return [*frozen, self.class_embedding] if len(self._blocks()) == 1 else frozen

    def _blocks(self) -> list[ResidualAttentionBlock]:
        return list(self.transformer.resblocks)  # type: ignore[arg-type]

    def _patches(self, images: Tensor) -> Tensor:
        """Images [n, 3, h*p, w*p] to [n, C, h, w]."""
        x = self.conv1(images)
        grid = (x.shape[2], x.shape[3])
        positions = self.positional_embedding
        x = x.flatten(2).transpose(1, 2) + resize_positions(positions[1:], self.grid, grid)  # [n, N, C]
        token = (self.class_embedding + positions[0]).expand(len(x), 1, -1)
        x = self.ln_pre(torch.cat([token, x], dim=1))  # [n, 1 + N, C]
        *blocks, last = self._blocks()
        for block in blocks:
            x = block(x)
        x = self.ln_post(value_path(last, x[:, 1:]))
        return x.transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]


def value_path(block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
    """A transformer block [n, N, C] in which every token attends to itself alone."""
    attention, width = block.attn, tokens.shape[2]
    values = F.linear(block.ln_1(tokens), attention.in_proj_weight[-width:], attention.in_proj_bias[-width:])
    tokens = tokens + block.ls_1(attention.out_proj(values))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))  # type: ignore[no-any-return]


def quarters(blocks: Iterable[nn.Module]) -> list[Part]:
    """The blocks in four consecutive lists of about equal length."""
    blocks = list(blocks)
    ends = [round(len(blocks) * number / 4) for number in range(5)]
    return [list(blocks[start:end]) for start, end in pairwise(ends)]
