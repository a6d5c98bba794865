"""Scenes of boxes and masks, and what pycocotools and the LVIS reference make of them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.average_precision import Evaluator, Kind, Protocol, Scores
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections, ImageTruth

HEIGHT, WIDTH = 120, 140


def counts_of(box: Sequence[float], rng: np.random.Generator, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    """Run lengths of a box's pixels, some of them missing; may be empty."""
    mask = np.zeros(size, np.uint8, order="F")
    x0, y0, x1, y1 = (int(v) for v in box)
    part = mask[y0:y1, x0:x1]
    part[:] = rng.random(part.shape) < rng.choice([0.7, 1.0])
    return coco_mask.encode(mask)["counts"]  # type: ignore[no-any-return]


def random_scene(
    seed: int, images: int = 30, names: int = 10, lvis: bool = False, most: int = 330
) -> tuple[list[ImageTruth], list[ImageDetections]]:
    """Objects of all sizes and detections near and far, with ties, empty images and categories without objects.

    Scores have two digits. Every seventh image has `most` more detections than others: caps cut.
    COCO: crowds, and -1 labels. LVIS: negative and not exhaustive categories, objects and detections without area.
    """
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for image in range(images):
        count = int(rng.integers(0, 7)) if image % 6 else 0
        boxes = _boxes(rng, count)
        labels = rng.integers(0 if lvis else -1, names - 2, count)  # the last two have no objects
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.uniform(0.8, 1, count)
        crowd = None
        if lvis:
            area[rng.random(count) < 0.05] = 0
            missing = rng.permutation(np.setdiff1d(np.arange(names), labels))
            partly = np.concatenate((labels[rng.random(count) < 0.3], missing[:1]))
            known = {"neg_labels": missing[:3], "not_exhaustive_labels": np.unique(partly)}
        else:
            crowd, known = rng.random(count) < 0.15, {}
        masks = [counts_of(box, rng) for box in boxes]
        truth.append(ImageTruth(image * 3 + 1, WIDTH, HEIGHT, boxes, labels, crowd, area, masks, **known))
        if image % 5:
            more = most if image % 7 == 0 else 25
            detections.append(_guesses(rng, image * 3 + 1, boxes, labels, names, more))
    return truth, [detections[i] for i in rng.permutation(len(detections))]


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 70, (count, 2))
    side = rng.uniform(3, 50, (count, 2)) * rng.choice([0.4, 1.0], (count, 1))
    large = rng.random(count) < 0.2
    corner[large], side[large] = corner[large] / 8, rng.uniform(102, 111, (int(large.sum()), 2))
    return np.concatenate((corner, corner + side), axis=1)


def _guesses(
    rng: np.random.Generator, image_id: int, boxes: np.ndarray, labels: np.ndarray, names: int, more: int
) -> ImageDetections:
    near = np.repeat(boxes, 3, axis=0) + rng.normal(0, 2, (3 * len(boxes), 4))
    near = np.clip(np.concatenate((near[:, :2], np.maximum(near[:, 2:], near[:, :2])), axis=1), 0, HEIGHT)
    far = _boxes(rng, more)
    far[::9, 2] = far[::9, 0]  # no area
    every = np.concatenate((near, far))
    guess = np.where(rng.random(len(near)) < 0.8, np.repeat(labels, 3).clip(0), rng.integers(0, names, len(near)))
    every_label = np.concatenate((guess, rng.integers(0, names, more)))
    score = rng.random(len(every)).round(2)
    masks = [counts_of(box, rng) for box in every]
    return ImageDetections(image_id, np.array([xywh(box) for box in every]), score, every_label, masks)


def best_of(found: ImageDetections, count: int) -> ImageDetections:
    """The detections of an image with the highest scores, in the order in which they came."""
    return take(found, np.sort(np.argsort(-found.scores, kind="stable")[:count]))


def take(found: ImageDetections, rows: np.ndarray) -> ImageDetections:
    """The detections of an image at some indices."""
    masks = None if found.masks is None else [found.masks[row] for row in rows.tolist()]
    return ImageDetections(found.image_id, found.boxes[rows], found.scores[rows], found.labels[rows], masks)


def truth_dict(truth: Sequence[ImageTruth], names: int) -> dict[str, Any]:
    """COCO's and LVIS's annotations of a scene; category ids are labels + 1."""
    images, annotations = [], []
    for image in truth:
        entry = {"id": image.image_id, "height": image.height, "width": image.width}
        if image.neg_labels is not None and image.not_exhaustive_labels is not None:
            entry["neg_category_ids"] = (image.neg_labels + 1).tolist()
            entry["not_exhaustive_category_ids"] = (image.not_exhaustive_labels + 1).tolist()
        images.append(entry)
        for row in np.flatnonzero(image.labels >= 0):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.image_id,
                    "category_id": int(image.labels[row]) + 1,
                    "bbox": xywh(image.boxes[row]),
                    "area": float(image.area[row]),
                    "iscrowd": 0 if image.crowd is None else int(image.crowd[row]),
                    "segmentation": {
                        "size": [image.height, image.width],
                        "counts": "" if image.masks is None else image.masks[row].decode(),
                    },
                }
            )
    categories = [{"id": i + 1, "name": f"c{i}", "frequency": "rcf"[i % 3]} for i in range(names)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def result_rows(truth: Sequence[ImageTruth], detections: Sequence[ImageDetections], kind: str) -> list[dict[str, Any]]:
    """COCO's result rows with the field of one kind alone, as detectron2 hands them over."""
    sizes = {image.image_id: [image.height, image.width] for image in truth}
    rows = []
    for found in detections:
        for i, label in enumerate(found.labels.tolist()):
            row = {"image_id": found.image_id, "category_id": label + 1, "score": float(found.scores[i])}
            if kind == "bbox":
                row["bbox"] = found.boxes[i].tolist()
            else:
                row["segmentation"] = {"size": sizes[found.image_id], "counts": found.masks[i].decode()}
            rows.append(row)
    return rows


def xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]


def evaluate_detections(
    truth: Sequence[ImageTruth],
    detections: Sequence[ImageDetections],
    vocabulary: Vocabulary,
    protocol: Protocol = "coco",
    kind: Kind = "bbox",
) -> Scores:
    """Our own scores of a scene."""
    evaluator, rows = Evaluator(vocabulary, protocol), CategoryRows()
    for image in truth:
        evaluator.add_truth(image)
    for found in detections:
        evaluator.add(rows, found)
    return evaluator.evaluate(rows, kind)


def pycocotools_evaluation(dataset: dict[str, Any], results: list[dict[str, Any]], kind: str) -> COCOeval:
    """Evaluated, accumulated and summarised, in silence."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dataset
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(results), kind)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def lvis_evaluation(dataset: dict[str, Any], results: list[dict[str, Any]], kind: str, folder: Path) -> Any:
    """The LVIS reference on the same; its module must be importable."""
    np.float = float  # type: ignore[attr-defined]  # it is of the days when numpy had this name
    from lvis import LVIS, LVISEval, LVISResults

    path = folder / "annotations.json"
    path.write_text(json.dumps(dataset))
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        truth = LVIS(str(path))
        evaluator = LVISEval(truth, LVISResults(truth, results), kind)
        evaluator.run()
    finally:
        logging.disable(before)
    return evaluator
