"""Average precision by group of categories, as COCO and LVIS compute it.

All numbers are in percent (0..100); a group or category without ground truth has None. Boxes are xyxy pixels of the
original image. Legend: T IoU thresholds (0.50:0.05:0.95), R recall points, K categories, A area ranges, M caps on
detections an image, N boxes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.curves import Curves, Score, category_curves, percent
from regionclip_core.evaluation.lvis import FREQUENCIES, federated, lvis_standard, lvis_truth
from regionclip_core.evaluation.matching import AREAS, COCO_RULES, LVIS_RULES, Kind
from regionclip_core.evaluation.store import DetectionStore, TruthStore
from regionclip_core.evaluation.truth import ImageDetections, ImageTruth

Protocol = Literal["coco", "lvis"]


@dataclass(frozen=True)
class Evaluation:
    """`groups`: base, novel, all and the vocabulary's own groups, each with ap50, ap and the number of categories and
    boxes it rests on; `per_category`: AP50 by name; `standard`: the protocol's own numbers over all categories.
    """

    protocol: Protocol
    groups: dict[str, dict[str, Score]]
    per_category: dict[str, Score]
    standard: dict[str, Score]

    def to_json(self) -> dict[str, Any]:
        """{"base": {...}, "novel": {...}, "all": {...}, ..., "per_category": {...}, "coco" or "lvis": {...}}."""
        return {**self.groups, "per_category": self.per_category, self.protocol: self.standard}


def label_groups(vocabulary: Vocabulary) -> dict[str, list[int]]:
    """Rows of the vocabulary by group: base, novel, all, and the vocabulary's own groups."""
    row_of = {name: row for row, name in enumerate(vocabulary.names)}
    own = {group: sorted(row_of[name] for name in members) for group, members in vocabulary.groups}
    everything = {"base": list(vocabulary.base_ids), "novel": list(vocabulary.novel_ids)}
    return {**everything, "all": list(range(len(vocabulary))), **own}


class Evaluator:
    """Ground truth of a split under a protocol, against which the detections of any number of models are measured.

    `coco`: generalised evaluation with COCO's settings. `lvis`: the federated rule, 300 detections an image.
    """

    def __init__(self, folder: Path, vocabulary: Vocabulary, protocol: Protocol) -> None:
        """`folder`: an existing one for scratch files, of this evaluator alone."""
        if protocol == "lvis":
            _require_frequencies(vocabulary)
        self.vocabulary = vocabulary
        self.protocol = protocol
        self.truth = TruthStore(len(vocabulary))
        self._rules = LVIS_RULES if protocol == "lvis" else COCO_RULES
        self._folder = folder
        self._stores = 0

    def add_truth(self, image: ImageTruth) -> None:
        """One image; also those without objects. All of them before the first detections.

        Raises:
            ValueError: an image that is not annotated as the protocol needs.
        """
        require_protocol(self.protocol, image)
        self.truth.add(lvis_truth(image) if self.protocol == "lvis" else image)

    def detections(self, kinds: Sequence[Kind] = ("bbox", "segm")) -> DetectionStore:
        """An empty store for one model's detections, to be evaluated by `kinds`.

        Raises:
            ValueError: two images of the truth have the same id.
        """
        self._stores += 1
        return DetectionStore(self._folder / f"detections-{self._stores}", self.truth, self._rules, kinds)

    def add(self, store: DetectionStore, image: ImageTruth, found: ImageDetections) -> None:
        """Store the detections of one image as far as the protocol counts them."""
        if image.image_id != found.image_id:
            raise ValueError(f"evaluation: detections of image {found.image_id} beside truth of {image.image_id}")
        if self.protocol == "lvis":
            image = lvis_truth(image)
            found = federated(image, found)
        store.add(image, found)

    def evaluate(self, store: DetectionStore, kind: Kind = "bbox", only: str | None = None) -> Evaluation:
        """The numbers of one model. `only`: one group, whose names alone the model was asked for.

        Raises:
            ValueError: `segm` where the truth or the detections have no masks.
        """
        if kind == "segm" and not (self.truth.has_masks and store.has_masks):
            whose = "detections" if self.truth.has_masks else "objects of the ground truth"
            raise ValueError(f"evaluation: mask AP needs a mask of every box, but the {whose} have none")
        groups = label_groups(self.vocabulary)
        wanted = groups if only is None else {only: groups[only]}
        labels = set(groups["all" if only is None else only])
        curves = category_curves(self.truth, store, kind, self._rules, labels)
        scores = {name: _group(curves.precision, self.truth.counts, rows) for name, rows in wanted.items()}
        standard = lvis_standard(curves, groups) if self.protocol == "lvis" else _coco_standard(curves)
        per_category = {
            name: percent(curves.precision[0, :, row, 0])
            for row, name in enumerate(self.vocabulary.names)
            if row in labels
        }
        return Evaluation(self.protocol, scores, per_category, standard)


def require_protocol(protocol: Protocol, image: ImageTruth, name: str | None = None) -> None:
    """ValueError when an image's annotations are of the other protocol's kind; `name` is for the message."""
    where = f"image {image.image_id if name is None else name}"
    if protocol == "lvis" and (image.neg_labels is None or image.not_exhaustive_labels is None):
        raise ValueError(
            f"evaluate.protocol lvis: {where} has no list of absent categories (neg_category_ids), which the federated "
            "rule needs; evaluate a split with `source: lvis`, or set evaluate.protocol: coco"
        )
    if protocol == "coco" and image.neg_labels is not None:
        raise ValueError(
            f"evaluate.protocol coco: {where} is annotated for some categories only (LVIS), and COCO's rules would "
            "count correct detections of the others as mistakes; set evaluate.protocol: lvis"
        )


def _require_frequencies(vocabulary: Vocabulary) -> None:
    missing = set(FREQUENCIES) - {name for name, _ in vocabulary.groups}
    if missing:
        raise ValueError(
            f"evaluate.protocol lvis: the categories have no group {', '.join(sorted(missing))}, which APr, APc and "
            "APf are averages of; let data.categories be an LVIS annotation file"
        )


def evaluate_detections(
    truth: Sequence[ImageTruth],
    detections: Iterable[ImageDetections],
    vocabulary: Vocabulary,
    protocol: Protocol = "coco",
    kind: Kind = "bbox",
) -> Evaluation:
    """Evaluate what is in memory already.

    Images without detections count; detections of images that are not in `truth` are refused with ValueError.
    """
    with tempfile.TemporaryDirectory(prefix="regionclip-evaluation-") as folder:
        evaluator = Evaluator(Path(folder), vocabulary, protocol)
        by_id = {}
        for image in truth:
            evaluator.add_truth(image)
            by_id[image.image_id] = image
        store = evaluator.detections((kind,))
        for found in detections:
            if found.image_id not in by_id:
                raise ValueError(
                    f"evaluation: detections of image {found.image_id}, which the ground truth doesn't have"
                )
            evaluator.add(store, by_id[found.image_id], found)
        return evaluator.evaluate(store, kind)


class Top1:
    """Share of given boxes whose best category is right; holds two counts a category."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._right = np.zeros(len(vocabulary), np.int64)
        self._all = np.zeros(len(vocabulary), np.int64)

    def add(self, logits: NDArray[np.floating[Any]], labels: NDArray[np.int64]) -> None:
        """Boxes of one image or many: `logits` [N, K] without the background's, `labels` [N] rows of the vocabulary."""
        count = len(self._vocabulary)
        if logits.shape != (len(labels), count):
            raise ValueError(f"top-1 accuracy: expected logits [{len(labels)}, {count}], got {logits.shape}")
        self._all += np.bincount(labels, minlength=count)
        self._right += np.bincount(labels[logits.argmax(axis=1) == labels], minlength=count)

    @property
    def boxes(self) -> int:
        """Boxes seen."""
        return int(self._all.sum())

    def scores(self) -> dict[str, Score]:
        """Percent by group of categories."""
        groups = label_groups(self._vocabulary)
        counts = {name: (self._right[rows].sum(), self._all[rows].sum()) for name, rows in groups.items()}
        return {name: float(right / total * 100) if total else None for name, (right, total) in counts.items()}


# ---------------------------------------------------------------- summaries


def _group(precision: NDArray[np.float64], counts: NDArray[np.int64], rows: list[int]) -> dict[str, Score]:
    return {
        "ap50": percent(precision[0][:, rows, 0]),
        "ap": percent(precision[:, :, rows, 0]),
        "categories": int((counts[rows] > 0).sum()),
        "boxes": int(counts[rows].sum()),
    }


def _coco_standard(curves: Curves) -> dict[str, Score]:
    """COCO's 12 numbers in its order."""
    precision, recall = curves.precision, curves.recall
    area = {name: i for i, name in enumerate(AREAS)}
    result: dict[str, Score] = {
        "AP": percent(precision[..., 0]),
        "AP50": percent(precision[0, ..., 0]),
        "AP75": percent(precision[5, ..., 0]),
    }
    sizes: Mapping[str, str] = {"small": "s", "medium": "m", "large": "l"}
    result |= {f"AP{letter}": percent(precision[..., area[name]]) for name, letter in sizes.items()}
    result |= {f"AR{cap}": percent(recall[..., 0, i]) for i, cap in enumerate(COCO_RULES.caps)}
    result |= {f"AR{letter}": percent(recall[..., area[name], -1]) for name, letter in sizes.items()}
    return result
