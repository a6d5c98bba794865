"""Precision and recall curves of each category, from stored truth and detections, by faster-coco-eval.

One category is evaluated at a time, which changes nothing in COCO's and LVIS's average precision and bounds what is
held: the rows of a bucket, and one category's boxes as Python objects (about 1 kB each) over the images that have any.

Legend: T IoU thresholds (0.50:0.05:0.95), R recall points (0:0.01:1), K categories, A area ranges, M caps on
detections an image, n rows of one category.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regionclip_core.detection_store import CategoryRows, DetectionStore, TruthStore

Array = NDArray[np.float64]
Kind = Literal["bbox", "segm"]
Score = float | None

AREAS = ("all", "small", "medium", "large")
_THRESHOLDS, _RECALLS = 10, 101
_CATEGORY = 1  # the evaluator's id of the one category that it is given


@dataclass(frozen=True)
class Rules:
    """What COCO and LVIS do differently in counting."""

    caps: tuple[int, ...]
    """Best detections of a category and image that count; the last one is that of the averages."""
    exempt: bool
    """Whether detections can be exempt: no mistake where they are wrong."""
    drop_empty: bool
    """Leave out detections without area, as the LVIS reference does by its way of looking them up."""


COCO_RULES = Rules(caps=(1, 10, 100), exempt=False, drop_empty=False)
LVIS_RULES = Rules(caps=(300,), exempt=True, drop_empty=True)


@dataclass(frozen=True)
class Curves:
    """`precision` [T, R, K, A] at the largest cap and `recall` [T, K, A, M]; -1 where a category has no objects."""

    precision: Array
    recall: Array


def category_curves(
    truth: TruthStore, found: DetectionStore, kind: Kind, rules: Rules, labels: Collection[int] | None = None
) -> Curves:
    """Curves of all categories; those not in `labels` stay -1."""
    categories = len(truth.counts)
    precision = np.full((_THRESHOLDS, _RECALLS, categories, len(AREAS)), -1.0)
    recall = np.full((_THRESHOLDS, categories, len(AREAS), len(rules.caps)), -1.0)
    for number, members in enumerate(truth.buckets()):
        wanted = [label for label in members if truth.counts[label] and (labels is None or label in labels)]
        if not wanted:
            continue
        objects, guesses = (store.read(number, kind == "segm") for store in (truth, found))
        for label in wanted:
            sides = objects.category(label), guesses.category(label)
            precision[:, :, label], recall[:, label] = _evaluate(*sides, truth.sizes, kind, rules)
    return Curves(precision, recall)


def percent(values: Array) -> Score:
    """Mean of a part of the curves over what has ground truth (not -1), in percent; None where nothing has."""
    valid = values[values > -1]
    return float(valid.mean() * 100) if valid.size else None


def _evaluate(
    objects: CategoryRows, guesses: CategoryRows, sizes: dict[int, tuple[int, int]], kind: Kind, rules: Rules
) -> tuple[Array, Array]:
    """Precision [T, R, A] and recall [T, A, M] of one category."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, found = _annotations(objects, sizes, kind), _annotations(guesses, sizes, kind)
    if rules.drop_empty:
        found = [one for one in found if one["area"] > 0]
    base = {
        "info": {},
        "images": _images(objects, guesses, sizes),
        "categories": [{"id": _CATEGORY, "name": "category", "frequency": "f"}],
    }
    evaluator = COCOeval_faster(
        COCO({**base, "annotations": truth}),
        COCO({**base, "annotations": found}),
        kind,
        lvis_style=rules.exempt,
        print_function=_silent,
    )
    evaluator.params.maxDets = list(rules.caps)
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = np.asarray(evaluator.eval["precision"]), np.asarray(evaluator.eval["recall"])
    return precision[:, :, 0, :, -1], recall[:, 0]


def _images(objects: CategoryRows, guesses: CategoryRows, sizes: dict[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """The images with anything of the category: others change nothing.

    The federated rule is applied before detections are stored, so here every image is one whose detections count.
    """
    ids = np.union1d(objects.image_id, guesses.image_id).tolist()
    exempt = set(guesses.image_id[guesses.columns["exempt"]].tolist())
    return [
        {
            "id": image,
            "height": sizes[image][0],
            "width": sizes[image][1],
            "neg_category_ids": [_CATEGORY],
            "not_exhaustive_category_ids": [_CATEGORY] if image in exempt else [],
        }
        for image in ids
    ]


def _annotations(rows: CategoryRows, sizes: dict[int, tuple[int, int]], kind: Kind) -> list[dict[str, Any]]:
    """COCO's annotations; ids start at 1, since 0 would mean "not matched" to the evaluator."""
    boxes = np.concatenate((rows.boxes[:, :2], rows.boxes[:, 2:] - rows.boxes[:, :2]), axis=1)
    images = rows.image_id.tolist()
    masks = _masks(rows, sizes) if kind == "segm" else None
    crowd = rows.columns["crowd"].tolist() if "crowd" in rows.columns else [False] * len(rows)
    scores = rows.columns["score"].tolist() if "score" in rows.columns else None
    if "area" in rows.columns:
        area = rows.columns["area"].tolist()
    else:
        area = (boxes[:, 2] * boxes[:, 3] if masks is None else _mask_area(masks)).tolist()
    annotations = []
    for i, (image, box) in enumerate(zip(images, boxes.tolist(), strict=True)):
        one = {"id": i + 1, "image_id": image, "category_id": _CATEGORY, "bbox": box, "area": area[i]}
        one["iscrowd"] = int(crowd[i])
        if masks is not None:
            one["segmentation"] = masks[i]
        if scores is not None:
            one["score"] = scores[i]
        annotations.append(one)
    return annotations


def _masks(rows: CategoryRows, sizes: dict[int, tuple[int, int]]) -> list[dict[str, Any]]:
    assert rows.masks is not None  # the caller asked for them
    images = rows.image_id.tolist()
    return [
        {"size": list(sizes[image]), "counts": mask.decode("ascii")}
        for image, mask in zip(images, rows.masks, strict=True)
    ]


def _mask_area(masks: list[dict[str, Any]]) -> Array:
    from faster_coco_eval.core import mask as mask_ops

    return np.asarray(mask_ops.area(masks), np.float64) if masks else np.zeros(0)


def _silent(*_: object) -> None:
    pass
