"""CLIP models into CLIP folders: OpenAI's and open_clip's files, and the student and teacher of official pretraining.

A CLIP folder has open_clip's own names of files, and open_clip opens it with `local-dir:`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from regionclip_core.models.clip import OPENAI_EXTRAS, build_clip, normalisation_note, usual_normalisation
from regionclip_core.models.official_keys import OFFLINE, STUDENT, TEACHER, Split, is_constant, sections, split_clip
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS
from regionclip_core.weights.clip_shapes import Architecture, is_resnet, read_model, resnet_architecture, resnet_config
from regionclip_core.weights.import_report import ImportReport
from regionclip_core.weights.import_rpn import import_offline_branch
from regionclip_core.weights.import_source import Source, check_fit, leave_over

_SCALE = "logit_scale"


def import_clip(source: Source, folder: Folder, report: ImportReport) -> None:
    """A file by open_clip's names into a CLIP folder.

    A ResNet's architecture is read off its shapes; other image towers need `--model`. ValueError for what is unknown,
    contradictory or incomplete.
    """
    extras = OPENAI_EXTRAS & (source.tensors.keys() | source.others.keys())
    constants = {name for name in source.tensors if is_constant(name)}
    state = {name: tensor for name, tensor in source.tensors.items() if name not in extras | constants}
    if not any(name.startswith("visual.") for name in state):
        raise ValueError(
            f"{source.name} is no CLIP model: it has no visual.*, but {sections(source.tensors)}. Leave --kind out to "
            "have the file recognised"
        )
    if is_resnet(state):
        architecture = resnet_architecture(state, source.model, True, source.name, True if extras else None)
    elif source.model is None:
        raise ValueError(
            f"{source.name}: only a CLIP ResNet's architecture can be told by its weights, and this image tower is "
            "none: say which it is, such as --model ViT-B-32-quickgelu for OpenAI's ViT-B/32"
        )
    else:
        architecture = read_model(source.model)
        if extras:
            architecture.config.setdefault("quick_gelu", True)
    leave_over(report, sorted(constants), "a constant")
    leave_over(report, sorted(extras), "a number that the architecture tells too")
    report.model = architecture.describe()
    report.take({name: name for name in state})
    write_clip(folder, state, architecture, source, report)


def import_pretrained(source: Source, folder: Folder, report: ImportReport) -> None:
    """An official pretraining file: `student/` and `teacher/` (CLIP folders) and `rpn/`, whichever it holds.

    Student and teacher share the text encoder. ValueError if student or text encoder is missing or incomplete, or the
    proposal branch is.
    """
    tensors = source.tensors
    prefix = STUDENT if any(name.startswith(STUDENT) for name in tensors) else "visual."
    student = split_clip(tensors, prefix)
    if "visual.conv1.weight" not in student.own:
        raise ValueError(f"{source.name} holds no student: expected backbone.* or visual.*, got {sections(tensors)}")
    if "text_projection" not in student.own:
        raise ValueError(
            f"{source.name} holds an image encoder without the text encoder that belongs to it (lang_encoder.*): it "
            "can't embed names. Take the file that has both"
        )
    architecture = resnet_architecture(student.own, source.model, True, source.name, True)
    report.model = architecture.describe()
    report.take(student.renamed, "student/")
    write_clip(folder.child("student"), student.own, architecture, source, report, "student/")
    rest = set(student.rest)
    rest -= _import_teacher(source, folder, report, student, architecture)
    offline = {name for name in rest if name.startswith(OFFLINE)}
    if offline:
        import_offline_branch({name: tensors[name] for name in offline}, folder.child("rpn"), source, report, "rpn/")
    else:
        report.missing["proposal branch"] = "no rpn/ is written; give rpn.weights another file"
    leave_over(report, sorted(rest - offline), "belongs to neither student nor teacher")


def _import_teacher(
    source: Source, folder: Folder, report: ImportReport, student: Split, like: Architecture
) -> set[str]:
    """Write `teacher/` if the file has one; returns the names that are thereby accounted for."""
    named = {name for name in source.tensors if name.startswith(TEACHER)}
    if not named:
        report.missing["teacher"] = "no teacher/ is written; give teacher.weights OpenAI's model"
        return set()
    text = {name: tensor for name, tensor in student.own.items() if not name.startswith("visual.")}
    shared = {official for official, own in student.renamed.items() if own in text}
    teacher = split_clip({name: source.tensors[name] for name in source.tensors if name in named | shared}, TEACHER)
    width = resnet_config(teacher.own, False, f"{source.name}, {TEACHER}*")["embed_dim"]
    if width != text["text_projection"].shape[1]:
        leave_over(
            report,
            sorted(named),
            f"the teacher's embeddings have {width} numbers, and the only text encoder in the file makes "
            f"{text['text_projection'].shape[1]}: give teacher.weights OpenAI's model of that architecture",
        )
        return named
    model = source.model if resnet_config(teacher.own, True, "")["vision_cfg"] == like.config["vision_cfg"] else None
    architecture = resnet_architecture(teacher.own, model, True, f"{source.name}, {TEACHER}*", True)
    report.take(teacher.renamed, "teacher/")
    write_clip(folder.child("teacher"), teacher.own, architecture, source, report, "teacher/")
    leave_over(report, sorted(n for n in teacher.rest if n in named), "belongs to no part of the teacher")
    return named


def write_clip(
    folder: Folder,
    state: Mapping[str, Tensor],
    architecture: Architecture,
    source: Source,
    report: ImportReport,
    place: str = "",
) -> None:
    """Check a CLIP model's weights against its architecture and write a CLIP folder; tensors keep their dtype.

    `state` is by open_clip's names. Official text encoders have no `logit_scale`: it becomes ln 100, CLIP's ceiling,
    where OpenAI's models ended, and which stands for the official temperature of 0.01. `place` is the folder's name in
    the report.
    """
    from safetensors.torch import save

    state = dict(state)
    if _SCALE not in state:
        state[_SCALE] = torch.tensor(math.log(100.0))
        report.added[f"{place}{_SCALE}"] = "ln 100, for the official temperature of 0.01"
    elif state[_SCALE].shape == (1,):
        state[_SCALE] = state[_SCALE].reshape(())  # some versions of open_clip stored a vector of one
        report.notes.append(f"{place}{_SCALE}: stored as a scalar, was a vector of one")
    with torch.device("meta"):  # names and shapes only
        expected = build_clip(architecture.config, architecture.name, 0).model.state_dict()
    check_fit(expected, state, f"CLIP model ({architecture.name})", source)
    report.note_dtypes({f"{place}{name}": tensor for name, tensor in state.items()})
    config_file, weights_file = CLIP_LAYOUTS[0]
    folder.write_bytes(weights_file, save({name: t.contiguous() for name, t in state.items()}, {"format": "pt"}))
    mean, std = usual_normalisation(architecture.name)
    from_openai = OPENAI_EXTRAS & (source.tensors.keys() | source.others.keys())
    if not from_openai and (note := normalisation_note(architecture.name, place or "this folder")):
        report.notes.append(note)
    preprocess = {"size": architecture.config["vision_cfg"]["image_size"], "mean": list(mean), "std": list(std)}
    config = {"name": architecture.name, "model_cfg": architecture.config, "preprocess_cfg": preprocess}
    folder.write_json(config_file, config, indent=1)
