"""Import of CLIP models into CLIP folders: files in any layout of `clip_layouts`, and files of official pretraining.

A CLIP folder has open_clip's own file names, and open_clip opens it with `local-dir:`. The architecture of a CLIP
ResNet is read off the names and shapes of its weights, except for the activation of its text tower; other image towers
have to be named by the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from regionclip_core.config.architectures import model_config
from regionclip_core.models.clip import OPENAI_EXTRAS, build_clip, normalisation_note, usual_normalisation
from regionclip_core.models.official_keys import OFFLINE, STUDENT, TEACHER, is_constant, sections, split_clip
from regionclip_core.proposals.rpn_folder import official_section, write_rpn_folder
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS
from regionclip_core.weights.clip_layouts import HUGGING_FACE, to_open_clip
from regionclip_core.weights.import_options import read_model
from regionclip_core.weights.import_report import ImportReport, WeightFile
from regionclip_core.weights.rpn_files import convert_rpn

RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
_QUICK = "-quickgelu"
_SCALE = "logit_scale"


# ---------------------------------------------------------------- architectures


@dataclass(frozen=True)
class Architecture:
    """A CLIP architecture by name and by description."""

    name: str
    """open_clip's, or that of the description file."""
    config: dict[str, Any]
    """open_clip's `model_cfg`."""

    def describe(self) -> str:
        """Return name and numbers, for messages and reports."""
        return f"{self.name}: {_words(_measures(self.config, text=False))}"


def resnet_measures(state: Mapping[str, Tensor], text: bool, source: str) -> dict[str, Any]:
    """Return the numbers of an architecture, read off the shapes of a CLIP ResNet's weights.

    `text` adds the text tower's. Raises ValueError if weights are missing that the architecture is read from.
    """
    positions = len(_get(state, "visual.attnpool.positional_embedding", 2, source))
    measures: dict[str, Any] = {
        "blocks": [_blocks(state, rf"visual\.layer{stage}\.(\d+)\.", source) for stage in (1, 2, 3, 4)],
        "width": _get(state, "visual.layer1.0.conv1.weight", 4, source).shape[0],
        "input": 32 * math.isqrt(positions - 1),  # a stride of 32, and one position more for the mean
        "embedding": _get(state, "visual.attnpool.c_proj.weight", 2, source).shape[0],
    }
    if text:
        vocabulary, width = _get(state, "token_embedding.weight", 2, source).shape
        measures["text layers"] = _blocks(state, r"transformer\.resblocks\.(\d+)\.", source)
        measures["text width"] = width
        measures["text context_length"] = _get(state, "positional_embedding", 2, source).shape[0]
        measures["text vocab_size"] = vocabulary
    return measures


def _get(state: Mapping[str, Tensor], name: str, axes: int, source: str) -> Tensor:
    if name not in state:
        raise ValueError(f"{source}: {name} is missing, without which the architecture of the CLIP model is unknown")
    if state[name].ndim != axes or 0 in state[name].shape:
        raise ValueError(
            f"{source}: {name} has the shape {tuple(state[name].shape)}, expected {axes} axes and none of length 0: "
            "the file is damaged or no CLIP model; get it again"
        )
    return state[name]


def _blocks(state: Mapping[str, Tensor], pattern: str, source: str) -> int:
    numbers = sorted({int(found[1]) for name in state if (found := re.match(pattern, name))})
    if not numbers or numbers != list(range(len(numbers))):
        plain = pattern.replace("\\", "").removesuffix(".(d+).")
        raise ValueError(f"{source}: expected the blocks of {plain} from 0 on, got {numbers}: weights are missing")
    return len(numbers)


def resnet_architecture(
    state: Mapping[str, Tensor], model: str | None, text: bool, source: str, quick_gelu: bool | None
) -> Architecture:
    """Return the architecture of a file with a CLIP ResNet, checked against `model` where the user gives one.

    Args:
        state: weights by open_clip's names; text: whether the text tower is among them.
        model: an open_clip name, or a JSON file with open_clip's description of an architecture it has no name for.
        quick_gelu: the activation, where the file's origin shows it; None takes what `model` says.

    Raises:
        ValueError: `model` is another architecture, open_clip has none with these shapes, or the activation of the text
            tower is unknown.
    """
    found = resnet_measures(state, text, source)
    chosen = Architecture(*read_model(model)) if model else _named(found)
    if chosen is None:
        raise ValueError(
            f"{source}: no open_clip architecture has these shapes ({_words(found)}). Check that the "
            "file is whole, or give open_clip's description of the architecture: --model my_model.json"
        )
    if found != (wanted := _measures(chosen.config, text)):
        other = _named(found)
        raise ValueError(
            f"{source} is no {chosen.name}: its weights say {_words(found)}, {chosen.name} has {_words(wanted)}. "
            + (f"Use --model {other.name}" if other else "Check --model")
        )
    config = dict(chosen.config)
    if quick_gelu is not None:
        config.setdefault("quick_gelu", quick_gelu)
    elif model is None:
        raise ValueError(
            f"{source} has the shapes of {chosen.name}, but nothing in it says which activation its text tower "
            f"has: add --model {chosen.name}{_QUICK} (OpenAI's weights, and models trained with QuickGELU) or --model "
            f"{chosen.name} (trained with GELU)"
        )
    return Architecture(chosen.name.removesuffix(_QUICK), config)


def _named(measures: Mapping[str, Any]) -> Architecture | None:
    """Return open_clip's CLIP ResNet with these measures, if there is one."""
    for name in RESNETS:
        config = model_config(name)
        if _measures(config, "text width" in measures) == measures:
            return Architecture(name, config)
    return None


def _measures(config: Mapping[str, Any], text: bool) -> dict[str, Any]:
    """Return what `resnet_measures` would find in the weights of an architecture."""
    vision, words = config["vision_cfg"], config.get("text_cfg", {})
    layers = vision.get("layers", 12)
    measures: dict[str, Any] = {
        "blocks": list(layers) if isinstance(layers, (list, tuple)) else layers,
        "width": vision.get("width"),
        "input": vision.get("image_size"),
        "embedding": config["embed_dim"],
    }
    if text:
        measures |= {f"text {key}": words.get(key) for key in ("layers", "width", "context_length", "vocab_size")}
    return measures


def _words(measures: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in measures.items())


# ---------------------------------------------------------------- files into folders


def import_clip(file: WeightFile, folder: Folder, report: ImportReport) -> None:
    """Write a file by open_clip's names, or another layout's, into a CLIP folder.

    A ResNet's architecture is read off its shapes; other image towers need `--model`.

    Raises:
        ValueError: for what is unknown, contradictory or incomplete.
    """
    extras = OPENAI_EXTRAS & (file.tensors.keys() | file.others.keys())
    constants = {name for name in file.tensors if is_constant(name)}
    state = {name: tensor for name, tensor in file.tensors.items() if name not in extras | constants}
    if not any(name.startswith(("visual.", HUGGING_FACE)) for name in state):
        raise ValueError(
            f"{file.name} is no CLIP model: it has no visual.* and no vision_model.*, but "
            f"{sections(file.tensors)}. Leave --kind out to have the file recognised"
        )
    if "visual.attnpool.positional_embedding" in state or "visual.layer1.0.conv1.weight" in state:
        architecture = resnet_architecture(state, file.model, True, file.name, True if extras else None)
    elif file.model is None:
        raise ValueError(
            f"{file.name}: only a CLIP ResNet's architecture can be read off its weights, and this image tower is "
            "none: say which it is, such as --model ViT-B-32-quickgelu for OpenAI's ViT-B/32, or "
            "EVA02-B-16"
        )
    else:
        architecture = Architecture(*read_model(file.model))
        if extras:
            architecture.config.setdefault("quick_gelu", True)
    report.leave(sorted(constants), "a constant")
    report.leave(sorted(extras), "a number that the architecture has too")
    report.model = architecture.describe()
    found = to_open_clip(state, architecture.name, architecture.config, file.name)
    report.take(found.renamed)
    report.left_over |= found.left
    report.added |= found.added
    report.notes += [found.note] if found.note else []
    write_clip(folder, found.own, architecture, file, report)


def import_pretrained(file: WeightFile, folder: Folder, report: ImportReport) -> None:
    """Write an official pretraining file into `student/` and, as far as it holds them, `teacher/` and `rpn/`.

    Student and teacher (CLIP folders) share the text encoder.

    Raises:
        ValueError: student or text encoder is missing or incomplete, or the proposal branch is incomplete.
    """
    tensors = file.tensors
    student = split_clip(tensors, STUDENT if any(name.startswith(STUDENT) for name in tensors) else "visual.")
    if "visual.conv1.weight" not in student.own:
        raise ValueError(f"{file.name} holds no student: expected backbone.* or visual.*, got {sections(tensors)}")
    if "text_projection" not in student.own:
        raise ValueError(
            f"{file.name} holds an image encoder without the text encoder that belongs to it (lang_encoder.*): it "
            "can't embed names. Take the file that has both"
        )
    architecture = resnet_architecture(student.own, file.model, True, file.name, True)
    report.model = architecture.describe()
    report.take(student.renamed, "student/")
    write_clip(folder.child("student"), student.own, architecture, file, report, "student/")

    of_teacher = {name for name in tensors if name.startswith(TEACHER)}
    if of_teacher:
        text = {name: tensor for name, tensor in student.own.items() if not name.startswith("visual.")}
        shared = {official for official, own in student.renamed.items() if own in text}
        teacher = split_clip({name: tensors[name] for name in tensors if name in of_teacher | shared}, TEACHER)
        where = f"{file.name}, {TEACHER}*"
        found = resnet_measures(teacher.own, False, where)
        if found["embedding"] != text["text_projection"].shape[1]:
            report.leave(
                sorted(of_teacher),
                f"the teacher's embeddings have {found['embedding']} numbers, and the only text encoder in the file "
                f"makes {text['text_projection'].shape[1]}: give teacher.weights OpenAI's model of that architecture",
            )
        else:
            # `--model` is the student's; it names the teacher too where both have the same image tower.
            model = file.model if found == _measures(architecture.config, text=False) else None
            like = resnet_architecture(teacher.own, model, True, where, True)
            report.take(teacher.renamed, "teacher/")
            write_clip(folder.child("teacher"), teacher.own, like, file, report, "teacher/")
            report.leave(sorted(of_teacher & teacher.rest.keys()), "belongs to no part of the teacher")
    else:
        report.missing["teacher"] = "no teacher/ is written; give teacher.weights OpenAI's model"

    branch = {name: tensor for name, tensor in tensors.items() if name.startswith(OFFLINE)}
    if branch:
        network = convert_rpn(branch, file, report, "rpn/")
        write_rpn_folder(folder.child("rpn"), network.state, official_section(network.backbone))
    else:
        report.missing["proposal branch"] = "no rpn/ is written; give rpn.weights another file"
    rest = student.rest.keys() - of_teacher - branch.keys()
    report.leave(sorted(rest), "belongs to neither student nor teacher")


def write_clip(
    folder: Folder,
    state: Mapping[str, Tensor],
    architecture: Architecture,
    file: WeightFile,
    report: ImportReport,
    place: str = "",
) -> None:
    """Check a CLIP model's weights against its architecture and write a CLIP folder; tensors keep their dtype.

    `state` is by open_clip's names. Official text encoders have no `logit_scale`: it becomes ln 100, CLIP's ceiling,
    where OpenAI's models ended, which is the official temperature of 0.01. `place` is the folder's name in the report.

    Raises:
        ValueError: the weights are not those of the architecture.
    """
    state = dict(state)
    if _SCALE not in state:
        state[_SCALE] = torch.tensor(math.log(100.0))
        report.added[f"{place}{_SCALE}"] = "ln 100, for the official temperature of 0.01"
    for name in (_SCALE, "logit_bias"):
        if name in state and state[name].shape == (1,):
            state[name] = state[name].reshape(())  # Hugging Face and some versions of open_clip stored a vector of one
            report.notes.append(f"{place}{name}: stored as a scalar, was a vector of one")
    with torch.device("meta"):  # names and shapes only
        expected = build_clip(architecture.config, architecture.name, 0).model.state_dict()
    file.check_fit(expected, state, f"CLIP model ({architecture.name})")
    report.note_dtypes({f"{place}{name}": tensor for name, tensor in state.items()})
    config_file, weights_file = CLIP_LAYOUTS[0]
    folder.write_bytes(weights_file, save({name: t.contiguous() for name, t in state.items()}, {"format": "pt"}))
    mean, std = usual_normalisation(architecture.name)
    from_openai = OPENAI_EXTRAS & (file.tensors.keys() | file.others.keys())
    if not from_openai and (note := normalisation_note(architecture.name, place or "this folder")):
        report.notes.append(note)
    preprocess = {"size": architecture.config["vision_cfg"]["image_size"], "mean": list(mean), "std": list(std)}
    config = {"name": architecture.name, "model_cfg": architecture.config, "preprocess_cfg": preprocess}
    folder.write_json(config_file, config, indent=1)
