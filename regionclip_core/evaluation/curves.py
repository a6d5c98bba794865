"""Precision and recall curves of each category, from verdicts on its detections, by faster-coco-eval.

One category is evaluated at a time, which changes nothing in COCO's and LVIS's average precision. What is held grows
with the largest category: 56 bytes a detection of it while they are sorted, then 82 while a curve is made, 12 here and
70 in the library. (Of a category with up to `ENTRIES / T` detections, all curves of an area range are made together.)
A million images with COCO's 100 detections each, a quarter of them of one category, take 2 GB. The curves themselves
are 32 kB a category.

Legend: T IoU thresholds (0.50:0.05:0.95), R recall points (0:0.01:1), K categories, A area ranges, M caps on
detections an image, n detections of one category.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regionclip_core.evaluation.matching import AREAS, Kind, Rules, thresholds
from regionclip_core.evaluation.store import DetectionStore, TruthStore
from regionclip_core.evaluation.truth import Array, Flags
from regionclip_core.evaluation.verdicts import Verdicts

Score = float | None

ENTRIES = 1 << 18
"""Detections times thresholds that the library is given at once; where a category has more, one threshold."""
PIECE = 1 << 14
"""Detections, and objects, that are handed to the library as Python objects at a time."""
_RECALLS = 101


@dataclass(frozen=True)
class Curves:
    """`precision` [T, R, K, A] at the largest cap and `recall` [T, K, A, M]; -1 where a category has no objects."""

    precision: Array
    recall: Array


def category_curves(
    truth: TruthStore, found: DetectionStore, kind: Kind, rules: Rules, labels: Collection[int] | None = None
) -> Curves:
    """Curves of all categories; those not in `labels` stay -1."""
    categories, steps = len(truth.counts), len(thresholds())
    precision = np.full((steps, _RECALLS, categories, len(AREAS)), -1.0)
    recall = np.full((steps, categories, len(AREAS), len(rules.caps)), -1.0)
    for label in range(categories) if labels is None else sorted(labels):
        if not truth.counts[label]:
            continue
        ranked = _Ranked.of(found.verdicts(kind, label))
        for area, objects in enumerate(truth.counts_by_area[label].tolist()):
            if objects:
                curves = _curves(ranked, area, objects, rules)
                precision[:, :, label, area], recall[:, label, area] = curves
    return Curves(precision, recall)


def percent(values: Array) -> Score:
    """Mean of a part of the curves over what has ground truth (not -1), in percent; None where nothing has."""
    valid = values[values > -1]
    return float(valid.mean() * 100) if valid.size else None


@dataclass(frozen=True)
class _Ranked:
    """The detections of a category by falling score; equal ones by image id, then by rank. 12 bytes each."""

    rank: NDArray[np.uint16]
    """[n], in its image."""
    matched: NDArray[np.uint8]
    """[n, 5], bits of A x T, as in a verdict."""
    ignored: NDArray[np.uint8]
    """[n, 5]"""

    @classmethod
    def of(cls, verdicts: Verdicts) -> _Ranked:
        """56 bytes a detection while it runs."""
        order = np.lexsort((verdicts["image"], -verdicts["score"]))
        return cls(*(verdicts[name][order] for name in ("rank", "matched", "ignored")))

    def flags(self, column: NDArray[np.uint8], area: int, step: int) -> Flags:
        """[n] of one area range and threshold."""
        byte, bit = divmod(area * len(thresholds()) + step, 8)
        flags: Flags = column[:, byte] & (128 >> bit) > 0
        return flags


def _curves(ranked: _Ranked, area: int, objects: int, rules: Rules) -> tuple[Array, Array]:
    """Precision [T, R] at the largest cap and recall [T, M], of one category and area range with `objects` objects."""
    steps = len(thresholds())
    together = max(1, min(steps, ENTRIES // max(1, len(ranked.rank))))
    precision, recall = [], []
    for first in range(0, steps, together):
        some = range(first, min(first + together, steps))
        matched, ignored = (
            np.stack([ranked.flags(column, area, step) for step in some], axis=1)
            for column in (ranked.matched, ranked.ignored)
        )
        # What is ignored moves no curve, and what is wrong no recall: leaving them out saves most of the work.
        right = np.any(matched & ~ignored, axis=1)
        rows = [*(right & (ranked.rank < cap) for cap in rules.caps[:-1]), np.any(~ignored, axis=1)]
        found = [_accumulate(_Entries(matched, ignored, one), objects, thresholds()[some]) for one in rows]
        precision.append(found[-1][0])
        recall.append(np.stack([one for _, one in found], axis=1))
    return np.concatenate(precision), np.concatenate(recall)


# ---------------------------------------------------------------- the library


@dataclass(frozen=True)
class _Entries:
    """The detections of a curve in their order: those of `rows` [n]; `matched`, `ignored` [n, t] at t thresholds."""

    matched: Flags
    ignored: Flags
    rows: Flags


class _Pieces(Sequence[Any]):
    """A category's detections in the place of the library's results of images, one made when it is asked for.

    They are in their final order, in which the library leaves equal scores: all are given the score 0.
    """

    def __init__(self, entries: _Entries, objects: int) -> None:
        self._entries, self._objects = entries, objects

    def __len__(self) -> int:
        return max(1, -(-max(len(self._entries.rows), self._objects) // PIECE))

    def __getitem__(self, index: Any) -> Any:
        from faster_coco_eval.faster_eval_api_cpp import ImageEvaluation

        if not 0 <= index < len(self):
            raise IndexError(index)
        part, entries = slice(index * PIECE, (index + 1) * PIECE), self._entries
        rows = entries.rows[part]
        objects = min(PIECE, max(0, self._objects - part.start))
        piece = ImageEvaluation.__new__(ImageEvaluation)
        piece.__setstate__(
            (
                entries.matched[part][rows].T.ravel().view(np.uint8).tolist(),  # any object but none, 0
                [],
                [0.0] * int(rows.sum()),
                [False] * objects,
                entries.ignored[part][rows].T.ravel().tolist(),
                [],
            )
        )
        return piece


def _accumulate(entries: _Entries, objects: int, iou: Array) -> tuple[Array, Array]:
    """Precision [t, R] and recall [t] at the IoU thresholds `iou` [t]."""
    from faster_coco_eval.core.cocoeval import Params
    from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate

    pieces, params = _Pieces(entries, objects), Params("bbox")
    params.imgIds, params.catIds, params.maxDets = list(range(len(pieces))), [0], [PIECE]
    params.areaRng, params.iouThrs = params.areaRng[:1], iou
    found = COCOevalAccumulate(params, pieces)
    precision, recall = (np.asarray(found[name]).reshape(len(iou), -1) for name in ("precision", "recall"))
    return precision, recall[:, 0]
