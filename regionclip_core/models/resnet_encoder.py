"""Region embeddings of a CLIP ResNet: once per image up to stage 3, then per region (paper section 3.1, "C4").

Shapes: B images, (H, W) the padded canvas, R regions, D embedding. In the attention pool: C channels, T = h*w + 1
tokens of a map [h, w], A heads of d channels (C = A*d).
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn

from regionclip_core.config.architectures import RESNET_STRIDE
from regionclip_core.models.folded_convolutions import FoldedBottleneck, FoldedConv
from regionclip_core.models.region_encoder import (
    ALIGNED_AT_ONCE,
    Part,
    RegionEncoder,
    Sizes,
    attention_bias,
    mean_bins,
)

# The official names, which are the keys of every checkpoint, in the order in which they run.
_STEM = ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool")
_CACHED = 32 * 2048 * 7 * 7  # numbers of stage 4's output: 32 regions of RN50
_SMALLEST_SIDE = 15  # pixels of which the four halvings up to stage 3 leave one


class ResNetEncoder(RegionEncoder):
    """The modules of a CLIP ResNet under their official names (`conv1`, ..., `layer4`, `attnpool`), run on regions.

    Batch norms are always frozen: statistics and affine parameters stay as they are, in `.train()` too.
    """

    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    bn1: nn.BatchNorm2d
    bn2: nn.BatchNorm2d
    bn3: nn.BatchNorm2d
    avgpool: nn.AvgPool2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    attnpool: AttentionPool2d
    stride = RESNET_STRIDE  # nominal: odd sizes lose their last row and column

    def __init__(self, visual: ModifiedResNet) -> None:
        """Take a deep copy of `visual`; the CLIP model it belongs to is not touched afterwards."""
        super().__init__()
        visual = copy.deepcopy(visual)
        for name in (*_STEM, "layer1", "layer2", "layer3", "layer4", "attnpool"):
            self.add_module(name, getattr(visual, name))
        self.embed_dim = visual.output_dim
        self.feature_dim = visual.attnpool.c_proj.in_features
        # layer4 halves the aligned map to the side that the positional embedding was made for.
        self.roi_size = visual.image_size // RESNET_STRIDE
        self.bins = self.roi_size // 2
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Return the stage-3 map (`res4`) [B, 16 * width, ~H/16, ~W/16].

        Padding is convolved like pixels, as in the official code, so `sizes` are not needed.
        """
        height, width = images.shape[-2:]
        # A canvas too narrow for the four halvings (an image of 30,000 x 10 pixels, alone) is padded for them.
        if min(height, width) < _SMALLEST_SIDE:
            images = F.pad(images, (0, max(0, _SMALLEST_SIDE - width), 0, max(0, _SMALLEST_SIDE - height)))
        x = images
        for conv, norm in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = FoldedConv(conv, norm)(x).relu_()
        x = self.avgpool(x)
        for layer in (self.layer1, self.layer2, self.layer3):
            x = self.part(functools.partial(_run_stage, layer), x)
        return x

    def region_maps(self, features: Tensor, rois: Tensor) -> Iterator[Tensor]:
        """Yield stage 4's output for some regions at a time: [n, feature_dim, k, k], k = roi_size / 2.

        RoIAlign and a 1x1 convolution without bias are both linear, one over cells and one over channels, so their
        order is free: the first block's two run on whichever has fewer cells, the map or the regions. Its shift comes
        after RoIAlign, where cells outside the image count as zeros.
        """
        first, *others = [FoldedBottleneck(block) for block in self.layer4]
        shortcut = first.shortcut
        assert shortcut is not None
        cells = features.shape[0] * features.shape[2] * features.shape[3]
        hidden_first = cells < len(rois) * self.roi_size**2
        identity_first = cells < len(rois) * self.bins**2
        for_hidden = first.conv1(features, bias=False) if hidden_first else features
        for_identity = shortcut(features, bias=False) if identity_first else features

        def stage4(hidden: Tensor, identity: Tensor) -> Tensor:
            hidden = hidden + first.conv1.bias.view(-1, 1, 1) if hidden_first else first.conv1(hidden)
            identity = identity + shortcut.bias.view(-1, 1, 1) if identity_first else shortcut(identity)
            x = first.finish(hidden, identity)
            for block in others:
                x = block(x)
            return x

        for some in torch.split(rois, ALIGNED_AT_ONCE):
            hidden = self.align(for_hidden, some)
            identity = self.align(for_identity, some, mean_of=2)
            # On a CPU a few regions at a time stay in its caches; of a small tower more do, and cost fewer calls.
            per_region = self.feature_dim * self.bins**2
            at_once = max(32, _CACHED // per_region) if features.device.type == "cpu" else ALIGNED_AT_ONCE
            for h, i in zip(torch.split(hidden, at_once), torch.split(identity, at_once), strict=True):
                yield self.part(stage4, h, i)

    def pool(self, region_maps: Tensor, shares_RN: Tensor | None = None) -> Tensor:
        """Attention-pool [R, feature_dim, k, k] to [R, D], not normalised."""
        return pool_single_query(self.attnpool, region_maps, shares_RN)

    def parts(self) -> list[Part]:
        """List the stem (its batch norms never train anyway) and the four stages."""
        stages = (("conv1", "conv2", "conv3"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))
        return [[self.get_submodule(name) for name in names] for names in stages]

    def never_trained(self) -> Iterable[nn.Parameter]:
        """List the parameters of the batch norms."""
        return [p for m in self.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]

    def train(self, mode: bool = True) -> ResNetEncoder:
        """Set the mode as nn.Module.train does, but batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


def _run_stage(layer: nn.Sequential, x: Tensor) -> Tensor:
    for block in layer:
        x = FoldedBottleneck(block)(x)
    return x


def pool_single_query(pool: AttentionPool2d, maps: Tensor, shares_RN: Tensor | None = None) -> Tensor:
    """Attention-pool `maps` [R, C, h, w] to [R, D], not normalised; equal to `pool(maps)`.

    In open_clip's own forward every token is a query, and only the result of the mean token is kept. Here the mean
    token is the only query, with W_k folded into it and W_v applied after the weighted sum, so no other token is
    projected at all: about 1/35 of the multiplications for a 7 x 7 map of 2048 channels. The positional embedding is
    never interpolated, as officially: h and w must be image_size / 32.

    With `shares_RN`, N = T - 1, the mean token is the mean by them, and they multiply the attention to the others.
    """
    regions, channels, height, width = maps.shape
    positions = pool.positional_embedding.to(maps.dtype)
    assert height * width + 1 == len(positions), (maps.shape, positions.shape)
    heads = pool.num_heads
    size = channels // heads
    tokens = maps.flatten(2).transpose(1, 2)  # [R, T-1, C]
    tokens = torch.cat([mean_bins(maps, shares_RN)[:, None], tokens], dim=1) + positions  # [R, T, C]
    query = pool.q_proj(tokens[:, 0]).view(regions, heads, size).transpose(0, 1) * size**-0.5  # [A, R, d]
    folded = torch.bmm(query, pool.k_proj.weight.view(heads, size, channels))  # [A, R, C]
    # The key bias shifts all scores of a head alike and so changes nothing; it stays for its (zero) gradient, which
    # distributed training waits for.
    shift = (query * pool.k_proj.bias.view(heads, 1, size)).sum(-1)  # [A, R]
    scores = torch.bmm(folded.transpose(0, 1), tokens.transpose(1, 2)) + shift.T[..., None]  # [R, A, T]
    if shares_RN is not None:
        scores = scores + F.pad(attention_bias(shares_RN), (1, 0))[:, None]
    mixed = torch.bmm(scores.softmax(-1), tokens).transpose(0, 1)  # [A, R, C]
    values = torch.bmm(mixed, pool.v_proj.weight.view(heads, size, channels).transpose(1, 2))  # [A, R, d]
    answer = values.transpose(0, 1).reshape(regions, channels) + pool.v_proj.bias
    return pool.c_proj(answer)  # type: ignore[no-any-return]
