"""Weights of other projects' proposal networks under the names of ProposalNetwork, and back.

Three namings: ours (`backbone.resnet.`, `backbone.fpn.`, `rpn.head.convs.0.`), the official code's (`backbone.` or
`offline_backbone.`, `proposal_generator.rpn_head.`) and torchvision's (`backbone.body.`, `backbone.fpn.`,
`rpn.head.conv.`). Tensors are only renamed, except the variances of torchvision's trained batch norms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

OFFICIAL_BACKBONES = ("resnet50_c4", "resnet50_fpn", "resnet50_fpn_lsj")

Names = list[tuple[str, str]]
# Official name (without its prefix) and ours. What is in <> is read by _PARTS from either and put into the other.
_BACKBONE: Names = [
    ("stem.conv1.weight", "resnet.conv1.weight"),
    ("stem.conv1.norm.<norm>", "resnet.bn1.<norm>"),
    ("res<stage>.<block>.shortcut.weight", "resnet.layer<stage>.<block>.downsample.0.weight"),
    ("res<stage>.<block>.shortcut.norm.<norm>", "resnet.layer<stage>.<block>.downsample.1.<norm>"),
    ("res<stage>.<block>.conv<n>.weight", "resnet.layer<stage>.<block>.conv<n>.weight"),
    ("res<stage>.<block>.conv<n>.norm.<norm>", "resnet.layer<stage>.<block>.bn<n>.<norm>"),
    ("fpn_lateral<level>.<weight>", "fpn.inner_blocks.<level>.0.<weight>"),
    ("fpn_lateral<level>.norm.<norm>", "fpn.inner_blocks.<level>.1.<norm>"),
    ("fpn_output<level>.<weight>", "fpn.layer_blocks.<level>.0.<weight>"),
    ("fpn_output<level>.norm.<norm>", "fpn.layer_blocks.<level>.1.<norm>"),
]
_OUTPUTS: Names = [
    ("objectness_logits.<weight>", "objectness.<weight>"),
    ("anchor_deltas.<weight>", "deltas.<weight>"),
]
_HEAD: Names = [("conv.<weight>", "convs.0.<weight>"), *_OUTPUTS]
_DEEP_HEAD: Names = [("conv.conv<n>.<weight>", "convs.<n>.<weight>"), *_OUTPUTS]
_PARTS = {
    "norm": "weight|bias|running_mean|running_var|num_batches_tracked",
    "weight": "weight|bias",
    "block": r"\d+",
    "n": r"\d",
    "stage": r"\d",
    "level": r"\d",
}
_OFFICIAL_START = {"stage": 1, "level": 2}
"""Official number minus ours: stages are res2 to res5 and layer1 to layer4, levels of the pyramid 2 to 5 and 0 to 3."""

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
    """A proposal network's weights under ProposalNetwork's names, and what kind of file they came from."""

    backbone: str
    """The `rpn.backbone` that they belong to."""
    state: dict[str, Tensor]
    layout: str
    """Which names the file had: `regionclip`, `official` or `torchvision`."""
    left_over: tuple[str, ...]
    """Entries of the file that belong to no proposal network (heads, the CLIP model), sorted."""


def read_layout(state: Mapping[str, Tensor], source: str) -> RpnWeights:
    """Return the proposal network among a file's tensors, in any of the three namings.

    Raises:
        ValueError: if there is none, or one of another architecture; `source` names the file in the message.
    """
    prefixes: tuple[str, ...]
    try:
        if any(name.startswith("rpn.head.objectness.") for name in state):
            layout, own, prefixes = "regionclip", dict(state), ("",)  # it holds nothing else, or does not fit
        elif any(name.startswith("rpn.head.") for name in state):
            layout, own, prefixes = "torchvision", from_torchvision(state), ("backbone.", "rpn.")
        else:
            layout, own, prefixes = "official", from_official(state), _official_prefixes(state)
        left_over = tuple(sorted(name for name in state if not name.startswith(prefixes)))
        return RpnWeights(backbone_of(own), own, layout, left_over)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def backbone_of(state: Mapping[str, Tensor]) -> str:
    """Return the `rpn.backbone` whose network has these (our) names; ValueError if there is none."""
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


def _official_prefixes(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Return the prefixes of backbone and head: the offline ones where both kinds are there."""
    offline = "offline_" if any(name.startswith("offline_backbone.") for name in state) else ""
    return f"{offline}backbone.", f"{offline}proposal_generator.rpn_head."


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the proposal branch of an official checkpoint's `model` dictionary, ready for ProposalNetwork.

    Takes detectors (`offline_backbone.`, `offline_proposal_generator.`) and bare proposal checkpoints (`backbone.`,
    `proposal_generator.`); of a file that has both, the offline ones. Other entries are ignored.

    Raises:
        ValueError: if there is no proposal branch, or one of its names is unknown.
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
            found["rpn.head." + _rename(name.removeprefix(head), _HEAD + _DEEP_HEAD)] = tensor
    return found


def to_official(state: Mapping[str, Tensor], offline: bool) -> dict[str, Tensor]:
    """Return ProposalNetwork's `state` under the official names: the inverse of :func:`from_official`, same tensors.

    `offline`: named as the proposal branch inside a detector, not as a separate proposal checkpoint.

    Raises:
        ValueError: for networks that the official code does not have (`small`, `torchvision_fpn`).
    """
    backbone = backbone_of(state)
    if backbone not in OFFICIAL_BACKBONES:
        raise ValueError(
            f"the official code has no proposal network like rpn.backbone {backbone}, only {list(OFFICIAL_BACKBONES)}"
        )
    prefix = "offline_" if offline else ""
    head_names = _DEEP_HEAD if backbone == "resnet50_fpn_lsj" else _HEAD
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("rpn.head."):
            official = _rename(name.removeprefix("rpn.head."), head_names, back=True)
            found[f"{prefix}proposal_generator.rpn_head.{official}"] = tensor
            continue
        official = _rename(name.removeprefix("backbone."), _BACKBONE, back=True)
        in_pyramid = backbone != "resnet50_c4" and not official.startswith("fpn_")
        found[f"{prefix}backbone." + ("bottom_up." if in_pyramid else "") + official] = tensor
    return found


def _rename(name: str, names: Names, back: bool = False) -> str:
    """Return our name for an official one, or with `back` the official for ours."""
    for official, own in names:
        source, target = (own, official) if back else (official, own)
        pattern = re.sub(r"<(\w+)>", lambda part: f"(?P<{part[1]}>{_PARTS[part[1]]})", source.replace(".", r"\."))
        if match := re.fullmatch(pattern, name):
            values = match.groupdict()
            for part in _OFFICIAL_START.keys() & values.keys():
                values[part] = str(int(values[part]) + _OFFICIAL_START[part] * (1 if back else -1))
            for part, value in values.items():
                target = target.replace(f"<{part}>", value)
            return target
    raise ValueError(f"unknown weight {name!r} in the proposal branch; a ResNet-50 C4 or FPN one is expected")


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights for ProposalNetwork of torchvision's fasterrcnn_resnet50_fpn or maskrcnn_resnet50_fpn.

    Reads the present and the older names of pyramid and head; `roi_heads.` is ignored. Norms: the published
    COCO_V1 files hold frozen norms, whose epsilon torchvision overwrites with 0, and ours add none either. A file
    with trained batch norms (recognised by their counters) gets torch's epsilon added to its variances, which is the
    same in every bit as adding it later. A file with frozen norms that torchvision did NOT publish looks like a
    published one, but was trained with an epsilon of 1e-5, which is then missing.

    Raises:
        ValueError: for another network (version 2, MobileNet, ResNet-18, ...), naming the unknown entry.
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
        matches = ((re.fullmatch(pattern, name), target) for pattern, target in _TORCHVISION)
        own = next((match.expand(target) for match, target in matches if match), None)
        if own is None:
            raise ValueError(
                f"unknown weight {name!r}: the proposal network of torchvision's fasterrcnn_resnet50_fpn or "
                "maskrcnn_resnet50_fpn is expected, not of a version 2 or of another backbone"
            )
        found[own] = tensor + _BATCH_NORM_EPS if trained_norms and name.endswith(".running_var") else tensor
    return found
