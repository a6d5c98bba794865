"""Official detectors into detector folders.

K names of the classifier in use, D embedding. The official classifier is one or two matrices of text embeddings, of
any norm: `cls_score` [K_train, D] of training and, where it is tested on other names, `test_cls_score` [K, D]. Our
detector classifies into the latter, normalised; the former and the raw ones are kept under `official.*`, so that
nothing is lost on the way back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import TEXT as TEXT_FOLDER
from regionclip_core.detection.model_folder import model_config, write_model
from regionclip_core.detection.region_model import Preprocess
from regionclip_core.models.clip import lean_clip, usual_normalisation
from regionclip_core.models.official_keys import (
    BACKGROUND,
    MASK_HEAD,
    OFFLINE,
    RAW,
    TEST_EMBEDDINGS,
    TEXT,
    TRAIN_EMBEDDINGS,
    sections,
    split_clip,
    split_detector,
)
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.rpn_folder import official_section
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.clip_shapes import Architecture, resnet_architecture
from regionclip_core.weights.import_clip import write_clip
from regionclip_core.weights.import_report import ImportReport
from regionclip_core.weights.import_rpn import checked_rpn
from regionclip_core.weights.import_source import Source, check_fit, leave_over
from regionclip_core.weights.model_card import INTENDED_USE, LIMITS, ModelCard, architecture_text, detect_usage
from regionclip_core.weights.row_names import name_rows, with_base

TEMPERATURE = 0.01
"""Of the official configurations; it is not in the files."""
_SIZE = {"image_size": 800, "max_size": 1333}
# How the official scripts test finetuned detectors.
_COCO = InferenceSettings(score_threshold=0.001, max_detections=100, objectness="none", nms_kind="gaussian")
_LVIS = InferenceSettings(score_threshold=0.02, max_detections=300, objectness="raw_logit", nms_kind="gaussian")
_LVIS_ROWS = (866, 1203, 337)


def import_detector(source: Source, folder: Folder, report: ImportReport) -> None:
    """An official detector's file into a detector folder.

    ValueError if a part is incomplete, its classifier does not fit the architecture or the names, or one of its names
    is unknown.
    """
    if TRAIN_EMBEDDINGS not in source.tensors:
        raise ValueError(
            f"{source.name} is no detector: it has no {TRAIN_EMBEDDINGS}, but {sections(source.tensors)}. Leave --kind "
            "out to have the file recognised"
        )
    found = split_detector(source.tensors)
    clip = split_clip(source.tensors, "backbone.")
    has_text = any(name.startswith(TEXT) for name in source.tensors)
    architecture = resnet_architecture(clip.own, source.model, has_text, source.name, True)
    vocabulary = _vocabulary(found.own, architecture, source, report)
    mask_head = any(name.startswith(MASK_HEAD) for name in source.tensors)
    tensors = found.own | _added(found.own, report)
    expected = _expected(architecture, vocabulary, mask_head)
    own = {name.removeprefix("detector."): t for name, t in tensors.items() if name.startswith("detector.")}
    check_fit(expected, own, f"detector ({architecture.name})", source)
    report.model = f"{architecture.describe()}; {len(vocabulary)} categories"
    report.take(found.renamed)
    report.note_dtypes(found.own)

    rest = set(found.rest)
    section, network = _proposal_branch(source, report)
    rest = {name for name in rest if not name.startswith(OFFLINE)}
    if has_text:
        words = {official: own for official, own in clip.renamed.items() if official.startswith(TEXT)}
        report.take(words, f"{TEXT_FOLDER}/")
        write_clip(folder.child(TEXT_FOLDER), clip.own, architecture, source, report, f"{TEXT_FOLDER}/")
        rest -= set(words)
    else:
        report.missing["text encoder"] = (
            "it finds its own categories; for others `detect` takes a text encoder with --text"
        )
    unknown = sorted(name for name in rest if name.startswith("roi_heads."))
    if unknown:
        raise ValueError(f"{source.name}: unknown weights in the detector's heads: {unknown[:5]}; nothing was imported")
    leave_over(report, sorted(rest), "no part of a detector")
    config = _config(architecture, vocabulary, mask_head, section)
    card = _card(config, has_text, report)
    write_model(folder, tensors | {f"rpn.{name}": t for name, t in network.items()}, config, vocabulary, card)


def _vocabulary(
    own: Mapping[str, Tensor], architecture: Architecture, source: Source, report: ImportReport
) -> Vocabulary:
    """The names of the classifier in use, after its shapes, its background and its rows were checked."""
    train, test = own[f"{RAW}cls_score.weight"], own.get(f"{RAW}test_cls_score.weight")
    width = architecture.config["embed_dim"]
    for name, tensor in [(TRAIN_EMBEDDINGS, train), (TEST_EMBEDDINGS, test)]:
        if tensor is None:
            continue
        if tensor.ndim != 2 or tensor.shape[1] != width:
            raise ValueError(
                f"{source.name}: {name} has shape {tuple(tensor.shape)}, but {architecture.name} gives embeddings of "
                f"{width} numbers: classifier and image encoder are of different architectures"
            )
        finite = bool(torch.isfinite(tensor).all())
        if not finite or bool((tensor == 0).all(dim=1).any()):
            raise ValueError(f"{source.name}: {name} has rows that are zero or not finite: they classify nothing")
    background = own.get(f"{RAW}cls_bg_score.weight")
    if background is None or tuple(background.shape) != (1, width) or bool((background != 0).any()):
        raise ValueError(
            f"{source.name}: {BACKGROUND} must be one row of {width} zeros, as the official code fixes it; this "
            "detector has another background and would compute something else here"
        )
    used, what = (train, TRAIN_EMBEDDINGS) if test is None else (test, TEST_EMBEDDINGS)
    vocabulary = name_rows(source.names, len(used), f"{source.name}: {what}")
    if test is None:
        return vocabulary
    vocabulary, note = with_base(vocabulary, train, test)
    if note:
        report.notes.append(note)
    return vocabulary


def _added(own: Mapping[str, Tensor], report: ImportReport) -> dict[str, Tensor]:
    raw = own.get(f"{RAW}test_cls_score.weight", own[f"{RAW}cls_score.weight"])
    report.added["detector.class_embeddings"] = "the classifier's rows, normalised"
    report.added["detector.background_logit"] = "0, the logit of the official zero embedding"
    return {
        "detector.class_embeddings": F.normalize(raw.float(), dim=1),
        "detector.background_logit": torch.zeros(()),
    }


def _expected(architecture: Architecture, vocabulary: Vocabulary, mask_head: bool) -> dict[str, Tensor]:
    """Names and shapes of the detector's weights; no numbers."""
    with torch.device("meta"):
        encoder = region_encoder(lean_clip(architecture.config, architecture.name))
        embeddings = torch.empty(len(vocabulary), encoder.embed_dim)
        detector = OpenVocabularyDetector(encoder, embeddings, vocabulary.names, TEMPERATURE, "zero", mask_head)
    return detector.state_dict()


def _proposal_branch(source: Source, report: ImportReport) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """The `rpn` section and the network's weights; None and nothing where the file has no proposal branch."""
    branch = {name: tensor for name, tensor in source.tensors.items() if name.startswith(OFFLINE)}
    if not branch:
        report.missing["proposal branch"] = (
            "it proposes no boxes by itself: give `detect` the folder of a proposal network, imported from its own "
            "file, with --rpn"
        )
        return None, {}
    found = checked_rpn(branch, source, report, "rpn.")
    return official_section(found.backbone), found.state


def _config(
    architecture: Architecture, vocabulary: Vocabulary, mask_head: bool, section: Mapping[str, Any] | None
) -> dict[str, Any]:
    mean, std = (tuple(values) for values in usual_normalisation(architecture.name))
    description = {
        "names": list(vocabulary.names),
        "temperature": TEMPERATURE,
        "background": "zero",
        "mask_head": mask_head,
        "clip_architecture": architecture.config,
    }
    preprocess = Preprocess(**_SIZE, mean=mean, std=std)  # type: ignore[arg-type]
    inference = _LVIS if mask_head or len(vocabulary) in _LVIS_ROWS else _COCO
    return model_config(architecture.name, description, preprocess, inference, section)


def _card(config: Mapping[str, Any], has_text: bool, report: ImportReport) -> str:
    """README.md: what this is and where it came from."""
    names = config["names"]
    return ModelCard(
        title=f"RegionCLIP detector from {report.file}",
        task="object-detection",
        library="regionclip",
        summary=(
            "Weights that the authors of [RegionCLIP](https://arxiv.org/abs/2112.09106) published, or that were made "
            f"with their code, imported from `{report.file}` (sha256 `{report.sha256}`). They were not trained here, "
            "and the licence is their publisher's. `import.json` says what became of every tensor."
        ),
        usage=detect_usage(config["rpn"] is not None, has_text),
        sections=(
            ("Model", architecture_text(config)),
            ("Categories", f"{len(names)}: {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}"),
            ("Intended use", INTENDED_USE),
            ("Limits", LIMITS),
        ),
        tags=("open-vocabulary-detection",),
        license="other",
    ).render()
