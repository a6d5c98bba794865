"""Files of weights, prompts and embeddings that a config names, for the stages that use them as they are.

Nothing heavy is imported here: the planner needs the files for their digests.
"""

from __future__ import annotations

import os
import posixpath
from typing import Any, Literal

from regionclip_core.config.tree import TeacherConfig
from regionclip_core.storage.folder import Folder

ClipPart = Literal["teacher", "student"]
"""Which of the two CLIP models of an imported pretraining file is meant."""

CLIP_LAYOUTS = (
    ("open_clip_config.json", "open_clip_model.safetensors"),
    ("clip.json", "clip.safetensors"),
)
"""Description and weights of a CLIP folder: open_clip's names, and those of our artifacts."""
DETECTOR_FILES = ("config.json", "model.safetensors", "vocabulary.json")
MODEL_TYPE = "regionclip"
"""`model_type` in the first of them."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files of a Hugging Face tokenizer, such as that of SigLIP; a folder without the first one has no tokenizer."""
EMBEDDING_FILES = ("embeddings.json", "embeddings.safetensors")


def clip_folder(where: str, part: ClipPart) -> Folder:
    """Return the CLIP folder at a path or fsspec URL: itself, or the wanted part of an imported pretraining file.

    Whether it holds a CLIP model is not checked.
    """
    folder = Folder(where)
    inner = folder.child(part)
    return inner if clip_layout(inner) else folder


def clip_files(where: str, part: ClipPart) -> list[str]:
    """Return the files whose content is the CLIP model at `where`; `where` itself if it is a file or not there.

    A tokenizer beside the weights is one of them, as it is used before any other. Raises FileNotFoundError for a folder
    on this machine without a CLIP model.
    """
    folder = clip_folder(where, part)
    model = [folder.path(name) for name in clip_layout(folder)]
    if not model and os.path.isdir(where):
        raise FileNotFoundError(
            f"{where} holds no CLIP model; expected a CLIP folder (open_clip_config.json, or an artifact's clip.json), "
            f"or one from `regionclip import` with a {part}/ in it"
        )
    beside = folder if model else Folder(posixpath.dirname(where) or ".")
    tokenizer = [beside.path(name) for name in TOKENIZER_FILES if beside.exists(name)]
    return (model or [where]) + tokenizer


def is_model_folder(folder: Folder) -> bool:
    """Return whether a detector folder is there (its files are not checked)."""
    if not folder.exists(DETECTOR_FILES[0]):
        return False
    config = folder.read_json(DETECTOR_FILES[0])
    return isinstance(config, dict) and config.get("model_type") == MODEL_TYPE


def holds_detector(where: str) -> bool:
    """Return whether a model is a detector folder, or else a CLIP model. ValueError if there is none."""
    if is_model_folder(Folder(where)):
        return True
    clip = clip_folder(where, "student")
    layout = clip_layout(clip)
    if not layout or "model_cfg" not in clip.read_json(layout[0]):  # `finetune` calls a detector `clip` too
        raise ValueError(
            f"{where}: no model there. Expected a detector folder (config.json), a CLIP folder "
            "(open_clip_config.json) or one with student/, as `regionclip import` and `regionclip export` make them. "
            "For the models of a run give --workspace and --name instead of --model"
        )
    return False


def detector_files(where: str) -> list[str]:
    """Return the files whose content is the detector in the folder `where`; the first of them if it is not there."""
    folder = Folder(where)
    return [folder.path(name) for name in (DETECTOR_FILES if folder.exists(DETECTOR_FILES[0]) else DETECTOR_FILES[:1])]


def rpn_files(where: str) -> list[str]:
    """Return the files behind `rpn.weights`: of an RPN folder, alone or in a pretrained folder, or the file itself.
    Raises FileNotFoundError for another folder."""
    folder = Folder(where)
    for inside in (folder, folder.child("rpn")):
        if inside.exists("rpn.json"):
            return [inside.path("rpn.json"), inside.path("rpn.safetensors")]
    if os.path.isdir(where):
        raise FileNotFoundError(
            f"{where} holds no rpn.json; expected a folder that `regionclip import` made, or a file of weights"
        )
    return [where]


def clip_layout(folder: Folder) -> tuple[str, ...]:
    """Return the names of description and weights in a CLIP folder; empty if it is none."""
    for names in CLIP_LAYOUTS:
        if folder.exists(names[0]):
            return names
    return ()


def text_settings(teacher: TeacherConfig) -> dict[str, Any]:
    """Return the part of the teacher section that decides the embeddings of names, for a stage's settings."""
    return teacher.model_dump(mode="json", include={"prompts", "normalize_prompts", "embeddings"})


def text_files(teacher: TeacherConfig) -> list[str]:
    """Return the external files that decide the embeddings of names, for a stage's raw inputs."""
    prompts = [] if teacher.prompts in ("single", "short", "clip81") else [teacher.prompts]
    return prompts + [Folder(where).path(name) for where in teacher.embeddings for name in EMBEDDING_FILES]
