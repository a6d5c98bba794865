"""Import of published weights into our folders: a file is checked and imported whole, or nothing is written.

`import_checkpoint` reads a file (never running anything in it), recognises it by the names of its tensors, checks and
converts it, and writes a folder with import.json, which says what became of every tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from regionclip_core.models.checkpoint_files import BARE_TENSOR, read_checkpoint
from regionclip_core.models.official_keys import STUDENT, TEACHER, TRAIN_EMBEDDINGS, sections
from regionclip_core.storage.folder import Folder, file_sha256, whole_or_nothing
from regionclip_core.storage.given_files import EMBEDDING_FILES
from regionclip_core.weights.clip_files import import_clip, import_pretrained
from regionclip_core.weights.clip_layouts import HUGGING_FACE
from regionclip_core.weights.detector_files import import_detector
from regionclip_core.weights.import_options import check_options, read_model
from regionclip_core.weights.import_report import ImportReport, WeightFile
from regionclip_core.weights.row_names import name_rows
from regionclip_core.weights.rpn_files import import_rpn

REPORT = "import.json"
_RPN_HEADS = ("proposal_generator.rpn_head.", "offline_proposal_generator.rpn_head.", "rpn.head.")


def import_checkpoint(
    file: str, out: str, names: str | None = None, model: str | None = None, kind: str | None = None
) -> ImportReport:
    """Import `file` into the new folder `out`, and return what was done.

    Args:
        file: published RegionCLIP weights (pretraining, detector, proposal network, embeddings), a CLIP
            model by OpenAI's, open_clip's, Hugging Face's, EVA's or Perception Encoder's names, or a torchvision
            detector with its proposal network.
        out: must not exist, or be empty.
        names: the names behind a classifier's or an embedding file's rows; see `row_names.name_rows`.
        model: the architecture, by open_clip's name or a JSON file of open_clip's, where it can't be read off the file,
            or to have it checked.
        kind: one of `import_options.KINDS`, instead of recognising it by the names in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, unknown, incomplete, or does not fit what the user says. Nothing is written then.
    """
    target = check_options(file, out, names, model, kind)
    path = Path(file)
    checkpoint = read_checkpoint(path)
    kind = kind or recognise(checkpoint.tensors, path.name)
    if names is not None and kind not in ("detector", "embeddings"):
        raise ValueError(f"{path.name} is imported as {kind}, whose rows have no names; leave --names out")
    report = ImportReport(path.name, file_sha256(path), path.stat().st_size, checkpoint.layout, kind)
    report.leave(sorted(checkpoint.others), "no tensor")
    report.leave(sorted(checkpoint.beside), "not part of the model")
    report.notes += ["--model is not used: a proposal network has no such architecture"] * bool(model and kind == "rpn")
    given = WeightFile(path.name, checkpoint.tensors, checkpoint.others, names, model)
    with whole_or_nothing(target) as folder:
        _IMPORTERS[kind](given, folder, report)
        silent = checkpoint.tensors.keys() - {*report.matched, *report.renamed, *report.left_over}
        assert not silent, f"the import reported nothing about {sorted(silent)[:5]}"
        folder.write_json(REPORT, {"format": 1, **asdict(report)}, indent=1)
    return report


def recognise(tensors: Mapping[str, Tensor], name: str) -> str:
    """Return which of `import_options.KINDS` a file is, by its tensors' names.

    Names that other projects' models have too are not enough: an image tower needs its text tower beside it, a ResNet
    CLIP's attention pool, and embeddings are a file of one tensor without a name, or with that one.

    Raises:
        ValueError: it is none of them; the message says what is in it.
    """

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in tensors)

    if tensors.keys() in ({BARE_TENSOR}, {"embeddings"}) and all(tensor.ndim in (1, 2) for tensor in tensors.values()):
        return "embeddings"
    if has(f"{STUDENT}attnpool.") and TRAIN_EMBEDDINGS in tensors:
        return "detector"
    if has(f"{STUDENT}attnpool.", f"{TEACHER}attnpool."):
        return "pretrained"
    if (has("visual.") and has("token_embedding.", "text.")) or (has(HUGGING_FACE) and has("text_model.")):
        return "clip"
    if has(*_RPN_HEADS):
        return "rpn"
    if has("detector."):
        raise ValueError(f"{name} is of a folder that `import` or `export` made; `detect --model` takes that folder")
    raise ValueError(
        f"{name} holds no model that is known here. Its tensors, by the first part of their names: "
        f"{sections(tensors)}. Expected are RegionCLIP's files (backbone with attnpool, lang_encoder, roi_heads, "
        "proposal_generator, or one tensor of embeddings without a name), CLIP models (visual, and a text tower beside "
        "it; or vision_model and text_model) and torchvision's detectors (backbone.body, rpn). If you know that it is "
        "one of them, say which by --kind"
    )


def import_embeddings(file: WeightFile, folder: Folder, report: ImportReport) -> None:
    """Write a file with one tensor [n, D] of text embeddings into an embeddings folder; they keep norm and dtype.

    A file of a single concept is one row.

    Raises:
        ValueError: it is no such tensor, or the names or the width don't fit.
    """
    if len(file.tensors) != 1:
        raise ValueError(f"{file.name} holds {len(file.tensors)} tensors; an embedding file has one, [n, D]")
    [(name, tensor)] = file.tensors.items()
    if tensor.ndim == 1 and tensor.is_floating_point():
        tensor = tensor[None]
        report.notes.append("one embedding: stored as one row")
    if tensor.ndim != 2 or not tensor.is_floating_point() or not len(tensor):
        raise ValueError(
            f"{file.name}: expected embeddings [n, D] of a floating-point type, got {tuple(tensor.shape)} "
            f"{tensor.dtype}"
        )
    if not bool(torch.isfinite(tensor).all()) or bool((tensor == 0).all(dim=1).any()):
        raise ValueError(f"{file.name}: some embeddings are zero or not finite: the file is damaged")
    if file.model is not None:
        model, config = read_model(file.model)
        if config["embed_dim"] != tensor.shape[1]:
            raise ValueError(
                f"{file.name} has embeddings of {tensor.shape[1]} numbers, {model} makes {config['embed_dim']}: they "
                "are of another architecture"
            )
    vocabulary = name_rows(file.names, len(tensor), file.name)
    report.model = f"{len(tensor)} embeddings of {tensor.shape[1]} numbers"
    report.take({name: "embeddings"})
    report.note_dtypes({"embeddings": tensor})
    description, weights = EMBEDDING_FILES
    folder.write_bytes(weights, save({"embeddings": tensor.contiguous()}, {"format": "pt"}))
    folder.write_json(description, {"names": list(vocabulary.names)}, indent=1)


_IMPORTERS: dict[str, Callable[[WeightFile, Folder, ImportReport], None]] = {
    "detector": import_detector,
    "pretrained": import_pretrained,
    "rpn": import_rpn,
    "embeddings": import_embeddings,
    "clip": import_clip,
}
