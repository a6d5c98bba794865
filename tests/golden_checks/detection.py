"""The detector head: matching, logits, losses, gradients, box decoding, and detections in every inference mode."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from golden_checks.table import Errors, Row, arrays, error
from regionclip_core.config.tree import EvaluateConfig, FinetuneConfig
from regionclip_core.detection.detector import FOREGROUND_IOU, HeadOutput, OpenVocabularyDetector, RegionTargets
from regionclip_core.detection.inference import BOX_WEIGHTS, InferenceSettings, detect_image, score_proposals
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.boxes import FOREGROUND, match

FILE = "detector_losses.npz"
LOSSES = {
    "coco": {"background_weight": 0.2, "focal_gamma": 0.5},
    "lvis": {"background_weight": 0.8, "focal_gamma": None},
    "focal_nobgw": {"background_weight": 1.0, "focal_gamma": 0.5},
    "plain": {"background_weight": 1.0, "focal_gamma": None},
}
"""`finetune` settings of each variant."""
_RAW, _SOFT = {"finetuned_objectness": "raw_logit"}, {"nms_kind": "gaussian"}
_LVIS = {"score_threshold": 0.02, "max_detections": 300}
MODES: dict[str, dict[str, Any]] = {
    "plain_nms": {},
    "soft_nms": _SOFT,
    "soft_linear": {"nms_kind": "linear"},
    "multiply_rpn": _RAW,
    "openset": {},
    "openset_soft_nms": _SOFT,
    "no_box_delta": {},
    "top10": {"max_detections": 10},
    "mult_vis": _RAW | {"report_probability": True},
    "soft_mult_vis": _RAW | _SOFT | {"report_probability": True},
    "lvis_openset_mult_soft": _RAW | _SOFT | _LVIS,
    "zs_lvis": _RAW | _LVIS,
}
"""`evaluate` settings of each mode."""
KEEPS_PROPOSALS = ("no_box_delta", "zs_lvis")


class StoredFeatures(nn.Module):
    """Takes the place of the encoder: the same features whatever the image."""

    embed_dim = 32

    def __init__(self) -> None:
        super().__init__()
        self.stored = nn.Parameter(arrays(FILE)["features"].clone())

    def forward(self, images: Tensor, boxes: object, sizes: object = None) -> Tensor:
        """The stored features [65, 32]."""
        return self.stored


def make_head(test_vocabulary: bool = False) -> OpenVocabularyDetector:
    """Our detector with the golden weights; with the 17 open-set classes where asked."""
    golden = arrays(FILE)
    head = OpenVocabularyDetector(StoredFeatures(), golden["class_emb"], [f"base {i}" for i in range(12)], 0.01)  # type: ignore[arg-type]
    head.box_regressor.load_state_dict({"weight": golden["w/bbox_pred.weight"], "bias": golden["w/bbox_pred.bias"]})
    head.to(golden["features"].device)
    if test_vocabulary:
        head.set_vocabulary(golden["openset_emb"], [f"open {i}" for i in range(17)])
    return head


def split_images(values: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of all 65 proposals -> those of either image."""
    first, second = values.split([36, 29])
    return first, second


@functools.cache
def matched() -> tuple[RegionTargets, Errors]:
    """The golden proposals as training matches them, and how that compares."""
    golden, labels, truth, rows, found = arrays(FILE), [], [], [], {}
    for image in (0, 1):
        overlap = box_ops.iou(golden[f"gt_boxes{image}"], golden[f"proposals{image}"])
        row, kind = match(overlap, FOREGROUND_IOU, FOREGROUND_IOU)
        labels.append(torch.where(kind == FOREGROUND, golden[f"gt_labels{image}"][row], 12))
        truth.append(golden[f"gt_boxes{image}"][row])
        rows.append(row)
        ours = {"iou": overlap, "matched_idx": row, "matched_label": kind, "proposal_classes": labels[-1]}
        found |= {f"{name}{image}": error(value, golden[f"{name}{image}"]) for name, value in ours.items()}
    boxes = [golden["proposals0"], golden["proposals1"]]
    return RegionTargets(boxes, torch.cat(labels), torch.cat(truth), torch.cat(rows)), found


def match_errors() -> Errors:
    """Overlaps, matches and the classes they give."""
    return matched()[1]


def output(head: OpenVocabularyDetector) -> HeadOutput:
    """Logits and deltas; the boxes and pixels don't matter to the stored features."""
    return head(torch.zeros(2, 3, 8, 8), [])  # type: ignore[no-any-return]


def classifier_errors() -> Errors:
    """The weights that the classifier multiplies with, which we keep normalised."""
    golden = arrays(FILE)
    own, other = make_head(), make_head(test_vocabulary=True)

    def unit(name: str) -> Tensor:
        return nn.functional.normalize(golden[name].double(), dim=1)

    return {
        "w/cls_score.weight": error(own.class_embeddings.double(), unit("w/cls_score.weight")),
        "w_openset/test_cls_score.weight": error(
            other.class_embeddings.double(), unit("w_openset/test_cls_score.weight")
        ),
        "w/cls_bg_score.weight": error(own.background_logit.expand(1, 32), golden["w/cls_bg_score.weight"]),
    }


def head_errors() -> Errors:
    """Logits with either vocabulary, and deltas."""
    golden, base, opened = arrays(FILE), output(make_head()), output(make_head(test_vocabulary=True))
    found = {"train_logits": error(base.logits, golden["train_logits"])}
    found["train_deltas"] = error(base.deltas, golden["train_deltas"])
    for mode in MODES:
        ours = opened.logits if "openset" in mode else base.logits
        found[f"infer_{mode}/logits"] = error(ours, golden[f"infer_{mode}/logits"])
    return found


def loss_errors() -> Errors:
    """The four classification losses, the box loss, and their gradients in the features.

    Where a region's target probability rounds to 1, the official focal gradient is 0 * inf; ours must be 0 there.
    """
    golden, found = arrays(FILE), {}
    for variant, settings in LOSSES.items():
        head = make_head()
        losses = head.target_losses(output(head), matched()[0], FinetuneConfig(**settings))
        found |= {f"train_{variant}/{name}": error(v, golden[f"train_{variant}/{name}"]) for name, v in losses.items()}
        (gradient,) = torch.autograd.grad(losses["loss_cls"], head.encoder.stored)
        name = f"train_{variant}/grad_features__loss_cls"
        found[name] = error(gradient, torch.nan_to_num(golden[name]))
    return found


def box_gradient_errors() -> Errors:
    """Gradients of the box loss."""
    head = make_head()
    losses = head.target_losses(output(head), matched()[0], FinetuneConfig())
    regressor = head.box_regressor
    wanted = {"features": head.encoder.stored, "bbox_pred_weight": regressor.weight, "bbox_pred_bias": regressor.bias}
    gradients = torch.autograd.grad(losses["loss_box_reg"], list(wanted.values()))
    names = [f"train_coco/grad_{name}__loss_box_reg" for name in wanted]
    return {name: error(own, arrays(FILE)[name]) for name, own in zip(names, gradients, strict=True)}


@functools.cache
def detections(mode: str) -> Errors:
    """Boxes, scores, classes and origins of both images in one mode, from features to the last step."""
    golden, head = arrays(FILE), make_head("openset" in mode)
    rules = InferenceSettings.from_config(EvaluateConfig(**MODES[mode]), finetuned=True)
    logits, deltas = output(head)
    found = {}
    for image in (0, 1):
        objectness = golden[f"objectness_logits{image}"]
        ours = detect_image(
            split_images(logits)[image],
            None if mode in KEEPS_PROPOSALS else split_images(deltas)[image],
            golden[f"proposals{image}"],
            objectness,
            tuple(golden["image_sizes"][image].tolist()),  # type: ignore[arg-type]
            rules,
        )
        # The official indices count the rows that are left after proposals with a negative logit went.
        left = ((objectness >= 0) | (rules.objectness != "raw_logit")).nonzero().flatten()
        place = torch.searchsorted(left, ours.proposal)
        parts = {"boxes": ours.boxes, "scores": ours.scores, "classes": ours.labels, "kept_proposal": place}
        for name, value in parts.items():
            found[f"infer_{mode}/{name}{image}"] = error(value, golden[f"infer_{mode}/{name}{image}"])
    return found


def negative_errors() -> Errors:
    """Proposals that the raw-logit product drops: NaN scores."""
    golden = arrays(FILE)
    logits = split_images(output(make_head()).logits)
    dropped = [
        score_proposals(logits[i], golden[f"objectness_logits{i}"], "raw_logit").isnan().all(1).sum() for i in (0, 1)
    ]
    return {"neg_objectness_count": error(torch.stack(dropped), golden["neg_objectness_count"])}


def decode_errors() -> Errors:
    """Decoding with the exponent's clamp."""
    golden = arrays(FILE)
    return {
        "b2b/decoded": error(
            box_ops.decode(golden["b2b/boxes"], golden["b2b/deltas"], BOX_WEIGHTS), golden["b2b/decoded"]
        )
    }


def _settings(mode: str) -> str:
    return ", ".join(f"{key}: {str(value).lower()}" for key, value in MODES[mode].items())


def _mode_row(mode: str) -> Row:
    notes = []
    if "openset" in mode:
        notes.append("classes exchanged by `set_vocabulary`")
    if mode in KEEPS_PROPOSALS:
        notes.append("`box_deltas=False`, as zero-shot")
    if MODES[mode]:
        notes.append(f"`evaluate: {{{_settings(mode)}}}`")
    code = "inference.detect_image, InferenceSettings.from_config"
    # Boxes, scores, classes and origins; the logits have a row of their own.
    return Row(FILE, f"infer_{mode}/[bsck]*", code, 1e-5, lambda: detections(mode), "; ".join(notes))


ROWS = [
    Row(FILE, "features class_emb openset_emb image_sizes w/bbox_pred.*", "input"),
    Row(FILE, "proposals[01] objectness_logits[01] gt_boxes[01] gt_labels[01] b2b/deltas b2b/boxes", "input"),
    Row(
        FILE,
        "w/cls_score.weight w/cls_bg_score.weight w_openset/test_cls_score.weight",
        "detector.OpenVocabularyDetector.set_vocabulary",
        1e-6,
        classifier_errors,
        "kept normalised; the zero background embedding is a zero logit",
    ),
    Row(
        FILE,
        "iou[01] matched_idx[01] matched_label[01] proposal_classes[01]",
        "boxes.iou, boxes.match",
        1e-6,
        match_errors,
    ),
    Row(
        FILE,
        "train_logits train_deltas infer_*/logits",
        "detector.OpenVocabularyDetector.forward, set_vocabulary",
        1e-5,
        head_errors,
    ),
    Row(
        FILE,
        "train_*/loss_cls train_*/loss_box_reg train_*/grad_features__loss_cls",
        "detector.OpenVocabularyDetector.target_losses, losses.classification_loss, box_loss",
        1e-4,
        loss_errors,
        "four kinds: COCO's, LVIS's, focal without a background weight, plain. Where the target probability rounds to "
        "1 the official focal gradient is NaN; ours is 0",
    ),
    Row(
        FILE,
        "train_coco/grad_*__loss_box_reg",
        "detector.OpenVocabularyDetector.target_losses",
        1e-5,
        box_gradient_errors,
    ),
    Row(FILE, "neg_objectness_count", "inference.score_proposals", 0.0, negative_errors, "`objectness: raw_logit`"),
    *(_mode_row(mode) for mode in MODES),
    Row(FILE, "b2b/decoded", "boxes.decode", 1e-6, decode_errors),
]
