"""Region embeddings: CLIP's ResNet run once an image up to stage 3, then per region (paper section 3.1, "C4").

Shapes: B images, (H, W) the padded canvas, R regions, D embedding. Boxes are xyxy in *input* pixels here.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torchvision.ops import roi_align

from regionclip_core.attention_pool import pool_single_query
from regionclip_core.clip import ClipModel

FEATURE_STRIDE = 16
"""Input pixels a cell of the stage-3 map (nominal: odd sizes lose their last row and column)."""


class RegionEncoder(nn.Module):
    """The modules of a CLIP ResNet under their official names (`conv1`, ..., `layer4`, `attnpool`), run on regions.

    Batch norms are frozen for good: statistics and affine parameters stay as they are, in `.train()` too. All other
    parameters start trainable; see `freeze`.
    """

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
        self.embed_dim: int = visual.output_dim
        self.feature_dim: int = visual.attnpool.c_proj.in_features
        self.roi_size: int = visual.image_size // FEATURE_STRIDE
        """Side of a RoI-aligned map; layer4 halves it to what the positional embedding was made for."""
        self.sampling_ratio = 0
        """RoIAlign samples a bin and axis; 0 is adaptive, as the official code."""
        self.freeze(0)
        self.train(visual.training)

    def features(self, images: Tensor) -> Tensor:
        """Stage-3 map (`res4`) [B, 16 * width, ~H/16, ~W/16] of normalised images [B, 3, H, W]."""
        x = self.avgpool(self._stem(images))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return x  # type: ignore[no-any-return]

    def regions(self, features: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """RoIAlign and stage 4: [R, feature_dim, roi_size/2, roi_size/2], image by image in the order of the boxes.

        `boxes`: one [R_i, 4] float32 an image, input pixels; they are not clipped, and may have no area.
        """
        if len(boxes) != len(features):
            raise ValueError(f"regions got boxes of {len(boxes)} images for features of {len(features)}")
        aligned = roi_align(
            features,
            list(boxes),
            output_size=self.roi_size,
            spatial_scale=1.0 / FEATURE_STRIDE,
            sampling_ratio=self.sampling_ratio,
            aligned=True,
        )
        return self.layer4(aligned)  # type: ignore[no-any-return]

    def pool(self, region_maps: Tensor) -> Tensor:
        """Attention pool: [R, feature_dim, roi_size/2, roi_size/2] to [R, D], not normalised."""
        return pool_single_query(self.attnpool, region_maps)

    def forward(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Embeddings [R, D], not normalised, of the boxes of images [B, 3, H, W]."""
        return self.pool(self.regions(self.features(images), boxes))

    def freeze(self, freeze_at: int) -> None:
        """Stop training the first parts: 1 the stem, 2 the stem and layer1, ..., 5 all but the attention pool.

        Sets every parameter anew, so the last call counts. Norms are always frozen.
        """
        if not 0 <= freeze_at <= 5:
            raise ValueError(f"freeze_at must be 0 (nothing) to 5 (all but the attention pool), got {freeze_at}")
        stem: list[nn.Module] = [self.conv1, self.conv2, self.conv3]
        parts: list[list[nn.Module]] = [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]
        self.requires_grad_(True)
        for part in parts[:freeze_at]:
            for module in part:
                module.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> RegionEncoder:
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


def region_encoder(clip: ClipModel) -> RegionEncoder:
    """A RegionEncoder with a copy of the CLIP model's visual weights; ValueError unless that is a ResNet.

    In channels-last memory, like the batches: convolutions on a CPU are up to twice as fast.
    """
    visual = clip.model.visual
    if not isinstance(visual, ModifiedResNet):
        raise ValueError(
            f"region features need a CLIP ResNet (RN50, RN50x4, ..., small); {clip.name} has a "
            f"{type(visual).__name__}. Take an RN model, or use labels.mode: crop for the teacher"
        )
    return RegionEncoder(visual).to(memory_format=torch.channels_last)
