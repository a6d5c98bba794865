"""Folders of a proposal network: `rpn.safetensors` and `rpn.json`, which says how it is built and run.

The artifact of the `rpn` stage is one, and `regionclip import` makes them of published files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from regionclip_core.config.tree import RPN_FIELDS, ProposalsConfig, RpnConfig
from regionclip_core.models.checkpoint_files import load_strictly, read_checkpoint, read_safetensors
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_weights import RpnWeights, read_layout
from regionclip_core.storage.local_files import local_copy
from regionclip_core.storage.records import Folder

WEIGHTS = "rpn.safetensors"
DESCRIPTION = "rpn.json"
FORMAT = 1
_ADVICE = "Check rpn.backbone, rpn.width and rpn.anchor_sizes"

PROPOSAL_FIELDS = ("pre_nms", "nms", "max_regions", "min_objectness")
"""Keys of ProposalsConfig that turn the network's output into proposals."""


def rpn_section(network: RpnConfig, proposals: ProposalsConfig | None = None) -> dict[str, Any]:
    """Return how a network is built and fed and, with `proposals`, how boxes are chosen: one flat JSON object."""
    only_small = set() if network.backbone == "small" else {"width", "anchor_sizes"}
    built = network.model_dump(mode="json", include=set(RPN_FIELDS) - only_small)
    return built | ({} if proposals is None else proposals.model_dump(mode="json", include=set(PROPOSAL_FIELDS)))


def official_section(backbone: str) -> dict[str, Any]:
    """Return the `rpn_section` of a published network: the official input size and choice of boxes."""
    network = RpnConfig.model_validate({"backbone": backbone, "image_size": 800, "max_size": 1333})
    pre_nms = 6000 if backbone == "resnet50_c4" else 1000
    chosen = ProposalsConfig(splits=(), pre_nms=pre_nms, nms=0.7, max_regions=1000, min_objectness=0.0)
    return rpn_section(network, chosen)


def read_section(section: Mapping[str, Any], source: str) -> tuple[RpnConfig, ProposalsConfig]:
    """Return the settings of an `rpn_section`, or official ones; ValueError for unknown keys or values."""
    strange = sorted(set(section) - {*RPN_FIELDS, *PROPOSAL_FIELDS, "format"})
    if "backbone" not in section or strange or section.get("format", FORMAT) != FORMAT:
        raise ValueError(
            f"{source}: expected the settings of a proposal network in format {FORMAT}, with the keys "
            f"{[*RPN_FIELDS, *PROPOSAL_FIELDS]}, got {strange or dict(section)}; import or export it again"
        )
    known = official_section(section["backbone"]) | dict(section)
    network = RpnConfig.model_validate({name: known[name] for name in RPN_FIELDS if name in known})
    return network, ProposalsConfig.model_validate({"splits": (), **{name: known[name] for name in PROPOSAL_FIELDS}})


def write_rpn_folder(folder: Folder, state: Mapping[str, Tensor], section: Mapping[str, Any]) -> None:
    """Write `rpn.safetensors` and `rpn.json`; tensors keep their dtype.

    Args:
        state: ProposalNetwork's state dict.
        section: an `rpn_section` or `official_section`.
    """
    read_section(section, folder.path(DESCRIPTION))
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    folder.write_bytes(WEIGHTS, save_tensors(plain))
    folder.write_json(DESCRIPTION, {"format": FORMAT, **section}, indent=1)


def open_network(place: str) -> tuple[ProposalNetwork, RpnConfig, ProposalsConfig]:
    """Load the network at `place`, in evaluation mode, and the settings that it is built and run with.

    `place` is what `read_rpn_weights` takes. A file without rpn.json runs with the official settings.

    Raises:
        ValueError: also for the file of a small network, whose anchors are in its folder's rpn.json only.
    """
    folder = find_rpn_folder(place)
    if folder is not None:
        rpn, proposals = read_section(folder.read_json(DESCRIPTION), folder.path(DESCRIPTION))
        return load_network(folder, rpn), rpn, proposals
    found = read_rpn_weights(place)
    if found.backbone == "small":
        raise ValueError(
            f"{place} is a small network, whose anchors are not in the file: give the folder with rpn.json"
        )
    rpn, proposals = read_section(official_section(found.backbone), place)
    network = ProposalNetwork(rpn)
    load_strictly(network, found.state, place)
    return network.eval().to(memory_format=torch.channels_last), rpn, proposals


def load_network(folder: Folder, settings: RpnConfig) -> ProposalNetwork:
    """Load the network of an RPN folder, built with `settings`, on the CPU in evaluation mode."""
    network = ProposalNetwork(settings)
    load_strictly(network, read_safetensors(folder, WEIGHTS), folder.path(WEIGHTS), _ADVICE)
    return network.eval().to(memory_format=torch.channels_last)


def find_rpn_folder(place: str) -> Folder | None:
    """Return the RPN folder at `place` (itself, or `rpn/` in an imported pretrained folder), or None."""
    folder = Folder(place)
    return next((inside for inside in (folder, folder.child("rpn")) if inside.exists(DESCRIPTION)), None)


def read_rpn_weights(place: str) -> RpnWeights:
    """Read a proposal network's weights from an RPN folder, a pretrained folder, or a file of any known naming.

    Raises:
        ValueError: if there is no proposal network in it, with what was expected.
        FileNotFoundError: if nothing is there.
    """
    folder = find_rpn_folder(place)
    if folder is not None:
        return read_layout(read_safetensors(folder, WEIGHTS), folder.path(WEIGHTS))
    if Path(place).is_dir():
        raise ValueError(
            f"{place} is no folder of a proposal network: expected {DESCRIPTION} or rpn/{DESCRIPTION} in it; make one "
            "with `regionclip import`, or give the file of weights"
        )
    with local_copy(place) as path:
        return read_layout(read_checkpoint(path).tensors, place)


def load_weights(network: ProposalNetwork, settings: RpnConfig) -> RpnWeights:
    """Load `rpn.weights` into a network built with `settings`; return what was read.

    Raises:
        ValueError: if the file holds another network; names the `rpn.backbone` to set.
    """
    found = read_rpn_weights(settings.weights)
    if found.backbone != settings.backbone:
        raise ValueError(
            f"rpn.weights: {settings.weights} holds a {found.backbone} network ({found.layout} names), but "
            f"rpn.backbone is {settings.backbone}; set rpn.backbone: {found.backbone}"
        )
    load_strictly(network, found.state, settings.weights, _ADVICE)
    return found
