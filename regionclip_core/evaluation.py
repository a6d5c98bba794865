"""Average precision on base, novel and all categories, as COCO computes it.

All numbers are in percent (0..100); a group or category without ground truth has None. Boxes are xyxy pixels of
the original image. Legend: T IoU thresholds (0.50:0.05:0.95), R recall points, K categories, A area ranges, M caps
on detections an image.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regionclip_core.vocabulary import Vocabulary

Backend = Literal["faster_coco_eval", "pycocotools"]
Array = NDArray[np.float64]
Score = float | None

_AREAS = ("all", "small", "medium", "large")
_CAPS = (1, 10, 100)


@dataclass(frozen=True)
class ImageTruth:
    """Ground truth of one image: `boxes` [G, 4], `labels` [G] rows of the vocabulary (others, -1, are left out).

    `crowd` [G] (default none) marks regions in which detections count neither for nor against; `area` [G] (default
    the boxes') sorts objects into COCO's size ranges.
    """

    image_id: int
    width: int
    height: int
    boxes: Array
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_] | None = None
    area: Array | None = None


@dataclass(frozen=True)
class ImageDetections:
    """Detections of one image: `boxes` [N, 4], `scores` [N], `labels` [N] rows of the vocabulary."""

    image_id: int
    boxes: Array
    scores: Array
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """`groups`: base, novel and all, each with ap50, ap and the number of categories and boxes it rests on;
    `per_category`: AP50 by name; `coco`: the 12 standard numbers over all categories.
    """

    groups: dict[str, dict[str, Score]]
    per_category: dict[str, Score]
    coco: dict[str, Score] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """{"base": {...}, "novel": {...}, "all": {...}, "per_category": {...}, "coco": {...}}."""
        return {**self.groups, "per_category": self.per_category, "coco": self.coco}


def evaluate_detections(
    truth: Sequence[ImageTruth],
    detections: Sequence[ImageDetections],
    vocabulary: Vocabulary,
    backend: Backend = "faster_coco_eval",
) -> Evaluation:
    """COCO's box evaluation with its own settings (at most 100 detections an image).

    Images without detections count; detections of images that are not in `truth` are refused with ValueError.
    """
    _check(truth, detections, vocabulary)
    truth_dict = _truth_dict(truth, vocabulary)
    precision, recall = _accumulate(truth_dict, _detection_dict(truth_dict, detections), backend)
    counts = np.bincount(
        [a["category_id"] - 1 for a in truth_dict["annotations"] if not a["iscrowd"]], minlength=len(vocabulary)
    )
    ids = {"base": vocabulary.base_ids, "novel": vocabulary.novel_ids, "all": list(range(len(vocabulary)))}
    groups = {name: _group(precision, counts, rows) for name, rows in ids.items()}
    per_category = {name: _mean(precision[0, :, row, 0, -1]) for row, name in enumerate(vocabulary.names)}
    return Evaluation(groups, per_category, _standard(precision, recall))


def top1_accuracy(
    logits: NDArray[np.floating[Any]], labels: NDArray[np.int64], vocabulary: Vocabulary
) -> dict[str, Score]:
    """Share of given boxes whose best category is right, in percent, for base, novel and all boxes.

    Args:
        logits: [N, K] scores without the background's; labels: [N] rows of the vocabulary.
    """
    if logits.shape != (len(labels), len(vocabulary)):
        raise ValueError(f"top1_accuracy: expected logits [{len(labels)}, {len(vocabulary)}], got {logits.shape}")
    right = logits.argmax(axis=1) == labels
    novel = np.isin(labels, vocabulary.novel_ids)
    masks = {"base": ~novel, "novel": novel, "all": np.ones_like(novel)}
    return {name: float(right[mask].mean() * 100) if mask.any() else None for name, mask in masks.items()}


# ---------------------------------------------------------------- into COCO's terms


def _check(truth: Sequence[ImageTruth], detections: Sequence[ImageDetections], vocabulary: Vocabulary) -> None:
    known = {image.image_id for image in truth}
    if len(known) != len(truth):
        raise ValueError("evaluation: two images of the ground truth have the same image_id")
    for found in detections:
        if found.image_id not in known:
            raise ValueError(f"evaluation: detections of image {found.image_id}, which the ground truth doesn't have")
        if len(found.labels) and not 0 <= int(found.labels.min()) <= int(found.labels.max()) < len(vocabulary):
            raise ValueError(
                f"evaluation: image {found.image_id} has detections outside the vocabulary's rows "
                f"0..{len(vocabulary) - 1}: {int(found.labels.min())}..{int(found.labels.max())}"
            )


def _xywh(boxes: Array) -> list[list[float]]:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1).tolist()  # type: ignore[no-any-return]


def _truth_dict(truth: Sequence[ImageTruth], vocabulary: Vocabulary) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in truth:
        crowd = np.zeros(len(image.labels), dtype=bool) if image.crowd is None else image.crowd
        for row, (box, label) in enumerate(zip(_xywh(image.boxes), image.labels, strict=True)):
            if label < 0:
                continue
            area = box[2] * box[3] if image.area is None else float(image.area[row])
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 would mean "not matched" to the evaluators
                    "image_id": image.image_id,
                    "category_id": int(label) + 1,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(crowd[row]),
                }
            )
    return {
        "info": {},
        "images": [{"id": i.image_id, "width": i.width, "height": i.height} for i in truth],
        "categories": [{"id": row + 1, "name": name} for row, name in enumerate(vocabulary.names)],
        "annotations": annotations,
    }


def _detection_dict(truth_dict: dict[str, Any], detections: Sequence[ImageDetections]) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image in detections:
        boxes = _xywh(image.boxes)
        for box, score, label in zip(boxes, image.scores.tolist(), image.labels.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return {**truth_dict, "annotations": annotations}


def _accumulate(truth: dict[str, Any], found: dict[str, Any], backend: Backend) -> tuple[Array, Array]:
    """Precision [T, R, K, A, M] and recall [T, K, A, M]; -1 where a category has no ground truth."""
    if backend == "faster_coco_eval":
        from faster_coco_eval import COCO, COCOeval_faster

        evaluator = COCOeval_faster(COCO(truth), COCO(found), "bbox", print_function=_silent)
        evaluator.evaluate()
        evaluator.accumulate()
    else:
        from pycocotools.coco import COCO as ReferenceCOCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # it prints unconditionally
            sides = []
            for dataset in (truth, found):
                side = ReferenceCOCO()
                side.dataset = dataset
                side.createIndex()
                sides.append(side)
            evaluator = COCOeval(sides[0], sides[1], "bbox")
            evaluator.evaluate()
            evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])


def _silent(*_: object) -> None:
    pass


# ---------------------------------------------------------------- summaries


def _mean(values: Array) -> Score:
    """Percent mean over the entries that have ground truth (not -1)."""
    valid = values[values > -1]
    return float(valid.mean() * 100) if valid.size else None


def _group(precision: Array, counts: NDArray[np.int64], rows: list[int]) -> dict[str, Score]:
    return {
        "ap50": _mean(precision[0][:, rows, 0, -1]),
        "ap": _mean(precision[:, :, rows, 0, -1]),
        "categories": int((counts[rows] > 0).sum()),
        "boxes": int(counts[rows].sum()),
    }


def _standard(precision: Array, recall: Array) -> dict[str, Score]:
    """COCO's 12 numbers in its order."""
    area = {name: i for i, name in enumerate(_AREAS)}
    result: dict[str, Score] = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[0, ..., 0, -1]),
        "AP75": _mean(precision[5, ..., 0, -1]),
    }
    sizes: Mapping[str, str] = {"small": "s", "medium": "m", "large": "l"}
    result |= {f"AP{letter}": _mean(precision[..., area[name], -1]) for name, letter in sizes.items()}
    result |= {f"AR{cap}": _mean(recall[..., 0, i]) for i, cap in enumerate(_CAPS)}
    result |= {f"AR{letter}": _mean(recall[..., area[name], -1]) for name, letter in sizes.items()}
    return result
