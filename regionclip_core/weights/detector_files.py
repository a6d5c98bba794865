"""Import of official detectors into detector folders.

K names of the classifier in use, D embedding. The official classifier is one or two matrices of text embeddings, of
any norm: `cls_score` [K_train, D] of training and, where it is tested on other names, `test_cls_score` [K, D]. Our
detector uses the second, or else the first, with normalised rows. Both are also kept as they are under `official.*`, so
that an export gives the official file back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector, describe_detector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import TEXT as TEXT_FOLDER
from regionclip_core.detection.model_folder import model_config, write_model
from regionclip_core.detection.region_model import Preprocess
from regionclip_core.models.clip import lean_clip, load_clip, usual_normalisation
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
from regionclip_core.models.text_embeddings import check_rows
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.rpn_folder import official_section
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.clip_files import Architecture, resnet_architecture, write_clip
from regionclip_core.weights.import_report import ImportReport, WeightFile
from regionclip_core.weights.model_card import imported_card
from regionclip_core.weights.row_names import name_rows, with_base
from regionclip_core.weights.rpn_files import convert_rpn

TEMPERATURE = 0.01
"""Of the official configurations; it is not in the files."""
# How the official scripts test finetuned detectors.
_COCO = InferenceSettings(score_threshold=0.001, max_detections=100, objectness="none", nms_kind="gaussian")
_LVIS = InferenceSettings(score_threshold=0.02, max_detections=300, objectness="raw_logit", nms_kind="gaussian")
_LVIS_ROWS = (866, 1203, 337)


def import_detector(file: WeightFile, folder: Folder, report: ImportReport) -> None:
    """Write an official file of a detector into a detector folder.

    Raises:
        ValueError: a part is incomplete, its classifier does not fit the architecture or the names (also by what its
            text encoder makes of them), or one of its names is unknown.
    """
    if TRAIN_EMBEDDINGS not in file.tensors:
        raise ValueError(
            f"{file.name} is no detector: it has no {TRAIN_EMBEDDINGS}, but {sections(file.tensors)}. Leave --kind "
            "out to have the file recognised"
        )
    found = split_detector(file.tensors)
    clip = split_clip(file.tensors, "backbone.")
    has_text = any(name.startswith(TEXT) for name in file.tensors)
    mask_head = any(name.startswith(MASK_HEAD) for name in file.tensors)
    architecture = resnet_architecture(clip.own, file.model, has_text, file.name, True)
    vocabulary = _vocabulary(found.own, architecture, file, report)

    # Our classifier: the rows in use, normalised. The raw ones stay in `found.own`.
    raw = found.own.get(f"{RAW}test_cls_score.weight", found.own[f"{RAW}cls_score.weight"])
    tensors = found.own | {
        "detector.class_embeddings": F.normalize(raw.float(), dim=1),
        "detector.background_logit": torch.zeros(()),
    }
    report.added["detector.class_embeddings"] = "the classifier's rows, normalised"
    report.added["detector.background_logit"] = "0, the logit of the official zero embedding"
    with torch.device("meta"):  # names and shapes only
        encoder = region_encoder(lean_clip(architecture.config, architecture.name))
        embeddings = torch.empty(len(vocabulary), encoder.embed_dim)
        detector = OpenVocabularyDetector(encoder, embeddings, vocabulary.names, TEMPERATURE, "zero", mask_head)
    own = {name.removeprefix("detector."): t for name, t in tensors.items() if name.startswith("detector.")}
    file.check_fit(detector.state_dict(), own, f"detector ({architecture.name})")
    report.model = f"{architecture.describe()}; {len(vocabulary)} categories"
    report.take(found.renamed)
    report.note_dtypes(found.own)

    rpn = None
    branch = {name: tensor for name, tensor in file.tensors.items() if name.startswith(OFFLINE)}
    if branch:
        network = convert_rpn(branch, file, report, "rpn.")
        rpn = official_section(network.backbone)
        tensors |= {f"rpn.{name}": tensor for name, tensor in network.state.items()}
    else:
        report.missing["proposal branch"] = (
            "it proposes no boxes by itself: give `detect` the folder of a proposal network, imported from its own "
            "file, with --rpn"
        )

    words = {official: own for official, own in clip.renamed.items() if official.startswith(TEXT)}
    if has_text:
        report.take(words, f"{TEXT_FOLDER}/")
        write_clip(folder.child(TEXT_FOLDER), clip.own, architecture, file, report, f"{TEXT_FOLDER}/")
        check_rows(load_clip(folder.child(TEXT_FOLDER)), vocabulary.names, raw, f"{file.name}: its classifier")
    else:
        report.missing["text encoder"] = (
            "it finds its own categories; for others `detect` takes a text encoder with --text"
        )

    rest = sorted(found.rest.keys() - branch.keys() - words.keys())
    if unknown := [name for name in rest if name.startswith("roi_heads.")]:
        raise ValueError(f"{file.name}: unknown weights in the detector's heads: {unknown[:5]}; nothing was imported")
    report.leave(rest, "no part of a detector")
    mean, std = (tuple(values) for values in usual_normalisation(architecture.name))
    preprocess = Preprocess(800, 1333, mean=mean, std=std)  # type: ignore[arg-type]
    inference = _LVIS if mask_head or len(vocabulary) in _LVIS_ROWS else _COCO
    description = describe_detector(detector, architecture.config)
    config = model_config(architecture.name, description, preprocess, inference, rpn)
    write_model(folder, tensors, config, vocabulary, str(imported_card(config, has_text, report)))


def _vocabulary(
    own: Mapping[str, Tensor], architecture: Architecture, file: WeightFile, report: ImportReport
) -> Vocabulary:
    """Return the names of the classifier in use, after checking its shapes, its background and its rows."""
    train, test = own[f"{RAW}cls_score.weight"], own.get(f"{RAW}test_cls_score.weight")
    width = architecture.config["embed_dim"]
    for name, tensor in [(TRAIN_EMBEDDINGS, train), (TEST_EMBEDDINGS, test)]:
        if tensor is None:
            continue
        if tensor.ndim != 2 or tensor.shape[1] != width:
            raise ValueError(
                f"{file.name}: {name} has shape {tuple(tensor.shape)}, but {architecture.name} gives embeddings of "
                f"{width} numbers: classifier and image encoder are of different architectures"
            )
        finite = tensor.is_floating_point() and bool(torch.isfinite(tensor).all())
        if not finite or not len(tensor) or bool((tensor == 0).all(dim=1).any()):
            raise ValueError(
                f"{file.name}: {name} has no rows, or rows that are zero or not finite ({len(tensor)} of "
                f"{str(tensor.dtype).removeprefix('torch.')}): they classify nothing; get the file again"
            )
    background = own.get(f"{RAW}cls_bg_score.weight")
    if background is None or tuple(background.shape) != (1, width) or bool((background != 0).any()):
        raise ValueError(
            f"{file.name}: {BACKGROUND} must be one row of {width} zeros, as the official code fixes it; this "
            "detector has another background and would compute something else here"
        )
    used, what = (train, TRAIN_EMBEDDINGS) if test is None else (test, TEST_EMBEDDINGS)
    vocabulary = name_rows(file.names, len(used), f"{file.name}: {what}")
    if test is None:
        return vocabulary
    vocabulary, note = with_base(vocabulary, train, test)
    if note:
        report.notes.append(note)
    return vocabulary
