"""The class-agnostic mask head of the LVIS detectors.

Legend: R regions, C channels of the encoder's region maps, k their side, m = 2 k the side of a predicted mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASK_CHANNELS = 256
"""Channels between the two layers, as in Mask R-CNN and the official checkpoints."""


class MaskHead(nn.Module):
    """Mask R-CNN's smallest head: a transposed convolution that doubles the side, then one logit per cell.

    It works on the maps before attention pooling (`layer4` of a ResNet). One mask per region, whatever its category,
    so that it serves categories without a single training mask.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: C, the encoder's `feature_dim`."""
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, MASK_CHANNELS, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(MASK_CHANNELS, 1, kernel_size=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, region_maps: Tensor) -> Tensor:
        """Return mask logits [R, m, m] of region maps [R, C, k, k]; R may be 0, which keeps the graph whole."""
        logits: Tensor = self.predictor(torch.relu(self.deconv(region_maps)))
        return logits[:, 0]
