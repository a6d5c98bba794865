"""The proposal network: anchors, head outputs and selected proposals of the three official configurations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from golden_checks.table import Errors, Row, arrays, error
from regionclip_core.config.tree import RpnConfig
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn import RegionProposalNetwork
from regionclip_core.proposals.rpn_weights import from_official

FILE = "rpn.npz"
BACKBONES = {"c4": "resnet50_c4", "fpn": "resnet50_fpn", "fpn_lsj": "resnet50_fpn_lsj"}
_PYRAMID = ["p2", "p3", "p4", "p5", "p6"]
LEVELS = {"c4": ["res4"], "fpn": _PYRAMID, "fpn_lsj": _PYRAMID}
VARIANTS = {
    ("c4", "nms0.7"): (6000, 1000, 0.7),
    ("c4", "nms0.9"): (6000, 1000, 0.9),
    ("c4", "nms0.5"): (6000, 1000, 0.5),
    ("c4", "nms0.5_pre400_post50"): (400, 50, 0.5),
    ("fpn", "nms0.7"): (1000, 1000, 0.7),
    ("fpn", "nms0.9_post300"): (1000, 300, 0.9),
    ("fpn_lsj", "nms0.9"): (200, 1000, 0.9),
}
"""Boxes before and after NMS, and its IoU."""


@functools.cache
def network(name: str) -> RegionProposalNetwork:
    """Our network of one official configuration, with the narrow head of the golden file."""
    golden = arrays(FILE)
    with torch.device("meta"):  # of the full network only the layout is wanted
        full = ProposalNetwork(RpnConfig(backbone=BACKBONES[name])).rpn  # type: ignore[arg-type]
    channels = golden[f"{name}/feat/{LEVELS[name][0]}"].shape[1]
    rpn = RegionProposalNetwork(channels, full.layout, head_depth=len(full.head.convs))
    prefix = f"{name}/w/"
    stored = {k.replace(prefix, "proposal_generator."): v for k, v in golden.items() if k.startswith(prefix)}
    rpn.load_state_dict({k.removeprefix("rpn."): v for k, v in from_official(stored).items()})
    return rpn.to(next(iter(stored.values())).device).eval()


def features(name: str) -> list[Tensor]:
    """The stored maps of all levels."""
    return [arrays(FILE)[f"{name}/feat/{level}"] for level in LEVELS[name]]


@torch.no_grad()
def dense_errors() -> Errors:
    """Anchors, logits and deltas of every anchor."""
    golden, found = arrays(FILE), {}
    for name, levels in LEVELS.items():
        anchors, logits, deltas = network(name)(features(name))
        for level in range(len(levels)):
            found[f"{name}/anchors{level}"] = error(anchors[level], golden[f"{name}/anchors{level}"])
            # NCHW to our order: row, column, anchor.
            raw = golden[f"{name}/raw_logits{level}"]
            found[f"{name}/raw_logits{level}"] = error(logits[level], raw.permute(0, 2, 3, 1).flatten(1))
            raw = golden[f"{name}/raw_deltas{level}"]
            ordered = raw.view(2, -1, 4, *raw.shape[2:]).permute(0, 3, 4, 1, 2).reshape(2, -1, 4)
            found[f"{name}/raw_deltas{level}"] = error(deltas[level], ordered)
    return found


@torch.no_grad()
def selection_errors() -> Errors:
    """Selected boxes and their raw logits, in order."""
    golden, found = arrays(FILE), {}
    for (name, variant), (pre_nms, post_nms, nms) in VARIANTS.items():
        sizes = [(int(h), int(w)) for h, w in golden[f"{name}/image_sizes"]]
        for image, ours in enumerate(network(name).propose(features(name), sizes, pre_nms, post_nms, nms)):
            place = f"{name}/{variant}/"
            found[f"{place}boxes{image}"] = error(ours.boxes, golden[f"{place}boxes{image}"])
            key = f"{place}objectness_logits{image}"
            found[key] = error(ours.logits, golden[key])
    return found


ROWS = [
    Row(FILE, "*/feat/* */image_sizes", "input"),
    Row(FILE, "*/w/*", "input", note="loaded by their official names through `rpn_weights.from_official`"),
    Row(
        FILE,
        "*/anchors? */raw_logits? */raw_deltas?",
        "rpn.RegionProposalNetwork, rpn.AnchorLayout",
        1e-6,
        dense_errors,
        "`rpn.backbone`: resnet50_c4, resnet50_fpn, resnet50_fpn_lsj",
    ),
    Row(
        FILE,
        "*/nms*/boxes[01] */nms*/objectness_logits[01]",
        "rpn.RegionProposalNetwork.propose, select_proposals",
        1e-5,
        selection_errors,
        "seven settings of `proposals.pre_nms`, `max_regions`, `nms`",
    ),
]
