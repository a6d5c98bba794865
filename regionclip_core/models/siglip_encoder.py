"""Region embeddings of a SigLIP image tower (timm's ViT with an attention pool): patch features, RoIAlign, the pool.

SigLIP has no class token: one learned query attends to the patches (Zhai et al., arXiv 2303.15343; Zhai et al.,
arXiv 2106.04560 for the pool). A region is pooled like an image, by the same query over the region's own bins, as
RegionCLIP does with the attention pool of a ResNet.

Shapes: B images, (h, w) a grid of patches, N = h*w, C the tower's width (and D), R regions, k bins per side.
"""

from __future__ import annotations

import copy
from typing import Any

from open_clip.timm_model import TimmModel
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from regionclip_core.models.region_encoder import Part, RegionEncoder, Sizes, attention_bias
from regionclip_core.models.vit_encoder import map_by_grid, quarters, resize_positions

MOST_BINS = 16  # per side: 256 tokens per region; the finest grids (27, 32) would take three to four times as many


class SiglipEncoder(RegionEncoder):
    """The modules of a SigLIP tower under their own names (`trunk`).

    With a grid of at most 16 x 16 patches the whole image, at the tower's own size, has exactly the embedding that
    the model gives it.
    """

    def __init__(self, visual: TimmModel) -> None:
        """Take a deep copy of `visual`; the CLIP model it belongs to is not touched afterwards."""
        super().__init__()
        visual = copy.deepcopy(visual)
        trunk = visual.trunk
        # The tower must have no parts but those in `patches` and `pool`; config/architectures.py refuses all others.
        assert isinstance(trunk, VisionTransformer), type(trunk)
        assert isinstance(trunk.attn_pool, AttentionPoolLatent), trunk.attn_pool
        assert trunk.num_prefix_tokens == 0 and trunk.pos_embed is not None and trunk.attn_pool.pos_embed is None
        assert all(isinstance(m, nn.Identity) for m in (trunk.patch_drop, trunk.fc_norm, trunk.head)), trunk
        assert len(visual.head) == 0, visual.head
        self.trunk: VisionTransformer = trunk
        self.head: nn.Module = visual.head  # empty; kept for its place in the state dict
        self.grid: tuple[int, int] = tuple(trunk.patch_embed.grid_size)
        self.stride = trunk.patch_embed.patch_size[0]
        self.embed_dim = self.feature_dim = trunk.embed_dim
        self.roi_size = self.bins = min(self.grid[0], MOST_BINS)
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Return patch features [B, C, h, w] after the last norm."""
        return map_by_grid(images, sizes, self.stride, self.patches)

    def patches(self, images: Tensor) -> Tensor:
        """Encode images [n, 3, h*p, w*p] of one grid to [n, C, h, w]."""
        trunk = self.trunk
        x = trunk.patch_embed.proj(images)
        grid = (x.shape[2], x.shape[3])
        x = trunk.patch_embed.norm(x.flatten(2).transpose(1, 2))  # [n, N, C]
        assert trunk.pos_embed is not None
        x = trunk.pos_drop(x + resize_positions(trunk.pos_embed[0], self.grid, grid))
        x = trunk.norm_pre(x)
        for block in trunk.blocks:
            x = self.part(block, x)
        return trunk.norm(x).transpose(1, 2).unflatten(2, grid)  # type: ignore[no-any-return]

    def pool(self, region_maps: Tensor, shares_RN: Tensor | None = None) -> Tensor:
        """Attention-pool the bins of [R, C, k, k] to [R, D], not normalised."""
        return latent_pool(self.trunk.attn_pool, region_maps, shares_RN)

    def parts(self) -> list[Part]:
        """List patch embedding and positions, then the blocks by quarters."""
        trunk = self.trunk
        assert trunk.pos_embed is not None
        return [[trunk.patch_embed, trunk.pos_embed, trunk.norm_pre], *quarters(trunk.blocks)]


def latent_pool(pool: Any, region_maps: Tensor, shares_RN: Tensor | None) -> Tensor:
    """Run timm's `AttentionPoolLatent` on the bins of [R, C, k, k]: [R, C]."""
    bias = None if shares_RN is None else attention_bias(shares_RN)[:, None, None].to(region_maps.dtype)
    return pool(region_maps.flatten(2).transpose(1, 2), bias)  # type: ignore[no-any-return]
