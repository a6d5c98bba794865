"""From a model's results to the numbers of `metrics.json`; what that file holds is in `metrics_layout`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from regionclip_core.config.tree import Config
from regionclip_core.detection.inference import Detections
from regionclip_core.evaluation.data import EvaluationData, truth_of
from regionclip_core.evaluation.evaluator import Evaluator, Top1
from regionclip_core.evaluation.passes import GIVEN, RESTRICTED, ImageResult
from regionclip_core.evaluation.store import DetectionStore
from regionclip_core.evaluation.truth import ImageDetections

_log = logging.getLogger(__name__)


class ResultsWriter:
    """Detections as COCO's and LVIS's result rows, a JSON list written image by image.

    `bbox` is xywh in original pixels, `category_id` the row in the data stage's vocabulary, `segmentation` (where
    there are masks) compressed run lengths. Use as a context: leaving it ends the list.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows = 0

    def __enter__(self) -> ResultsWriter:
        self._file.write(b"[")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.write(b"]\n")

    def add(self, found: ImageDetections, size: tuple[int, int]) -> None:
        """One image's detections; `size`: its (height, width)."""
        rows = [
            json.dumps(row, sort_keys=True, allow_nan=False, separators=(",", ":")) for row in _result_rows(found, size)
        ]
        if rows:
            self._file.write((("," if self._rows else "") + ",".join(rows)).encode())
            self._rows += len(rows)


def _result_rows(found: ImageDetections, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    for i, ((x0, y0, x1, y1), score, label) in enumerate(zip(found.boxes, found.scores, found.labels, strict=True)):
        row: dict[str, Any] = {
            "image_id": found.image_id,
            "category_id": int(label),
            "bbox": [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)],
            "score": round(float(score), 5),
        }
        if found.masks is not None:
            row["segmentation"] = {"size": list(size), "counts": found.masks[i].decode("ascii")}
        yield row


def make_evaluator(config: Config, evaluation: EvaluationData, folder: Path) -> Evaluator:
    """The split's ground truth under `evaluate.protocol`; `folder` is for its scratch files."""
    evaluator = Evaluator(folder, evaluation.vocabulary, config.evaluate.protocol)
    for image in evaluation.truth():
        evaluator.add_truth(image)
    return evaluator


def measure(
    results: Iterable[ImageResult],
    evaluator: Evaluator,
    settings: Sequence[str],
    writers: Mapping[str, ResultsWriter] | None = None,
) -> dict[str, dict[str, Any]]:
    """Numbers of one model by setting: those of `Evaluation.to_json`, in percent.

    Added to them are `top1` in each group where annotated boxes were classified, and `segm`, the same numbers for
    masks, where the model makes masks and the split has them. `writers`: by setting, where its detections go too.
    """
    stores = {setting: evaluator.detections() for setting in settings}
    top1 = Top1(evaluator.vocabulary)
    for result in results:
        row, truth = result.image.row, truth_of(result.image.row)
        for setting, detections in result.found.items():
            found = as_found(row.image_id, detections)
            evaluator.add(stores[setting], truth, found)
            if writers and setting in writers:
                writers[setting].add(found, (row.height, row.width))
        if result.given_logits is not None:
            top1.add(result.given_logits.numpy(), result.image.labels.numpy())
    scores = {setting: _scores(evaluator, store, setting) for setting, store in stores.items()}
    for store in stores.values():
        store.delete()
    if GIVEN in scores:
        for group, value in top1.scores().items():
            scores[GIVEN][group]["top1"] = value
    return scores


def _scores(evaluator: Evaluator, store: DetectionStore, setting: str) -> dict[str, Any]:
    only = RESTRICTED.get(setting)
    result = evaluator.evaluate(store, "bbox", only).to_json()
    if store.has_masks and evaluator.truth.has_masks:
        result["segm"] = evaluator.evaluate(store, "segm", only).to_json()
    elif store.has_masks:
        _log.warning("no mask AP: the objects of the evaluated split have no masks; set `masks: true` on the split")
    return result


def as_found(image_id: int, detections: Detections) -> ImageDetections:
    """Detections of one image in the evaluator's form."""
    return ImageDetections(
        image_id,
        detections.boxes.double().cpu().numpy(),
        detections.scores.double().cpu().numpy(),
        detections.labels.cpu().numpy(),
        detections.masks,
    )
