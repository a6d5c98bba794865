"""Names of weights in the official checkpoints, and ours. Only names are changed here, never tensors.

Official files hold one flat dictionary whose prefixes name the parts: `backbone.` (the student's, or the detector's,
CLIP ResNet with `layer4` and `attnpool`), `teacher_backbone.`, `lang_encoder.`, `roi_heads.box_predictor.`,
`roi_heads.mask_head.`, and the proposal branch, whose names are in `rpn_weights`. OpenAI's and open_clip's files call
the image tower `visual.` and give the text tower no prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

STUDENT, TEACHER, TEXT = "backbone.", "teacher_backbone.", "lang_encoder."
PREDICTOR, MASK_HEAD = "roi_heads.box_predictor.", "roi_heads.mask_head."
OFFLINE = ("offline_backbone.", "offline_proposal_generator.rpn_head.")
TRAIN_EMBEDDINGS, BACKGROUND, TEST_EMBEDDINGS = (
    f"{PREDICTOR}{name}.weight" for name in ("cls_score", "cls_bg_score", "test_cls_score")
)
RAW = "official."
"""Prefix, in a detector folder, of the classifier's official tensors: ours are normalised, these are as they came."""

# Ours (in model.safetensors) by official prefix. What follows the prefix is the same on both sides.
_DETECTOR = {
    STUDENT: "detector.encoder.",
    f"{PREDICTOR}bbox_pred.": "detector.box_regressor.",
    TRAIN_EMBEDDINGS: f"{RAW}cls_score.weight",
    BACKGROUND: f"{RAW}cls_bg_score.weight",
    TEST_EMBEDDINGS: f"{RAW}test_cls_score.weight",
    f"{MASK_HEAD}deconv.": "detector.mask_head.deconv.",
    f"{MASK_HEAD}predictor.": "detector.mask_head.predictor.",
}
OPEN_CLIP_TEXT = re.compile(
    r"(transformer|token_embedding|ln_final)\..*|positional_embedding|text_projection|logit_scale"
)
"""The text tower, with the temperature, in OpenAI's and open_clip's files."""
# They follow from the configuration. Older versions of the official code, and TorchScript archives, store them.
_CONSTANTS = re.compile(
    r"(offline_)?pixel_(mean|std)|(.*\.)?anchor_generator\.cell_anchors\.\d+|(teacher_)?concept_emb|(.*\.)?attn_mask"
)
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class Split:
    """A file's tensors by what they are."""

    own: dict[str, Tensor]
    """By our names: what belongs to the wanted part."""
    renamed: dict[str, str]
    """Official name to ours, for all in `own`."""
    rest: dict[str, Tensor]
    """By the file's names: everything else."""


def split_detector(state: Mapping[str, Tensor]) -> Split:
    """Find the detector's own weights, without proposal branch and text encoder, by a detector folder's names."""
    return _split(state, _DETECTOR)


def split_clip(state: Mapping[str, Tensor], visual: str) -> Split:
    """Find a CLIP model's weights, and name them as open_clip does.

    `visual` is the file's prefix of the image tower: `backbone.`, `teacher_backbone.` or `visual.`. The text tower is
    found under `lang_encoder.` or, as OpenAI names it, without a prefix.
    """
    found = _split(state, {visual: "visual.", TEXT: ""})
    if any(name.startswith(TEXT) for name in state):
        return found
    bare = [name for name in found.rest if OPEN_CLIP_TEXT.fullmatch(name)]
    return Split(
        found.own | {name: found.rest[name] for name in bare},
        found.renamed | {name: name for name in bare},
        {name: tensor for name, tensor in found.rest.items() if name not in bare},
    )


def _split(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> Split:
    own, renamed, rest = {}, {}, {}
    for name, tensor in state.items():
        prefix = next((p for p in prefixes if name.startswith(p)), None)
        if prefix is None or (name.endswith(_COUNTER) and not name.startswith(OFFLINE)):
            rest[name] = tensor
            continue
        renamed[name] = prefixes[prefix] + name.removeprefix(prefix)
        own[renamed[name]] = tensor
    return Split(own, renamed, rest)


def detector_to_official(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Invert `split_detector`; what has no official name (`rpn.`, counters, our buffers) is left out."""
    return _split(tensors, {own: official for official, own in _DETECTOR.items()}).own


def clip_to_official(tensors: Mapping[str, Tensor], visual: str, text: bool) -> dict[str, Tensor]:
    """Turn open_clip's names into official ones: the image tower under `visual`, with `text` the text tower too.

    `logit_scale` is left out: the official code has its temperature in the configuration.
    """
    found = _split(tensors, {"visual.": visual})
    words = [name for name in found.rest if OPEN_CLIP_TEXT.fullmatch(name) and name != "logit_scale"]
    return found.own | {f"{TEXT}{name}": found.rest[name] for name in words if text}


def is_constant(name: str) -> bool:
    """Return whether a file may store this tensor although no module has it: it follows from the configuration."""
    return _CONSTANTS.fullmatch(name) is not None


def why_left_over(name: str) -> str | None:
    """Say why a tensor that belongs to no model is rightly left over; None if the reason is not known."""
    if name.endswith(_COUNTER):
        return "a counter that nothing reads"
    return "a constant that follows from the configuration" if is_constant(name) else None


def sections(names: Iterable[str]) -> dict[str, int]:
    """Count tensors by the first part of their names (two parts under roi_heads), for messages."""
    parts = (name.split(".") for name in names)
    return dict(Counter(".".join(p[: 2 if p[0] == "roi_heads" else 1]) for p in parts))
