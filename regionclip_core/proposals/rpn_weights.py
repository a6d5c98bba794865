"""Weights of foreign proposal networks under the names of ProposalNetwork, and back.

Three namings: ours (`backbone.resnet.`, `backbone.fpn.`, `rpn.head.convs.0.`), the official code's (`backbone.` or
`offline_backbone.`, `proposal_generator.rpn_head.`) and torchvision's (`backbone.body.`, `backbone.fpn.`,
`rpn.head.conv.`). Renaming is all that happens, but for the variances of torchvision's trained batch norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

OFFICIAL_BACKBONES = ("resnet50_c4", "resnet50_fpn", "resnet50_fpn_lsj")

_NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
# Official name (its prefix taken off) -> ours; the first pattern that fits the whole name counts.
_BACKBONE = [
    (r"stem\.conv1\.weight", r"resnet.conv1.weight"),
    (rf"stem\.conv1\.norm\.{_NORM}", r"resnet.bn1.\1"),
    (r"res(\d)\.(\d+)\.shortcut\.weight", r"resnet.layer{stage}.\2.downsample.0.weight"),
    (rf"res(\d)\.(\d+)\.shortcut\.norm\.{_NORM}", r"resnet.layer{stage}.\2.downsample.1.\3"),
    (r"res(\d)\.(\d+)\.conv(\d)\.weight", r"resnet.layer{stage}.\2.conv\3.weight"),
    (rf"res(\d)\.(\d+)\.conv(\d)\.norm\.{_NORM}", r"resnet.layer{stage}.\2.bn\3.\4"),
    (r"fpn_lateral(\d)\.(weight|bias)", r"fpn.inner_blocks.{level}.0.\2"),
    (rf"fpn_lateral(\d)\.norm\.{_NORM}", r"fpn.inner_blocks.{level}.1.\2"),
    (r"fpn_output(\d)\.(weight|bias)", r"fpn.layer_blocks.{level}.0.\2"),
    (rf"fpn_output(\d)\.norm\.{_NORM}", r"fpn.layer_blocks.{level}.1.\2"),
]
_HEAD = [
    (r"conv\.(weight|bias)", r"convs.0.\1"),
    (r"conv\.conv(\d)\.(weight|bias)", r"convs.\1.\2"),
    (r"objectness_logits\.(weight|bias)", r"objectness.\1"),
    (r"anchor_deltas\.(weight|bias)", r"deltas.\1"),
]
# Ours -> official.
_TO_BACKBONE = [
    (r"resnet\.conv1\.weight", r"stem.conv1.weight"),
    (rf"resnet\.bn1\.{_NORM}", r"stem.conv1.norm.\1"),
    (r"resnet\.layer(\d)\.(\d+)\.downsample\.0\.weight", r"res{stage}.\2.shortcut.weight"),
    (rf"resnet\.layer(\d)\.(\d+)\.downsample\.1\.{_NORM}", r"res{stage}.\2.shortcut.norm.\3"),
    (r"resnet\.layer(\d)\.(\d+)\.conv(\d)\.weight", r"res{stage}.\2.conv\3.weight"),
    (rf"resnet\.layer(\d)\.(\d+)\.bn(\d)\.{_NORM}", r"res{stage}.\2.conv\3.norm.\4"),
    (r"fpn\.inner_blocks\.(\d)\.0\.(weight|bias)", r"fpn_lateral{level}.\2"),
    (rf"fpn\.inner_blocks\.(\d)\.1\.{_NORM}", r"fpn_lateral{level}.norm.\2"),
    (r"fpn\.layer_blocks\.(\d)\.0\.(weight|bias)", r"fpn_output{level}.\2"),
    (rf"fpn\.layer_blocks\.(\d)\.1\.{_NORM}", r"fpn_output{level}.norm.\2"),
]
# torchvision -> ours; older files name a pyramid's or a head's convolution without the index inside its block.
_TORCHVISION = [
    (r"backbone\.body\.(conv1\.weight|bn1\.\w+)", r"backbone.body.\1"),
    (r"backbone\.body\.(layer\d\.\d+\.(?:conv\d\.weight|bn\d\.\w+|downsample\.\d\.\w+))", r"backbone.body.\1"),
    (r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?\.(weight|bias)", r"backbone.fpn.\1_blocks.\2.0.\3"),
    (r"rpn\.head\.conv(?:\.0\.0)?\.(weight|bias)", r"rpn.head.convs.0.\1"),
    (r"rpn\.head\.cls_logits\.(weight|bias)", r"rpn.head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(weight|bias)", r"rpn.head.deltas.\1"),
]
_BATCH_NORM_EPS = 1e-5  # torch's, for norms that were trained


@dataclass(frozen=True)
class RpnWeights:
    """A proposal network's weights as ProposalNetwork names them, and where they came from."""

    backbone: str
    """The `rpn.backbone` that they belong to."""
    state: dict[str, Tensor]
    layout: str
    """Whose names the file had: `regionclip`, `official` or `torchvision`."""
    left_over: tuple[str, ...]
    """Entries of the file that belong to no proposal network (heads, the CLIP model), sorted."""


def read_layout(state: Mapping[str, Tensor], source: str) -> RpnWeights:
    """The proposal network among a file's tensors, whichever of the three namings it uses.

    Raises:
        ValueError: if there is none, or one of another architecture; `source` names the file in the message.
    """
    prefixes: tuple[str, ...]
    try:
        if any(name.startswith("rpn.head.objectness.") for name in state):
            layout, own, prefixes = "regionclip", dict(state), ("",)  # it holds nothing else, or does not fit
        elif any(name.startswith("rpn.head.") for name in state):
            layout, own, prefixes = "torchvision", from_torchvision(state)[1], ("backbone.", "rpn.")
        else:
            layout, own, prefixes = "official", from_official(state), _official_prefixes(state)
        left_over = tuple(sorted(name for name in state if not name.startswith(prefixes)))
        return RpnWeights(backbone_of(own), own, layout, left_over)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def backbone_of(state: Mapping[str, Tensor]) -> str:
    """The `rpn.backbone` whose network has these (our) names; ValueError if there is none."""
    if any(name.startswith("backbone.layers.") for name in state):
        return "small"
    if any(name.startswith("backbone.body.") for name in state):
        return "torchvision_fpn"
    if not any(name.startswith("backbone.resnet.") for name in state):
        raise ValueError(
            f"no backbone of a proposal network: expected entries under backbone.resnet., backbone.body. or "
            f"backbone.layers., got {sorted({'.'.join(n.split('.')[:2]) for n in state})[:6]}"
        )
    if not any(name.startswith("backbone.fpn.") for name in state):
        return "resnet50_c4"
    return "resnet50_fpn_lsj" if "rpn.head.convs.1.weight" in state else "resnet50_fpn"


# ---------------------------------------------------------------- official


def _official_prefixes(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Of the backbone and of the head: the offline ones where both kinds are there."""
    offline = "offline_" if any(name.startswith("offline_backbone.") for name in state) else ""
    return f"{offline}backbone.", f"{offline}proposal_generator.rpn_head."


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The proposal branch of an official checkpoint's `model` dictionary, ready for ProposalNetwork.

    Takes detectors (`offline_backbone.`, `offline_proposal_generator.`) and bare proposal checkpoints (`backbone.`,
    `proposal_generator.`); where both are there, the offline ones are meant. Other entries are ignored. Raises
    ValueError if there is no proposal branch, or if one of its names is unknown.
    """
    backbone, head = _official_prefixes(state)
    if not any(name.startswith(head) for name in state):
        raise ValueError(
            f"no proposal branch: expected entries under {head}, got {sorted({n.split('.')[0] for n in state})}"
        )
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(backbone):
            found["backbone." + _rename(name.removeprefix(backbone).removeprefix("bottom_up."), _BACKBONE)] = tensor
        elif name.startswith(head):
            found["rpn.head." + _rename(name.removeprefix(head), _HEAD)] = tensor
    return found


def to_official(state: Mapping[str, Tensor], offline: bool) -> dict[str, Tensor]:
    """ProposalNetwork's `state` under the official names: the inverse of :func:`from_official`, the same tensors.

    `offline`: named as the proposal branch inside a detector, else as a proposal checkpoint of its own. Raises
    ValueError for networks that the official code has not (`small`, `torchvision_fpn`).
    """
    backbone = backbone_of(state)
    if backbone not in OFFICIAL_BACKBONES:
        raise ValueError(
            f"the official code has no proposal network like rpn.backbone {backbone}, only {list(OFFICIAL_BACKBONES)}"
        )
    prefix = "offline_" if offline else ""
    head_names = _TO_HEAD_DEEP if "rpn.head.convs.1.weight" in state else _TO_HEAD
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("rpn.head."):
            official = _rename(name.removeprefix("rpn.head."), head_names)
            found[f"{prefix}proposal_generator.rpn_head.{official}"] = tensor
            continue
        official = _rename(name.removeprefix("backbone."), _TO_BACKBONE, back=True)
        in_pyramid = backbone != "resnet50_c4" and not official.startswith("fpn_")
        found[f"{prefix}backbone." + ("bottom_up." if in_pyramid else "") + official] = tensor
    return found


_TO_HEAD = [
    (r"convs\.0\.(weight|bias)", r"conv.\1"),
    (r"objectness\.(weight|bias)", r"objectness_logits.\1"),
    (r"deltas\.(weight|bias)", r"anchor_deltas.\1"),
]
_TO_HEAD_DEEP = [(r"convs\.(\d)\.(weight|bias)", r"conv.conv\1.\2"), *_TO_HEAD[1:]]


def _rename(name: str, patterns: list[tuple[str, str]], back: bool = False) -> str:
    for pattern, target in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            number = int(match[1]) if match.groups() and match[1].isdigit() else 0
            # The official stages are res2..res5 and the pyramid's levels 2..5.
            sign = 1 if back else -1
            return match.expand(target.format(stage=number + sign, level=number + 2 * sign))
    raise ValueError(f"unknown weight {name!r} in the proposal branch; a ResNet-50 C4 or FPN one is expected")


# ---------------------------------------------------------------- torchvision


def from_torchvision(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The `rpn.backbone` and the weights for ProposalNetwork of a torchvision fasterrcnn or maskrcnn_resnet50_fpn.

    Reads the present and the older names of pyramid and head; `roi_heads.` is left alone. Norms: the published
    COCO_V1 files hold frozen norms, whose epsilon torchvision overwrites with 0, and ours add none either. A file
    with trained batch norms (told by their counters) gets torch's epsilon added to its variances, which is the same
    in every bit as adding it later. A file with frozen norms that torchvision did NOT publish looks like a published
    one, but was trained with an epsilon of 1e-5, which is then missing.

    Raises:
        ValueError: for another network (version 2, MobileNet, ResNet-18, ...), saying which names are strange.
    """
    if not any(name.startswith("rpn.head.cls_logits.") for name in state):
        raise ValueError(
            "no proposal network of torchvision: expected entries under rpn.head.cls_logits., got "
            f"{sorted({n.split('.')[0] for n in state})}"
        )
    found: dict[str, Tensor] = {}
    trained_norms = any(name.endswith(".num_batches_tracked") for name in state if name.startswith("backbone.body."))
    for name, tensor in state.items():
        if not name.startswith(("backbone.", "rpn.")) or name.endswith(".num_batches_tracked"):
            continue
        own = _torchvision_name(name)
        found[own] = tensor + _BATCH_NORM_EPS if trained_norms and name.endswith(".running_var") else tensor
    return "torchvision_fpn", found


def _torchvision_name(name: str) -> str:
    for pattern, target in _TORCHVISION:
        if match := re.fullmatch(pattern, name):
            return match.expand(target)
    raise ValueError(
        f"unknown weight {name!r}: the proposal network of torchvision's fasterrcnn_resnet50_fpn or "
        "maskrcnn_resnet50_fpn is expected, not of a version 2 or of another backbone"
    )
