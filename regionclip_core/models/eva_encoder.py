"""Region embeddings of timm's EVA towers: those of EVA's CLIPs, and Perception Encoder's.

EVA's CLIPs (Sun et al., arXiv 2303.15389) read a class token, like CLIP's ViTs, so their regions take the value path
too: the last block's values, its inner norm, its projection. Perception Encoder (Bolya et al., arXiv 2504.13181)
pools patches with one learned query, like SigLIP, so its regions are pooled by the same query over their own bins.

Both turn queries and keys by a patch's place (RoPE); values aren't turned. For another image size EVA's places are
stretched to those of its first training, as its code and timm do it. Perception Encoder's code counts patches at any
size, and so do we; timm stretches those too.

Shapes: B images, p the patch's side in pixels, (h, w) a grid of patches, N = h*w, C the tower's width, R regions, D
embedding, k bins per side.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.pos_embed_sincos import RotaryEmbeddingCat
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

from regionclip_core.models.region_encoder import Part, RegionEncoder, Sizes, mean_bins
from regionclip_core.models.siglip_encoder import MOST_BINS, latent_pool
from regionclip_core.models.vit_encoder import (
    ROI_SIZE,
    checked_value_blocks,
    map_by_grid,
    quarters,
    resize_positions,
)


class EvaEncoder(RegionEncoder):
    """The modules of an EVA tower under their own names (`trunk`)."""

    def __init__(self, visual: TimmModel, value_blocks: int = 0) -> None:
        """Take a deep copy of `visual`; the CLIP model it belongs to is not touched afterwards.

        `value_blocks`: as in `VitEncoder`; 0 for a tower with an attention pool.
        """
        super().__init__()
        visual = copy.deepcopy(visual)
        trunk: Any = visual.trunk
        # The tower must have no parts but those in `patches` and `pool`; config/architectures.py refuses all others.
        assert isinstance(trunk, Eva), type(trunk)
        assert isinstance(trunk.head, nn.Linear), trunk.head
        assert trunk.reg_token is None and trunk.patch_drop is None and trunk.pos_embed is not None
        assert isinstance(trunk.fc_norm, nn.Identity) and len(visual.head) == 0
        assert all(isinstance(block, EvaBlock) and block.attn.gate is None for block in trunk.blocks)
        if trunk.rope is not None:
            rope = trunk.rope
            assert isinstance(rope, RotaryEmbeddingCat) and not rope.in_pixels, rope
            # With these the tower's own size needs no stretching.
            assert trunk.attn_pool is None or tuple(rope.ref_feat_shape) == tuple(trunk.patch_embed.grid_size), rope
            # The tower's own holds a table of one image size; this one makes it for any, and has no weights either.
            trunk.rope = RotaryEmbeddingCat(
                rope.dim,
                temperature=rope.temperature,
                in_pixels=False,
                ref_feat_shape=rope.ref_feat_shape if trunk.attn_pool is None else None,
                grid_offset=rope.grid_offset,
                grid_indexing=rope.grid_indexing,
                rotate_half=rope.rotate_half,
            )
        self.trunk: Eva = trunk
        self.head: nn.Module = visual.head  # empty; kept for its place in the state dict
        self.pooled: bool = trunk.attn_pool is not None
        assert isinstance(trunk.attn_pool, AttentionPoolLatent) if self.pooled else trunk.global_pool == "token"
        self.grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.stride = trunk.patch_embed.patch_size[0]
        self.embed_dim = trunk.num_classes
        self.feature_dim = trunk.embed_dim
        self.roi_size = self.bins = min(self.grid[0], MOST_BINS) if self.pooled else ROI_SIZE
        self.value_blocks = checked_value_blocks(value_blocks, 0 if self.pooled else len(trunk.blocks))
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Return patch features [B, C, h, w] after the last norm."""
        return map_by_grid(images, sizes, self.stride, self.patches)

    def patches(self, images: Tensor) -> Tensor:
        """Encode images [n, 3, h*p, w*p] of one grid to [n, C, h, w]."""
        trunk: Any = self.trunk
        prefix: int = trunk.num_prefix_tokens  # the class token, which the largest PE-Core doesn't have
        x = trunk.patch_embed.proj(images)
        grid = (x.shape[2], x.shape[3])
        x = trunk.patch_embed.norm(x.flatten(2).transpose(1, 2))  # [n, N, C]
        positions = trunk.pos_embed[0]
        x = x + resize_positions(positions[prefix:], self.grid, grid)
        if trunk.cls_token is not None:
            x = torch.cat([(trunk.cls_token[0] + positions[:1]).expand(len(x), 1, -1), x], dim=1)
        x = trunk.norm_pre(trunk.pos_drop(x))  # [n, prefix + N, C]
        rope = None if trunk.rope is None else trunk.rope.get_embed(list(grid))
        *blocks, last = trunk.blocks
        first_summed = len(blocks) + 1 - self.value_blocks
        values = []
        for number, block in enumerate(blocks):
            if number >= first_summed:
                values.append(self.part(functools.partial(own_values, block), x[:, prefix:]))
            x = self.part(functools.partial(block, rope=rope), x)
        if self.pooled:
            x = self.part(functools.partial(last, rope=rope), x)[:, prefix:]
        else:
            final = own_values if self.value_blocks else value_path
            x = sum(values, start=self.part(functools.partial(final, last), x[:, prefix:]))
        return trunk.norm(x).transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]

    def pool(self, region_maps: Tensor, shares_RN: Tensor | None = None) -> Tensor:
        """Average or attention-pool the bins of [R, C, k, k], then project: [R, D], not normalised."""
        if self.trunk.attn_pool is None:
            x = mean_bins(region_maps, shares_RN)
        else:
            x = latent_pool(self.trunk.attn_pool, region_maps, shares_RN)
        embeddings: Tensor = self.trunk.head(x)
        return embeddings

    def parts(self) -> list[Part]:
        """List patch embedding, class token and positions, then the blocks by quarters."""
        trunk = self.trunk
        assert trunk.pos_embed is not None
        embedding: Part = [trunk.patch_embed, trunk.pos_embed, trunk.norm_pre]
        return [embedding + ([] if trunk.cls_token is None else [trunk.cls_token]), *quarters(trunk.blocks)]

    def never_trained(self) -> Iterable[nn.Parameter]:
        """List what gets no gradient where the last block has no attention; see `VitEncoder.never_trained`."""
        if self.pooled:
            return []
        last: Any = self.trunk.blocks[-1]
        attention = last.attn
        frozen: list[nn.Parameter]
        if attention.qkv is None:
            frozen = [*attention.q_proj.parameters(), *attention.k_proj.parameters()]
        else:  # one tensor, also for the values
            frozen = [attention.qkv.weight, attention.q_bias]
        if self.value_blocks:
            frozen += [*last.norm2.parameters(), *last.mlp.parameters()]
            frozen += [] if last.gamma_2 is None else [last.gamma_2]
        assert self.trunk.cls_token is not None
        return [*frozen, self.trunk.cls_token] if len(self.trunk.blocks) == 1 else frozen


def own_values(block: EvaBlock, tokens: Tensor) -> Tensor:
    """Return what a block's attention adds to each token of [n, N, C] if it attends to itself alone."""
    attention: Any = block.attn
    x = block.norm1(tokens)
    if attention.qkv is None:
        values = attention.v_proj(x)
    else:  # queries, keys and values one below the other
        values = F.linear(x, attention.qkv.weight[-attention.v_bias.shape[0] :], attention.v_bias)
    added: Tensor = attention.proj(attention.norm(values))  # EVA-02 has this inner norm
    return added if block.gamma_1 is None else block.gamma_1 * added


def value_path(block: EvaBlock, tokens: Tensor) -> Tensor:
    """Run a transformer block on [n, N, C] in which every token attends to itself alone."""
    tokens = tokens + own_values(block, tokens)
    added: Tensor = block.mlp(block.norm2(tokens))
    return tokens + (added if block.gamma_2 is None else block.gamma_2 * added)
