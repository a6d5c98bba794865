"""Backbones of the region proposal network.

The network's input is RGB, normalised with the backbone's own `mean` and `std` (of pixels in 0..1) and zero-padded
on the right and bottom. Legend: B images, C channels; `strides` are input pixels per cell of each returned map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from regionclip_core.config.tree import RpnConfig

Sizes = tuple[tuple[float, ...], ...]

# The official proposal branch takes BGR pixels in 0..255 minus this mean, without a division (SyncBN variant too).
# On RGB pixels in 0..1 that is a division by a std of 1/255; the forward pass flips the channels.
_OFFICIAL_MEAN = (123.675 / 255.0, 116.28 / 255.0, 103.53 / 255.0)
_OFFICIAL_STD = (1.0 / 255.0, 1.0 / 255.0, 1.0 / 255.0)
_STAGE_CHANNELS = [256, 512, 1024, 2048]


class SmallBackbone(nn.Module):
    """A few convolutions to one map of stride 8, for small images and CPUs.

    Batch norm follows train() and eval() as usual. `width` channels at stride 2, twice that at 4, four times at 8.
    """

    mean = (0.5, 0.5, 0.5)
    std = (0.25, 0.25, 0.25)
    strides: tuple[int, ...] = (8,)

    def __init__(self, width: int, anchor_sizes: Sequence[int]) -> None:
        super().__init__()
        self.channels = 4 * width
        self.anchor_sizes: Sizes = (tuple(float(side) for side in anchor_sizes),)
        plan = [(3, width, 2), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(inplace=True),
                )
                for channels, out, stride in plan
            )
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one map [B, C, ceil(H/8), ceil(W/8)]."""
        return [self.layers(images)]


def _resnet50(norm: Callable[..., nn.Module], stride_in_1x1: bool) -> ResNet:
    """Return torchvision's ResNet-50 without its classifier.

    torchvision strides in the 3x3 convolution of a stage's first block; the original network (MSRA), which the
    official branches use, in the 1x1 convolution before it.
    """
    resnet = ResNet(Bottleneck, [3, 4, 6, 3], norm_layer=norm)
    del resnet.fc
    if stride_in_1x1:
        for stage in (resnet.layer2, resnet.layer3, resnet.layer4):
            block = stage[0]
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
    return resnet


class ResNet50C4(nn.Module):
    """ResNet-50 up to stage 3: one map of stride 16 (the official COCO proposal branch)."""

    mean, std = _OFFICIAL_MEAN, _OFFICIAL_STD
    channels = 1024
    strides: tuple[int, ...] = (16,)
    anchor_sizes: Sizes = ((32.0, 64.0, 128.0, 256.0, 512.0),)

    def __init__(self) -> None:
        super().__init__()
        self.resnet = _resnet50(FrozenBatchNorm2d, stride_in_1x1=True)
        del self.resnet.layer4

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> one map [B, 1024, H/16, W/16]."""
        net = self.resnet
        x = net.maxpool(net.relu(net.bn1(net.conv1(images.flip(1)))))
        return [net.layer3(net.layer2(net.layer1(x)))]


class _FpnBackbone(nn.Module):
    """ResNet-50 with a feature pyramid: maps of strides 4, 8, 16, 32, 64, each with anchors of one size."""

    channels = 256
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    anchor_sizes: Sizes = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    fpn: FeaturePyramidNetwork

    def pyramid(self, resnet: ResNet, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> five maps [B, 256, h, w], finest first; the input is padded to a multiple of 32 first."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % 32, 0, -height % 32))
        x: Tensor = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
        maps: dict[str, Tensor] = {}
        for name in ("layer1", "layer2", "layer3", "layer4"):
            maps[name] = x = getattr(resnet, name)(x)
        return list(self.fpn(maps).values())


class ResNet50Fpn(_FpnBackbone):
    """The official LVIS proposal branch.

    `lsj` is the variant trained with large-scale jittering: batch norms that train, and norms in the pyramid.
    """

    mean, std = _OFFICIAL_MEAN, _OFFICIAL_STD

    def __init__(self, lsj: bool = False) -> None:
        super().__init__()
        self.resnet = _resnet50(nn.BatchNorm2d if lsj else FrozenBatchNorm2d, stride_in_1x1=True)
        # torchvision's pyramid puts no activation after its convolutions unless asked, like the official one.
        norm = nn.BatchNorm2d if lsj else None
        self.fpn = FeaturePyramidNetwork(_STAGE_CHANNELS, self.channels, LastLevelMaxPool(), norm_layer=norm)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `pyramid`; the network wants BGR."""
        return self.pyramid(self.resnet, images.flip(1))


class TorchvisionFpn(_FpnBackbone):
    """The proposal branch of torchvision's fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn.

    RGB with ImageNet's statistics. Norms are frozen and add no epsilon, which is what torchvision sets for its
    published COCO_V1 weights; `rpn_weights.from_torchvision` puts the epsilon of other files into the variances.
    Given the same input, proposals are torchvision's, ordered by logit and not by its sigmoid, which in float32 is the
    same for many high logits. The input differs where images are made smaller: torchvision doesn't antialias.
    """

    mean = (0.485, 0.456, 0.406)
    std = (0.229, 0.224, 0.225)

    def __init__(self) -> None:
        super().__init__()
        self.body = _resnet50(partial(FrozenBatchNorm2d, eps=0.0), stride_in_1x1=False)
        self.fpn = FeaturePyramidNetwork(_STAGE_CHANNELS, self.channels, LastLevelMaxPool())

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `pyramid`."""
        return self.pyramid(self.body, images)


Backbone = SmallBackbone | ResNet50C4 | ResNet50Fpn | TorchvisionFpn


def make_backbone(config: RpnConfig) -> Backbone:
    """Return the backbone that `rpn.backbone` names, with random weights: He-normal convolutions, identity norms.

    A frozen norm can't scale down what it gets, so a ResNet's blocks start close to the identity, and the first
    convolution of the official ones brings pixels (in a range of 255) down to unit scale.
    """
    backbone: Backbone
    if config.backbone == "small":
        backbone = SmallBackbone(config.width, config.anchor_sizes)
    elif config.backbone == "resnet50_c4":
        backbone = ResNet50C4()
    elif config.backbone == "torchvision_fpn":
        backbone = TorchvisionFpn()
    else:
        backbone = ResNet50Fpn(lsj=config.backbone == "resnet50_fpn_lsj")
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        fan = module.out_channels * math.prod(module.kernel_size)
        gain = 1.0
        if name == "resnet.conv1":
            gain = 1.0 / 64.0
        elif name.startswith(("resnet", "body")) and name.endswith("conv3"):
            gain = 0.25
        with torch.no_grad():
            module.weight.normal_(0.0, gain * math.sqrt(2.0 / fan))
            if module.bias is not None:
                module.bias.zero_()
    return backbone
