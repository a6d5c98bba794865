"""Import of proposal networks into RPN folders, from official files and models and from torchvision's detectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from regionclip_core.config.tree import RpnConfig
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn_folder import official_section, write_rpn_folder
from regionclip_core.proposals.rpn_weights import RpnWeights, read_layout
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.import_report import ImportReport, WeightFile

_COUNTER = ".num_batches_tracked"


def import_rpn(file: WeightFile, folder: Folder, report: ImportReport) -> None:
    """Write the file's proposal network into an RPN folder; everything else in the file is left over.

    Raises:
        ValueError: as `convert_rpn`.
    """
    found = convert_rpn(file.tensors, file, report, "")
    write_rpn_folder(folder, found.state, official_section(found.backbone))
    report.model = found.backbone
    report.leave(found.left_over, "no part of the proposal network")


def convert_rpn(state: Mapping[str, Tensor], file: WeightFile, report: ImportReport, place: str) -> RpnWeights:
    """Return the proposal network in `state` under our names, checked and recorded in the report under `place`.

    Raises:
        ValueError: there is none, or it is incomplete or of an architecture that is not known here.
    """
    found = read_layout(state, file.name)
    if found.backbone == "small":
        raise ValueError(
            f"{file.name} is regionclip's own small proposal network: its anchors are not in this file. Take the "
            "folder that it came from, with its rpn.json"
        )
    # Renaming keeps the order, and drops torchvision's counters.
    taken = [name for name in state if name not in set(found.left_over)]
    if found.layout == "torchvision":
        counters = [name for name in taken if name.endswith(_COUNTER)]
        report.leave(counters, "a counter that nothing reads")
        taken = [name for name in taken if not name.endswith(_COUNTER)]
        if counters:
            report.notes.append("variances of trained batch norms carry torch's epsilon of 1e-5 from here on")
    with torch.device("meta"):  # names and shapes only
        expected = ProposalNetwork(RpnConfig.model_validate({"backbone": found.backbone})).state_dict()
    report.take(dict(zip(taken, found.state, strict=True)), place)
    report.note_dtypes({f"{place}{name}": tensor for name, tensor in found.state.items()})
    complete = dict(found.state)
    for name in expected:
        if name.endswith(_COUNTER) and name not in complete:
            complete[name] = torch.zeros((), dtype=torch.int64)
            report.added[f"{place}{name}"] = "a counter that nothing reads"
    file.check_fit(expected, complete, f"proposal network ({found.backbone})")
    return RpnWeights(found.backbone, complete, found.layout, found.left_over)
