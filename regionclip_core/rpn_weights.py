"""Weights of the official proposal branch under the names of ProposalNetwork."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

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


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The proposal branch of an official checkpoint's `model` dictionary, ready for ProposalNetwork.

    Takes detectors (`offline_backbone.`, `offline_proposal_generator.`) and bare proposal checkpoints (`backbone.`,
    `proposal_generator.`); where both are there, the offline ones are meant. Other entries are ignored. Raises
    ValueError if there is no proposal branch, or if one of its names is unknown.
    """
    offline = any(name.startswith("offline_backbone.") for name in state)
    backbone, head = "backbone.", "proposal_generator.rpn_head."
    if offline:
        backbone, head = f"offline_{backbone}", f"offline_{head}"
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(backbone):
            found["backbone." + _rename(name.removeprefix(backbone).removeprefix("bottom_up."), _BACKBONE)] = tensor
        elif name.startswith(head):
            found["rpn.head." + _rename(name.removeprefix(head), _HEAD)] = tensor
    if not any(name.startswith("rpn.head.") for name in found):
        raise ValueError(
            f"no proposal branch: expected entries under {head}, got {sorted({n.split('.')[0] for n in state})}"
        )
    return found


def _rename(name: str, patterns: list[tuple[str, str]]) -> str:
    for pattern, target in patterns:
        match = re.fullmatch(pattern, name)
        if match:
            number = int(match[1]) if match.groups() and match[1].isdigit() else 0
            # The official stages are res2..res5 and the pyramid's levels 2..5.
            return match.expand(target.format(stage=number - 1, level=number - 2))
    raise ValueError(f"unknown weight {name!r} in the proposal branch; a ResNet-50 C4 or FPN one is expected")
