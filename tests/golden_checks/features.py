"""Region features: image batch, backbone, RoIAlign, stage 4, attention pool, their gradients."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from golden_checks.table import Errors, Row, arrays, error
from regionclip_core.models.resnet_encoder import ResNetEncoder
from regionclip_core.ops.image_batch import ImageBatch, normalize_and_pad

FILE = "region_features.npz"
VANISHING = "grad/attnpool.k_proj.bias"
"""A bias of the keys shifts all scores of a head alike, which the softmax doesn't see."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@functools.cache
def run() -> dict[str, Tensor]:
    """Our counterpart of every array, from one forward and one backward pass."""
    golden = arrays(FILE)
    visual = ModifiedResNet(layers=(2, 2, 2, 2), output_dim=32, heads=4, image_size=224, width=8)
    visual.load_state_dict({k[2:]: v for k, v in golden.items() if k.startswith("w/")}, strict=False)
    encoder = ResNetEncoder(visual).to(golden["probe"].device, memory_format=torch.channels_last).train()
    encoder.freeze(2)
    images = normalize_and_pad([golden["image0_rgb_u8"], golden["image1_rgb_u8"]], MEAN, STD)
    sizes = [(int(h), int(w)) for h, w in golden["image_sizes"]]
    canvas = ImageBatch(images, sizes, sizes).global_boxes("padded")
    features = encoder.features(images)
    boxes = [golden["boxes0"], golden["boxes1"]]
    aligned = encoder.align(features, torch.cat([F.pad(b, (1, 0), value=number) for number, b in enumerate(boxes)]))
    maps = encoder.regions(features, boxes)
    pooled = encoder.pool(maps)
    (pooled * golden["probe"]).sum().backward()
    return {
        "input_tensor": images,
        "res4": features,
        "roi_aligned_first16ch": aligned[:, :16],
        "roi_aligned_full_box0to3": aligned[:4],
        "res5": maps,
        "region_feats": pooled,
        "region_feats_meanpool": maps.mean((2, 3)),
        "global_feats": encoder(images, canvas),
        **{f"grad/{name}": p.grad for name, p in encoder.named_parameters() if p.grad is not None},
    }


def errors(*names: str) -> Errors:
    """Errors of single arrays."""
    return {name: error(run()[name], arrays(FILE)[name]) for name in names}


def gradient_errors() -> Errors:
    """Errors of the stored gradients that aren't 0."""
    return errors(*(name for name in arrays(FILE) if name.startswith("grad/") and name != VANISHING))


def vanishing_error() -> Errors:
    """Of a gradient that is nothing but rounding: the absolute difference."""
    return {VANISHING: float((run()[VANISHING] - arrays(FILE)[VANISHING]).abs().max())}


ROWS = [
    Row(FILE, "w/* image0_rgb_u8 image1_rgb_u8 image_sizes boxes0 boxes1 probe", "input"),
    Row(FILE, "input_tensor", "image_batch.normalize_and_pad", 1e-6, lambda: errors("input_tensor")),
    Row(FILE, "res4", "resnet_encoder.ResNetEncoder.features", 5e-6, lambda: errors("res4")),
    Row(
        FILE,
        "roi_aligned_*",
        "region_encoder.RegionEncoder.align",
        5e-6,
        lambda: errors("roi_aligned_first16ch", "roi_aligned_full_box0to3"),
    ),
    Row(FILE, "res5", "resnet_encoder.ResNetEncoder.regions", 5e-6, lambda: errors("res5")),
    Row(
        FILE,
        "region_feats",
        "resnet_encoder.ResNetEncoder.pool, pool_single_query",
        5e-6,
        lambda: errors("region_feats"),
    ),
    Row(
        FILE,
        "region_feats_meanpool",
        "resnet_encoder.ResNetEncoder.regions, mean over 7 x 7",
        5e-6,
        lambda: errors("region_feats_meanpool"),
        "the official alternative for models without a text classifier; no model here uses it",
    ),
    Row(
        FILE,
        "global_feats",
        "resnet_encoder.ResNetEncoder, ImageBatch.global_boxes",
        5e-6,
        lambda: errors("global_feats"),
        "`pretrain.global_box: padded`",
    ),
    Row(
        FILE,
        "grad/layer* grad/attnpool.[pqvc]*",
        "resnet_encoder.ResNetEncoder with freeze(2), backward",
        2e-5,
        gradient_errors,
    ),
    Row(
        FILE,
        VANISHING,
        "resnet_encoder.ResNetEncoder, backward",
        1e-5,
        vanishing_error,
        "0 but for rounding; the absolute difference",
    ),
]
