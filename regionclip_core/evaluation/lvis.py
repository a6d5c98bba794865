"""LVIS's rules: which detections count in an image that is annotated for some categories only, and its numbers.

Each image has positive categories (with objects), negative ones (known to be absent) and all others, about which
nothing is known. Legend: G objects and N detections of one image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from regionclip_core.evaluation.curves import Curves, Score, percent
from regionclip_core.evaluation.matching import AREAS, LVIS_RULES
from regionclip_core.evaluation.truth import ImageDetections, ImageTruth, take_masks

FREQUENCIES = ("rare", "common", "frequent")
"""Groups of the vocabulary behind APr, APc and APf: in at most 10, at most 100 and more training images."""
_CAP = LVIS_RULES.caps[-1]


def lvis_truth(image: ImageTruth) -> ImageTruth:
    """The objects that LVIS counts: those with an area; LVIS has no crowds."""
    boxes = np.asarray(image.boxes, np.float64).reshape(-1, 4)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) if image.area is None else image.area
    kept = (area > 0) & (image.labels >= 0)
    masks = take_masks(image.masks, np.flatnonzero(kept)) if image.masks else None
    return replace(image, boxes=boxes[kept], labels=image.labels[kept], crowd=None, area=area[kept], masks=masks)


def federated(image: ImageTruth, found: ImageDetections) -> ImageDetections:
    """The detections that count in this image, of `image` as `lvis_truth` left it.

    Of an image's detections the best 300 are taken, and of those the ones whose category is positive or negative.
    Where not every object of a category is annotated, its detections are exempt: none is a mistake.
    """
    assert image.neg_labels is not None  # require_protocol has looked
    assert image.not_exhaustive_labels is not None
    if len(found.scores) > _CAP:
        best = np.argsort(-found.scores, kind="stable")[:_CAP]
        found = found.take(np.sort(best))
    judged = np.union1d(image.labels, image.neg_labels)
    found = found.take(np.isin(found.labels, judged))
    return replace(found, exempt=np.isin(found.labels, image.not_exhaustive_labels))


def lvis_standard(curves: Curves, groups: Mapping[str, Sequence[int]]) -> dict[str, Score]:
    """The 13 numbers of the LVIS reference in its order; `groups`: rows of the vocabulary by name."""
    precision, recall = curves.precision, curves.recall[..., -1]
    result: dict[str, Score] = {
        "AP": percent(precision[..., 0]),
        "AP50": percent(precision[0, ..., 0]),
        "AP75": percent(precision[5, ..., 0]),
    }
    result |= {f"AP{area[0]}": percent(precision[..., i]) for i, area in enumerate(AREAS) if i}
    result |= {f"AP{name[0]}": percent(_columns(precision, groups[name])) for name in FREQUENCIES}
    result[f"AR@{_CAP}"] = percent(recall[..., 0])
    result |= {f"AR{area[0]}@{_CAP}": percent(recall[..., i]) for i, area in enumerate(AREAS) if i}
    return result


def _columns(precision: NDArray[np.float64], rows: Sequence[int]) -> NDArray[np.float64]:
    return precision[:, :, list(rows), 0]
