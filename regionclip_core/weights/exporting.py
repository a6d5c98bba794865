"""Export of models for other programs: open_clip, Hugging Face's repository layout, the official code.

An official file that `regionclip import` has read is written back with the same names, shapes, types and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import ModelCard
from torch import Tensor

from regionclip_core.config.architectures import tower_of
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.model_folder import CARD, TEXT, VOCABULARY, read_config
from regionclip_core.detection.model_folder import WEIGHTS as DETECTOR_WEIGHTS
from regionclip_core.models.checkpoint_files import read_safetensors
from regionclip_core.models.clip import ClipModel, save_clip
from regionclip_core.models.official_keys import (
    BACKGROUND,
    STUDENT,
    TEACHER,
    TEST_EMBEDDINGS,
    TRAIN_EMBEDDINGS,
    clip_to_official,
    detector_to_official,
)
from regionclip_core.models.text_embeddings import NamePrompts, write_prompts
from regionclip_core.proposals.rpn_folder import DESCRIPTION, WEIGHTS
from regionclip_core.proposals.rpn_weights import OFFICIAL_BACKBONES
from regionclip_core.proposals.rpn_weights import to_official as rpn_to_official
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS, clip_layout, is_model_folder

# ---------------------------------------------------------------- our folders


def export_open_clip(
    folder: Folder, clip: ClipModel, card: ModelCard, prompts: NamePrompts | None, drawings_only: bool = False
) -> None:
    """Write a folder that open_clip opens with `local-dir:`: its configuration, weights, a card, our prompts.

    `drawings_only`: whether the model was trained on the embedded world alone, which the configuration then says.
    """
    save_clip(clip, folder, layout=CLIP_LAYOUTS[0])
    description = folder.read_json(CLIP_LAYOUTS[0][0])
    description["preprocess_cfg"] |= usual_resizing(clip.name)
    if drawings_only:
        description["trained_on"] = "drawings"
    folder.write_json(CLIP_LAYOUTS[0][0], description, indent=1)
    if prompts is not None:
        write_prompts(folder, prompts)
    folder.write_bytes(CARD, str(card).encode())


def usual_resizing(name: str) -> dict[str, str]:
    """Return how open_clip resizes images for an architecture, where its published weights agree.

    SigLIP's images, for one, are squashed to a square and not cropped.
    """
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    found = {key: {tag.get(key) for tag in tags} for key in ("interpolation", "resize_mode")}
    return {key: values.pop() for key, values in found.items() if len(values) == 1 and None not in values}


# ---------------------------------------------------------------- official files


def save_official(folder: Folder, file: Path) -> int:
    """Write `{"model": {...}}` under the official names into `file` by torch.save; return the number of tensors.

    Raises:
        ValueError: as `to_official`, with nothing written.
    """
    try:
        official = to_official(folder)
    except ValueError as error:
        raise ValueError(f"{file} is not written: {error}") from error
    with Folder(str(file.parent)).write(file.name) as stream:
        torch.save({"model": official}, stream)
    return len(official)


def to_official(folder: Folder) -> dict[str, Tensor]:
    """Return a folder's weights under the official names.

    Takes a detector folder, a pretrained folder (`student/`, `teacher/`, `rpn/`), a CLIP folder (it becomes the
    student) or an RPN folder (a proposal checkpoint of its own).

    Raises:
        ValueError: the official code can't load it: other image towers than CLIP ResNets, GELU, a learnable background,
            the small proposal network. Says all that is in the way, and what to do.
    """
    if is_model_folder(folder):
        config, tensors = read_config(folder), read_safetensors(folder, DETECTOR_WEIGHTS)
        _check_detector(config, folder.child(TEXT))
        official = detector_to_official(tensors)
        if TRAIN_EMBEDDINGS not in official:
            # A detector that was trained here has no official classifier: its rows are normalised, as used.
            vocabulary = Vocabulary.from_json(folder.read_json(VOCABULARY))
            embeddings = tensors["detector.class_embeddings"]
            official |= {TRAIN_EMBEDDINGS: embeddings, BACKGROUND: torch.zeros(1, embeddings.shape[1])}
            if 0 < len(vocabulary.base) < len(vocabulary):
                official |= {TRAIN_EMBEDDINGS: embeddings[vocabulary.base_ids], TEST_EMBEDDINGS: embeddings}
        if config["rpn"] is not None:
            branch = {name.removeprefix("rpn."): t for name, t in tensors.items() if name.startswith("rpn.")}
            official |= rpn_to_official(branch, offline=True)
        if folder.exists(TEXT):
            text = _clip(folder.child(TEXT), STUDENT, text=True)
            official |= {name: tensor for name, tensor in text.items() if not name.startswith(STUDENT)}
        return official
    if folder.exists(DESCRIPTION):
        return rpn_to_official(read_safetensors(folder, WEIGHTS), offline=False)
    parts = {name: folder.child(name) for name in ("student", "teacher", "rpn")}
    if clip_layout(parts["student"]):
        official = _clip(parts["student"], STUDENT, text=True)
        if clip_layout(parts["teacher"]):
            official |= _clip(parts["teacher"], TEACHER, text=False)
        if parts["rpn"].exists(DESCRIPTION):
            official |= rpn_to_official(read_safetensors(parts["rpn"], WEIGHTS), offline=True)
        return official
    if clip_layout(folder):
        return _clip(folder, STUDENT, text=True)
    raise ValueError(
        f"{folder.url} holds no model: expected a detector folder, a CLIP folder, an RPN folder, or one with student/, "
        "as `regionclip import` and `regionclip export` make them"
    )


def _check_detector(config: Mapping[str, Any], text: Folder) -> None:
    """Raise ValueError with everything in a detector folder that the official code has no place for."""
    tower, backbone = tower_of(config["clip_architecture"]).kind, (config["rpn"] or {}).get("backbone")
    layout, background = clip_layout(text), config["background"]
    # Nothing can replace a learnt background: the official classifier is cosines without a bias, and no embedding but
    # that of zeros gives every region the same background logit.
    there = {
        f"{tower} as image tower (only CLIP ResNets)": tower != "resnet",
        f"{background} background (only finetune.background: zero)": background != "zero",
        f"rpn.backbone {backbone} (only {', '.join(OFFICIAL_BACKBONES)})": backbone not in (None, *OFFICIAL_BACKBONES),
        "text encoder with GELU (only QuickGELU)": layout
        and not text.read_json(layout[0])["model_cfg"].get("quick_gelu"),
    }
    if any(there.values()):
        raise ValueError(
            f"the official code has no place for this detector's {'; '.join(part for part in there if there[part])}. "
            "Export it without --format official: `detect --model` and regionclip_core.load read its folder. Or train "
            "one that fits, as the presets coco_* and lvis_* do; where the background is all, `regionclip run finetune "
            "--set finetune.background=zero` is enough, with the same --set in `export`"
        )


def _clip(folder: Folder, visual: str, text: bool) -> dict[str, Tensor]:
    config_file, weights_file = clip_layout(folder)
    architecture = folder.read_json(config_file)["model_cfg"]
    _check_tower(architecture)
    if text and not architecture.get("quick_gelu", False):
        raise ValueError(
            "the text encoder has GELU, and the official code's has QuickGELU: it would embed names differently there"
        )
    return clip_to_official(read_safetensors(folder, weights_file), visual, text)


def _check_tower(architecture: dict[str, object]) -> None:
    kind = tower_of(architecture).kind
    if kind != "resnet":
        raise ValueError(f"the official code has only CLIP ResNets, and this image tower is a {kind}")
