"""Region embeddings of a CLIP ResNet: run once an image up to stage 3, then per region (paper section 3.1, "C4").

Shapes: B images, (H, W) the padded canvas, R regions, D embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from regionclip_core.config.architectures import RESNET_STRIDE
from regionclip_core.models.attention_pool import pool_single_query
from regionclip_core.models.region_encoder import Part, RegionEncoder, Sizes

_SMALLEST_SIDE = 15  # pixels of which the four halvings up to stage 3 leave one


class ResNetEncoder(RegionEncoder):
    """The modules of a CLIP ResNet under their official names (`conv1`, ..., `layer4`, `attnpool`), run on regions.

    Batch norms are frozen for good: statistics and affine parameters stay as they are, in `.train()` too.
    """

    stride = RESNET_STRIDE  # nominal: odd sizes lose their last row and column

    def __init__(self, visual: ModifiedResNet) -> None:
        """Take a deep copy of `visual`; the CLIP model it belongs to is not touched afterwards."""
        super().__init__()
        visual = copy.deepcopy(visual)
        # One by one, under the official names: these are the keys of every checkpoint.
        self.conv1: nn.Module = visual.conv1
        self.bn1: nn.Module = visual.bn1
        self.act1: nn.Module = visual.act1
        self.conv2: nn.Module = visual.conv2
        self.bn2: nn.Module = visual.bn2
        self.act2: nn.Module = visual.act2
        self.conv3: nn.Module = visual.conv3
        self.bn3: nn.Module = visual.bn3
        self.act3: nn.Module = visual.act3
        self.avgpool: nn.Module = visual.avgpool
        self.layer1: nn.Module = visual.layer1
        self.layer2: nn.Module = visual.layer2
        self.layer3: nn.Module = visual.layer3
        self.layer4: nn.Module = visual.layer4
        self.attnpool: nn.Module = visual.attnpool
        self.embed_dim = visual.output_dim
        self.feature_dim = visual.attnpool.c_proj.in_features
        # layer4 halves the aligned map to the side that the positional embedding was made for.
        self.roi_size = visual.image_size // RESNET_STRIDE
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Stage-3 map (`res4`) [B, 16 * width, ~H/16, ~W/16]; padding is convolved too, as in the official code.

        A canvas that is too narrow for the four halvings (an image of 30,000 x 10 pixels, alone) is padded for them.
        """
        height, width = images.shape[-2:]
        if min(height, width) < _SMALLEST_SIDE:
            images = F.pad(images, (0, max(0, _SMALLEST_SIDE - width), 0, max(0, _SMALLEST_SIDE - height)))
        x = self.avgpool(self._stem(images))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return x  # type: ignore[no-any-return]

    def refine(self, aligned: Tensor) -> Tensor:
        """Stage 4: [R, feature_dim, roi_size/2, roi_size/2]."""
        return self.layer4(aligned)  # type: ignore[no-any-return]

    def pool(self, region_maps: Tensor) -> Tensor:
        """Attention pool: [R, feature_dim, roi_size/2, roi_size/2] to [R, D], not normalised."""
        return pool_single_query(self.attnpool, region_maps)

    def parts(self) -> list[Part]:
        """The stem and the four stages."""
        return [[self.conv1, self.conv2, self.conv3], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def never_trained(self) -> Iterable[nn.Parameter]:
        """Batch norms."""
        return [p for m in self.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()]

    def train(self, mode: bool = True) -> ResNetEncoder:
        """As nn.Module.train, but batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def _stem(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.act2(self.bn2(self.conv2(x)))
        return self.act3(self.bn3(self.conv3(x)))  # type: ignore[no-any-return]
