"""Convolutions with their frozen batch norms folded in: half as many passes over the maps, equal up to rounding.

A frozen norm is y * scale + shift per channel, so norm(conv(x)) is one convolution with scaled filters and the shift as
its bias. The modules keep their own weights, which are what is trained and saved; the folded ones are made again for
every call (a thousandth of its work), and their gradients reach the modules' weights.

Shapes: N maps of C channels and (H, W) cells, O output channels; maps are channels-last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import Bottleneck
from torch import Tensor, nn

from regionclip_core.ops.winograd import winograd_conv, winograd_weight

_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_WINOGRAD_CHANNELS = 128  # from which on Winograd's form is faster on a CPU; with fewer its sums cost what it saves


class FoldedConv:
    """norm(conv(x)) for a frozen norm, with the weights that both have now."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        self.weight = conv.weight * scale.view(-1, 1, 1, 1)
        self.bias = norm.bias - norm.running_mean * scale
        self.stride, self.padding = conv.stride, conv.padding
        device = self.weight.device.type
        self.on_cpu = device == "cpu" and self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(device)
        same_size = conv.kernel_size == (3, 3) and conv.stride == conv.padding == (1, 1)
        enough = min(self.weight.shape[:2]) >= _WINOGRAD_CHANNELS
        self.transformed = winograd_weight(self.weight) if self.on_cpu and same_size and enough else None

    def __call__(self, x: Tensor, bias: bool = True) -> Tensor:
        """Return [N, O, H', W'] of x [N, C, H, W]; without the bias it is linear."""
        shift = self.bias if bias else torch.zeros_like(self.bias)
        if self.transformed is not None:
            return winograd_conv(x, self.transformed, shift)
        if self.on_cpu and _ONEDNN:
            # With one thread and less than 16 images conv2d takes a kernel that is up to twice as slow as oneDNN's.
            settings = (self.padding, self.stride, (1, 1), 1)
            return torch.ops.aten.mkldnn_convolution(x, self.weight, shift, *settings)  # type: ignore[no-any-return]
        return F.conv2d(x, self.weight, shift, self.stride, self.padding)


class FoldedBottleneck:
    """A residual block of a CLIP ResNet; `conv1` and `shortcut` can be run apart from the rest."""

    def __init__(self, block: Bottleneck) -> None:
        self.conv1 = FoldedConv(block.conv1, block.bn1)
        self.conv2 = FoldedConv(block.conv2, block.bn2)
        self.conv3 = FoldedConv(block.conv3, block.bn3)
        self.shortcut: FoldedConv | None = None
        if block.downsample is not None:
            _, conv, norm = block.downsample  # an average pool comes first
            self.shortcut = FoldedConv(conv, norm)
        self.stride = int(block.stride)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the block's output for x [N, C, H, W]."""
        identity = x
        if self.shortcut is not None:
            identity = self.shortcut(F.avg_pool2d(x, self.stride) if self.stride > 1 else x)
        return self.finish(self.conv1(x), identity)

    def finish(self, hidden: Tensor, identity: Tensor) -> Tensor:
        """Return the block's output from `conv1`'s, and from what is added at the end."""
        # In place, since autograd needs no earlier value: a ReLU's gradient is a function of its output.
        hidden = self.conv2(hidden.relu_()).relu_()
        if self.stride > 1:
            hidden = F.avg_pool2d(hidden, self.stride)
        return self.conv3(hidden).add_(identity).relu_()
