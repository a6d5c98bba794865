"""From the detector's logits to an image's detections, in the order of the official code.

Legend: R proposals of one image, K classes (the last logit, K, is the background), N detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from regionclip_core.config.tree import EvaluateConfig
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.nms import NmsKind, suppress

BOX_WEIGHTS: box_ops.Weights = (10.0, 10.0, 5.0, 5.0)

Objectness = Literal["none", "sigmoid", "raw_logit"]


@dataclass(frozen=True)
class InferenceSettings:
    """How detections are scored and chosen."""

    score_threshold: float = 0.001
    """Pairs of box and class need a score above this; it acts on the score after the objectness product."""
    nms: float = 0.5
    """IoU of the per-class NMS (not used by the gaussian kind)."""
    nms_kind: NmsKind = "hard"
    sigma: float = 0.5
    """Width of the gaussian soft-NMS."""
    prune: float = 0.001
    """Soft-NMS drops pairs whose decayed score isn't above this."""
    max_detections: int = 100
    objectness: Objectness = "none"
    """`sigmoid`: sqrt(p * sigmoid(logit)); `raw_logit`: the official sqrt(p * logit), which drops negative logits."""
    report_probability: bool = False
    """Report the class probability p as the score, although the product is used for ranking, threshold and NMS. As in
    the official code, soft-NMS ignores this: its decayed score is reported."""

    @classmethod
    def from_config(cls, config: EvaluateConfig, finetuned: bool) -> InferenceSettings:
        """Return the settings of a zero-shot or a finetuned detector."""
        return cls(
            score_threshold=config.score_threshold,
            nms=config.nms,
            nms_kind=config.nms_kind,
            max_detections=config.max_detections,
            objectness=config.finetuned_objectness if finetuned else config.objectness,
            report_probability=config.report_probability,
        )


@dataclass(frozen=True)
class Detections:
    """One image's detections, highest score first."""

    boxes: Tensor
    """[N, 4] absolute xyxy pixels."""
    scores: Tensor
    """[N]"""
    labels: Tensor
    """[N] int64, rows of the vocabulary."""
    proposal: Tensor
    """[N] int64, rows of the proposals that were given."""
    masks: list[bytes] | None = None
    """N masks of the whole image in the pixels of the boxes, as COCO's compressed run lengths (`counts`), runs down the
    columns; None without a mask head."""

    def __len__(self) -> int:
        return len(self.scores)

    def rescaled(self, source: tuple[int, int], target: tuple[int, int]) -> Detections:
        """Return the detections after their image is resized from `source` to `target`, both (height, width).

        Boxes that are empty then are left out.
        """
        assert self.masks is None, "masks are made for the final boxes, and never resized"
        boxes = box_ops.clip(box_ops.rescale(self.boxes, source, target), target)
        kept = box_ops.nonempty(boxes)
        return Detections(boxes[kept], self.scores[kept], self.labels[kept], self.proposal[kept])


class Fusion(NamedTuple):
    """A second classifier's opinion of one image's proposals, and how much it counts."""

    probabilities: Tensor
    """[R, K], of the categories alone."""
    exponents: Tensor
    """[K]; 0: the detector's probability alone, 1: the second one alone."""


def rival_logits(logits: Tensor, rivals: Sequence[str], names: Sequence[str]) -> Tensor:
    """Return [R, K], per region and name the log-sum-exp of the logits of all rivals but the name itself.

    Args:
        logits: [R, A] of the A rivals, or [R, A + 1], with the background's at the end.
        names: K names, some of which may be among the rivals.
    """
    rest = logits.logsumexp(dim=1, keepdim=True).repeat(1, len(names))
    for k, name in enumerate(names):
        if name in rivals:
            rest[:, k] = logits[:, [i for i in range(logits.shape[1]) if i != rivals.index(name)]].logsumexp(dim=1)
    return rest


def class_probabilities(logits: Tensor, fusion: Fusion | None = None, rivals: Tensor | None = None) -> Tensor:
    """Return probabilities [R, K + 1] from logits [R, K + 1]; see `score_proposals`.

    With `fusion` a category's is the geometric mean p ** (1 - a) * second ** a, with an exponent a per category; rows
    then no longer sum to 1, as with `rivals`. The background stays as it is.
    """
    probability = logits.softmax(dim=1)
    if rivals is not None:  # exp(l) / (exp(l) + exp(rivals)), per category
        probability = torch.cat((torch.sigmoid(logits[:, :-1] - rivals), probability[:, -1:]), dim=1)
    if fusion is None:
        return probability
    own = probability[:, :-1] ** (1 - fusion.exponents)
    return torch.cat((own * fusion.probabilities**fusion.exponents, probability[:, -1:]), dim=1)


def score_proposals(
    logits: Tensor,
    objectness_logits: Tensor | None,
    objectness: Objectness,
    fusion: Fusion | None = None,
    rivals: Tensor | None = None,
) -> Tensor:
    """Return scores [R, K + 1] from logits [R, K + 1] and raw RPN logits [R].

    `raw_logit` gives NaN where a proposal's logit is negative, which drops the proposal. `rivals` [R, K], see
    `rival_logits`: each category is in a softmax with its rivals, and not with the other categories.
    """
    probability = class_probabilities(logits, fusion, rivals)
    if objectness == "none":
        return probability
    assert objectness_logits is not None
    factor = torch.sigmoid(objectness_logits) if objectness == "sigmoid" else objectness_logits
    return torch.sqrt(probability * factor[:, None])


@torch.no_grad()
def detect_image(
    logits: Tensor,
    deltas: Tensor | None,
    proposals: Tensor,
    objectness_logits: Tensor | None,
    size: tuple[int, int],
    settings: InferenceSettings,
    fusion: Fusion | None = None,
    rivals: Tensor | None = None,
) -> Detections:
    """Return the detections of one image, in the proposals' pixels.

    Args:
        logits: [R, K + 1], background last.
        deltas: [R, 4] box deltas, or None to keep the proposals as they are.
        proposals: [R, 4].
        objectness_logits: [R] raw logits, needed unless settings.objectness is `none`.
        size: (height, width) of the unpadded image in the same pixels.
        fusion: a second classifier's probabilities of the same proposals; the objectness comes after.
        rivals: [R, K], see `score_proposals`.
    """
    boxes = proposals if deltas is None else box_ops.decode(proposals, deltas, BOX_WEIGHTS)
    scores = score_proposals(logits, objectness_logits, settings.objectness, fusion, rivals)
    # Drop rows that aren't finite before scores are compared: diverged boxes, and the root of a negative objectness.
    rows = (torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)).nonzero().flatten()
    boxes = box_ops.clip(boxes[rows], size)
    # The background takes its share of the softmax, but it is not a class to detect.
    picked = suppress(
        boxes,
        scores[rows, :-1],
        settings.score_threshold,
        settings.max_detections,
        settings.nms_kind,
        settings.nms,
        settings.sigma,
        settings.prune,
    )
    proposal = rows[picked.box]  # back to the rows that were given
    reported = picked.score
    if settings.report_probability and settings.nms_kind == "hard":
        reported = class_probabilities(logits, fusion, rivals)[proposal, picked.label]
    return Detections(boxes[picked.box], reported, picked.label, proposal)
