"""Our folders back to one file under the official names, for the official code.

What `regionclip import` made of an official file goes back bit by bit: names, shapes, types and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regionclip_core.config.architectures import tower_of
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.model_folder import TEXT, VOCABULARY, is_model_folder, read_config
from regionclip_core.detection.model_folder import WEIGHTS as DETECTOR_WEIGHTS
from regionclip_core.models.checkpoint_files import read_safetensors
from regionclip_core.models.official_keys import (
    BACKGROUND,
    STUDENT,
    TEACHER,
    TEST_EMBEDDINGS,
    TRAIN_EMBEDDINGS,
    clip_to_official,
    detector_to_official,
)
from regionclip_core.proposals.rpn_folder import DESCRIPTION, WEIGHTS
from regionclip_core.proposals.rpn_weights import to_official as rpn_to_official
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS
from regionclip_core.storage.local_files import TEMPORARY


def to_official(folder: Folder) -> dict[str, Tensor]:
    """A folder's weights under the official names.

    Takes a detector folder, a pretrained folder (`student/`, `teacher/`, `rpn/`), a CLIP folder (it becomes the
    student) or an RPN folder (a proposal checkpoint of its own). ValueError for what the official code has no place
    for: other image towers than CLIP ResNets, GELU, a learnable background, the small proposal network.
    """
    if is_model_folder(folder):
        return _detector(folder)
    if folder.exists(DESCRIPTION):
        return rpn_to_official(read_safetensors(folder, WEIGHTS), offline=False)
    student = folder.child("student")
    if _clip_layout(student):
        official = _clip(student, STUDENT, text=True)
        if _clip_layout(folder.child("teacher")):
            official |= _clip(folder.child("teacher"), TEACHER, text=False)
        if folder.child("rpn").exists(DESCRIPTION):
            official |= rpn_to_official(read_safetensors(folder.child("rpn"), WEIGHTS), offline=True)
        return official
    if _clip_layout(folder):
        return _clip(folder, STUDENT, text=True)
    raise ValueError(
        f"{folder.url} holds no model: expected a detector folder, a CLIP folder, an RPN folder, or one with student/, "
        "as `regionclip import` and `regionclip export` make them"
    )


def save_official(folder: Folder, file: Path) -> int:
    """Write `{"model": {...}}` under the official names into `file` by torch.save; returns the number of tensors.

    Raises as `to_official`, with nothing written.
    """
    official = to_official(folder)
    partial = file.with_name(f"{TEMPORARY}{file.name}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save({"model": official}, partial)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return len(official)


def _detector(folder: Folder) -> dict[str, Tensor]:
    config, tensors = read_config(folder), read_safetensors(folder, DETECTOR_WEIGHTS)
    _check_tower(config["clip_architecture"], folder)
    if config["background"] != "zero":
        raise ValueError(
            f"{folder.url}: its background is {config['background']}, and the official code has only the zero "
            "embedding (finetune.background: zero)"
        )
    official = detector_to_official(tensors)
    if TRAIN_EMBEDDINGS not in official:
        official |= _classifier(tensors["detector.class_embeddings"], folder)
    if config["rpn"] is not None:
        branch = {name.removeprefix("rpn."): t for name, t in tensors.items() if name.startswith("rpn.")}
        official |= rpn_to_official(branch, offline=True)
    if folder.exists(TEXT):
        text = _clip(folder.child(TEXT), STUDENT, text=True)
        official |= {name: tensor for name, tensor in text.items() if not name.startswith(STUDENT)}
    return official


def _classifier(embeddings: Tensor, folder: Folder) -> dict[str, Tensor]:
    """The official classifier of a detector that was trained here: its rows are normalised, as used."""
    vocabulary = Vocabulary.from_json(folder.read_json(VOCABULARY))
    classifier = {TRAIN_EMBEDDINGS: embeddings, BACKGROUND: torch.zeros(1, embeddings.shape[1])}
    if 0 < len(vocabulary.base) < len(vocabulary):
        classifier[TRAIN_EMBEDDINGS] = embeddings[vocabulary.base_ids]
        classifier[TEST_EMBEDDINGS] = embeddings
    return classifier


def _clip(folder: Folder, visual: str, text: bool) -> dict[str, Tensor]:
    config_file, weights_file = _clip_layout(folder)
    architecture = folder.read_json(config_file)["model_cfg"]
    _check_tower(architecture, folder)
    if text and not architecture.get("quick_gelu", False):
        raise ValueError(
            f"{folder.url}: its text encoder has GELU, and the official code's has QuickGELU: it would embed names "
            "otherwise there"
        )
    return clip_to_official(read_safetensors(folder, weights_file), visual, text)


def _check_tower(architecture: Mapping[str, Any], folder: Folder) -> None:
    kind = tower_of(architecture).kind
    if kind != "resnet":
        raise ValueError(f"{folder.url}: the official code has CLIP ResNets alone, and this image tower is a {kind}")


def _clip_layout(folder: Folder) -> tuple[str, ...]:
    return next((files for files in CLIP_LAYOUTS if folder.exists(files[0])), ())
