"""Proposal networks into RPN folders: official files, proposal branches of official models, torchvision's detectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regionclip_core.config.tree import RpnConfig
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_folder import official_section, write_rpn_folder
from regionclip_core.proposals.rpn_weights import RpnWeights, read_layout
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.import_report import ImportReport
from regionclip_core.weights.import_source import Source, check_fit, leave_over

_COUNTER = ".num_batches_tracked"


def import_rpn(source: Source, folder: Folder, report: ImportReport) -> None:
    """A file with a proposal network into an RPN folder; whatever else it holds is left over."""
    found = checked_rpn(source.tensors, source, report, "")
    write_rpn_folder(folder, found.state, official_section(found.backbone))
    report.model = found.backbone
    leave_over(report, found.left_over, "no part of the proposal network")


def import_offline_branch(
    branch: Mapping[str, Tensor], folder: Folder, source: Source, report: ImportReport, place: str
) -> None:
    """The proposal branch of an official model (its `offline_*` tensors alone) into an RPN folder."""
    found = checked_rpn(branch, source, report, place)
    write_rpn_folder(folder, found.state, official_section(found.backbone))


def checked_rpn(state: Mapping[str, Tensor], source: Source, report: ImportReport, place: str) -> RpnWeights:
    """The proposal network in `state` under our names, recorded in the report, fitting its architecture.

    Raises ValueError if there is none, or it is incomplete or of an architecture that is not known here.
    """
    found = read_layout(state, source.name)
    if found.backbone == "small":
        raise ValueError(
            f"{source.name} is regionclip's own small proposal network: its anchors are not in this file. Take the "
            "folder that it came from, with its rpn.json"
        )
    # Renaming keeps the order, and torchvision's counters are dropped on the way.
    taken = [name for name in state if name not in set(found.left_over)]
    if found.layout == "torchvision":
        counters = [name for name in taken if name.endswith(_COUNTER)]
        leave_over(report, counters, "a counter that nothing reads")
        taken = [name for name in taken if name not in set(counters)]
        if counters:
            report.notes.append("variances of trained batch norms carry torch's epsilon of 1e-5 from here on")
    with torch.device("meta"):  # names and shapes only
        network = RpnConfig.model_validate({"backbone": found.backbone})
        expected = ProposalNetwork(network).state_dict()
    report.take(dict(zip(taken, found.state, strict=True)), place)
    report.note_dtypes({f"{place}{name}": tensor for name, tensor in found.state.items()})
    complete = dict(found.state)
    for name in expected:
        if name.endswith(_COUNTER) and name not in complete:
            complete[name] = torch.zeros((), dtype=torch.int64)
            report.added[f"{place}{name}"] = "a counter that nothing reads"
    check_fit(expected, complete, f"proposal network ({found.backbone})", source)
    return RpnWeights(found.backbone, complete, found.layout, found.left_over)
