"""Published files of weights into our folders: all of a file, checked, or nothing.

`import_checkpoint` reads a file (never running anything in it), tells what it is by the names of its tensors, converts
and checks it, and writes a folder with import.json, which says what became of every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regionclip_core.models.checkpoint_files import BARE_TENSOR, read_checkpoint
from regionclip_core.models.official_keys import STUDENT, TEACHER, TRAIN_EMBEDDINGS, sections
from regionclip_core.storage.folder import Folder, file_sha256, free_target, whole_or_nothing
from regionclip_core.storage.given_files import EMBEDDING_FILES
from regionclip_core.weights.clip_shapes import read_model
from regionclip_core.weights.import_clip import import_clip, import_pretrained
from regionclip_core.weights.import_detector import import_detector
from regionclip_core.weights.import_report import ImportReport
from regionclip_core.weights.import_rpn import import_rpn
from regionclip_core.weights.import_source import Source, leave_over
from regionclip_core.weights.row_names import name_rows

REPORT = "import.json"
_RPN_HEADS = ("proposal_generator.rpn_head.", "offline_proposal_generator.rpn_head.", "rpn.head.")


def import_checkpoint(
    file: str, out: str, names: str | None = None, model: str | None = None, kind: str | None = None
) -> ImportReport:
    """Import `file` into the new folder `out`, and say what was done.

    Args:
        file: published RegionCLIP weights (pretraining, detector, proposal network, embeddings), an OpenAI or
            open_clip CLIP model in any layout, or a torchvision detector with its proposal network.
        out: must not exist, or be empty.
        names: the names behind a classifier's or an embedding file's rows; see `category_names.read_names`.
        model: the architecture, by open_clip's name or a JSON file of open_clip's, where the file does not tell it or
            to have it checked.
        kind: one of KINDS, instead of telling it by the names in the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, unknown, incomplete, or does not fit what the user says. Nothing is written then.
    """
    if kind is not None and kind not in _IMPORTERS:
        raise ValueError(f"--kind {kind}: expected one of {', '.join(KINDS)}")
    target = free_target(out)
    path = Path(file)
    checkpoint = read_checkpoint(path)
    source = Source(path.name, checkpoint.tensors, checkpoint.others, names, model)
    kind = kind or recognise(checkpoint.tensors, path.name)
    report = ImportReport(path.name, file_sha256(path), path.stat().st_size, checkpoint.layout, kind)
    leave_over(report, sorted(checkpoint.others), "no tensor")
    leave_over(report, sorted(checkpoint.beside), "stands beside the model")
    with whole_or_nothing(target) as folder:
        _IMPORTERS[kind](source, folder, report)
        _check_books(report, checkpoint.tensors)
        folder.write_json(REPORT, report.to_json(), indent=1)
    return report


def recognise(tensors: Mapping[str, Tensor], name: str) -> str:
    """Which of KINDS a file is, by its tensors' names; ValueError with what is in it if it is none."""

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in tensors)

    only = next(iter(tensors.values())) if len(tensors) == 1 else None
    if only is not None and only.ndim in (1, 2) and (BARE_TENSOR in tensors or only.ndim == 2):
        return "embeddings"
    if has(f"{STUDENT}attnpool.", f"{STUDENT}layer1.") and TRAIN_EMBEDDINGS in tensors:
        return "detector"
    if has(f"{STUDENT}attnpool.", f"{STUDENT}layer1.", TEACHER):
        return "pretrained"
    if has("visual."):
        return "clip"
    if has(*_RPN_HEADS):
        return "rpn"
    raise ValueError(
        f"{name} holds no model that is known here. Its tensors, by the first part of their names: "
        f"{sections(tensors)}. Expected are RegionCLIP's files (backbone, lang_encoder, roi_heads, proposal_generator, "
        "or one tensor of embeddings), CLIP models (visual, transformer) and torchvision's detectors (backbone.body, "
        "rpn)"
    )


def import_embeddings(source: Source, folder: Folder, report: ImportReport) -> None:
    """A file with one tensor [n, D] of text embeddings into an embeddings folder; they keep norm and dtype.

    A file of a single concept is one row. ValueError if it is no such tensor, or the names or the width don't fit.
    """
    from safetensors.torch import save

    if len(source.tensors) != 1:
        raise ValueError(f"{source.name} holds {len(source.tensors)} tensors; an embedding file has one, [n, D]")
    [(name, tensor)] = source.tensors.items()
    if tensor.ndim == 1 and tensor.is_floating_point():
        tensor = tensor[None]
        report.notes.append("one embedding: stored as one row")
    if tensor.ndim != 2 or not tensor.is_floating_point() or not len(tensor):
        raise ValueError(
            f"{source.name}: expected embeddings [n, D] of a floating-point type, got {tuple(tensor.shape)} "
            f"{tensor.dtype}"
        )
    if not bool(torch.isfinite(tensor).all()) or bool((tensor == 0).all(dim=1).any()):
        raise ValueError(f"{source.name}: some embeddings are zero or not finite: the file is damaged")
    if source.model is not None:
        chosen = read_model(source.model)
        if chosen.config["embed_dim"] != tensor.shape[1]:
            raise ValueError(
                f"{source.name} has embeddings of {tensor.shape[1]} numbers, {chosen.name} makes "
                f"{chosen.config['embed_dim']}: they are of another architecture"
            )
    vocabulary = name_rows(source.names, len(tensor), source.name)
    report.model = f"{len(tensor)} embeddings of {tensor.shape[1]} numbers"
    report.take({name: "embeddings"})
    report.note_dtypes({"embeddings": tensor})
    description, weights = EMBEDDING_FILES
    folder.write_bytes(weights, save({"embeddings": tensor.contiguous()}, {"format": "pt"}))
    folder.write_json(description, {"names": list(vocabulary.names)}, indent=1)


_IMPORTERS: dict[str, Callable[[Source, Folder, ImportReport], None]] = {
    "detector": import_detector,
    "pretrained": import_pretrained,
    "rpn": import_rpn,
    "embeddings": import_embeddings,
    "clip": import_clip,
}
KINDS = tuple(_IMPORTERS)
"""What can be imported."""


def _check_books(report: ImportReport, tensors: Mapping[str, Any]) -> None:
    """Our own promise: no tensor of a file goes unmentioned."""
    told = {*report.matched, *report.renamed, *report.left_over}
    silent = sorted(name for name in tensors if name not in told)
    assert not silent, f"the import said nothing about {silent[:5]}"
