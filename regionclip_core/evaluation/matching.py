"""Which detections are given an object, at every IoU threshold and in every area range, by faster-coco-eval.

An image's detections of a category depend on nothing but its objects of that category, so images are matched some at a
time. A detection in whose image its category has no object is given none; the library is asked about the others only.

Legend: T IoU thresholds (0.50:0.05:0.95), A area ranges, M caps on detections an image, n detections. A pair is an
image and a category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regionclip_core.evaluation.truth import Array, Flags, ImageDetections, ImageTruth, Labels, box_area, take_masks
from regionclip_core.evaluation.verdicts import VERDICT, Verdicts

Kind = Literal["bbox", "segm"]

AREAS = ("all", "small", "medium", "large")
_CATEGORY = 1  # the library's id of the one category that it is given
_STATE = 6  # fields of the library's result for one image
_PAIR = 1 << 32


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
class ImagePair:
    """One image with its detections; `place` in the order of image ids."""

    place: int
    truth: ImageTruth
    found: ImageDetections


@cache
def thresholds() -> Array:
    """IoU thresholds [T]."""
    from faster_coco_eval.core.cocoeval import Params

    return np.asarray(Params("bbox").iouThrs)


@cache
def area_ranges() -> Array:
    """Smallest and largest area [A, 2] of each range, square pixels, both inside."""
    from faster_coco_eval.core.cocoeval import Params

    params = Params("bbox")
    assert tuple(params.areaRngLbl) == AREAS
    return np.asarray(params.areaRng, np.float64)


def inside_ranges(area: Array) -> Flags:
    """Whether each area [n] is in each range: [n, A]."""
    ranges = area_ranges()
    flags: Flags = (area[:, None] >= ranges[:, 0]) & (area[:, None] <= ranges[:, 1])
    return flags


def match_images(images: Sequence[ImagePair], kind: Kind, rules: Rules) -> tuple[Labels, Verdicts]:
    """Labels and verdicts of the detections that count: per image and category the best `caps[-1]`, best first."""
    guesses = _Rows.of([_detected(image, kind) for image in images])
    if rules.drop_empty:
        guesses = guesses.take(guesses.area > 0)
    guesses, rank = _best_first(guesses, rules.caps[-1])
    matched = np.zeros((len(rank), len(AREAS), len(thresholds())), np.bool_)
    ignored = np.repeat((guesses.exempt[:, None] | ~inside_ranges(guesses.area))[:, :, None], len(thresholds()), axis=2)
    objects = _Rows.of([_annotated(image, kind) for image in images])
    both = np.intersect1d(guesses.pair, objects.pair)
    asked = np.flatnonzero(np.isin(guesses.pair, both))
    if len(asked):
        sizes = {image.place: (image.truth.height, image.truth.width) for image in images}
        some = guesses.take(asked), objects.take(np.isin(objects.pair, both))
        matched[asked], ignored[asked] = _ask(*some, both, sizes, kind, rules)
    verdicts = np.empty(len(rank), VERDICT)
    verdicts["image"], verdicts["rank"], verdicts["score"] = guesses.pair // _PAIR, rank, guesses.score
    verdicts["matched"], verdicts["ignored"] = _bits(matched), _bits(ignored)
    return guesses.pair % _PAIR, verdicts


def _bits(flags: Flags) -> NDArray[np.uint8]:
    return np.packbits(flags.reshape(len(flags), -1), axis=1)


# ---------------------------------------------------------------- rows of boxes


@dataclass(frozen=True)
class _Rows:
    """Boxes of several images, [n] each. Objects have no `score` and are not `exempt`, detections are no `crowd`."""

    pair: NDArray[np.int64]
    """Place of the image, times _PAIR, plus the label."""
    boxes: Array
    """[n, 4]"""
    area: Array
    score: Array
    exempt: Flags
    crowd: Flags
    masks: NDArray[np.object_]
    """bytes; None where only boxes are evaluated."""

    @classmethod
    def of(cls, parts: Sequence[_Rows]) -> _Rows:
        """One after another; at least one."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def take(self, rows: NDArray[Any]) -> _Rows:
        """The boxes at `rows`: indices, or flags."""
        return _Rows(*(getattr(self, field.name)[rows] for field in fields(_Rows)))


def _detected(image: ImagePair, kind: Kind) -> _Rows:
    found, count = image.found, len(image.found.labels)
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
    masks, area = _objects(None, count), box_area(boxes)
    if kind == "segm":
        masks = _objects(found.masks, count)
        area = _mask_area(masks, (image.truth.height, image.truth.width))
    nothing = np.zeros(count, np.bool_)
    exempt = nothing if found.exempt is None else found.exempt
    pair = image.place * _PAIR + found.labels.astype(np.int64)
    return _Rows(pair, boxes, area, np.asarray(found.scores, np.float64), exempt, nothing, masks)


def _annotated(image: ImagePair, kind: Kind) -> _Rows:
    truth = image.truth
    known = truth.labels >= 0
    count = int(known.sum())
    boxes = np.asarray(truth.boxes, np.float64).reshape(-1, 4)[known]
    area = box_area(boxes) if truth.area is None else truth.area[known]
    nothing = np.zeros(count, np.bool_)
    crowd = nothing if truth.crowd is None else truth.crowd[known]
    masks = take_masks(truth.masks, np.flatnonzero(known)) if kind == "segm" and truth.masks else None
    pair = image.place * _PAIR + truth.labels[known].astype(np.int64)
    return _Rows(pair, boxes, area, np.zeros(count), nothing, crowd, _objects(masks, count))


def _objects(masks: Sequence[bytes] | None, count: int) -> NDArray[np.object_]:
    column = np.full(count, None, np.object_)
    if masks:
        column[:] = masks
    return column


def _best_first(rows: _Rows, cap: int) -> tuple[_Rows, NDArray[np.int64]]:
    """Rows by pair and falling score, equal ones as they came, and each one's rank in its pair; up to the cap."""
    rows = rows.take(np.lexsort((-rows.score, rows.pair)))
    first, counts = np.unique(rows.pair, return_index=True, return_counts=True)[1:]
    rank = np.arange(len(rows.pair)) - np.repeat(first, counts)
    kept = rank < cap
    return rows.take(kept), rank[kept]


# ---------------------------------------------------------------- the library


def _ask(
    guesses: _Rows,
    objects: _Rows,
    pairs: NDArray[np.int64],
    sizes: dict[int, tuple[int, int]],
    kind: Kind,
    rules: Rules,
) -> tuple[Flags, Flags]:
    """Whether each detection is matched and ignored: [n, A, T]. To the library each pair is an image."""
    from faster_coco_eval import COCO, COCOeval_faster

    number = {pair: i + 1 for i, pair in enumerate(pairs.tolist())}
    base = {
        "info": {},
        "images": _images(guesses, number, sizes),
        "categories": [{"id": _CATEGORY, "name": "category", "frequency": "f"}],
    }
    truth, found = (_annotations(rows, number, sizes, kind) for rows in (objects, guesses))
    for one, score in zip(found, guesses.score.tolist(), strict=True):
        one["score"] = score
    evaluator = COCOeval_faster(
        COCO({**base, "annotations": truth}),
        COCO({**base, "annotations": found}),
        kind,
        lvis_style=rules.exempt,
        separate_eval=True,
        print_function=_silent,
    )
    evaluator.params.maxDets = [rules.caps[-1]]
    evaluator.evaluate()
    return _read_states(evaluator._evalImgs_cpp, guesses)


def _read_states(evaluations: Sequence[Any], guesses: _Rows) -> tuple[Flags, Flags]:
    """Matched and ignored flags [n, A, T] out of the library's results, which go by area range and then by pair.

    An evaluation's state is, for its d detections: matched object or 0 [T * d], (ignored objects' side), scores [d],
    (objects), ignored [T * d], (pairs matched).
    """
    counts = np.unique(guesses.pair, return_counts=True)[1]
    steps = len(thresholds())
    # Where each detection's flags begin in the joined lists, and how far its thresholds are apart.
    begin, apart = np.repeat((np.cumsum(counts) - counts) * steps, counts), np.repeat(counts, counts)
    begin = begin + np.arange(len(apart)) - np.repeat(np.cumsum(counts) - counts, counts)
    where = begin[:, None] + apart[:, None] * np.arange(steps)
    matched, ignored = [], []
    for area in range(len(AREAS)):
        states = [one.__getstate__() for one in evaluations[area * len(counts) : (area + 1) * len(counts)]]
        _check_states(states, counts)
        given = np.fromiter(chain.from_iterable(state[0] for state in states), np.int64, len(apart) * steps)
        passed = np.frombuffer(b"".join(bytes(state[4]) for state in states), np.uint8)
        matched.append(given[where] > 0)
        ignored.append(passed[where] > 0)
    return np.stack(matched, axis=1), np.stack(ignored, axis=1)


def _check_states(states: Sequence[tuple[Any, ...]], counts: NDArray[np.int64]) -> None:
    steps = len(thresholds())
    sizes = [(len(state), len(state[0]), len(state[2]), len(state[4])) for state in states if len(state) == _STATE]
    if sizes != [(_STATE, steps * count, count, steps * count) for count in counts.tolist()]:
        raise RuntimeError(
            "faster-coco-eval: expected the results of an image as versions 1.7 and 1.8 keep them (6 lists, of "
            "detections those of matches, scores and ignored ones), found others; install such a version"
        )


def _images(guesses: _Rows, number: dict[int, int], sizes: dict[int, tuple[int, int]]) -> list[dict[str, Any]]:
    """The federated rule is applied before detections come here, so each pair is one whose detections count."""
    exempt = set(guesses.pair[guesses.exempt].tolist())
    images = []
    for pair, image in number.items():
        height, width = sizes[pair // _PAIR]
        partly = [_CATEGORY] if pair in exempt else []
        size = {"id": image, "height": height, "width": width}
        images.append({**size, "neg_category_ids": [_CATEGORY], "not_exhaustive_category_ids": partly})
    return images


def _annotations(
    rows: _Rows, number: dict[int, int], sizes: dict[int, tuple[int, int]], kind: Kind
) -> list[dict[str, Any]]:
    """COCO's annotations; ids start at 1, since 0 would mean "not matched" to the library."""
    boxes = np.concatenate((rows.boxes[:, :2], rows.boxes[:, 2:] - rows.boxes[:, :2]), axis=1).tolist()
    annotations = []
    columns = zip(rows.pair.tolist(), boxes, rows.area.tolist(), rows.crowd.tolist(), rows.masks, strict=True)
    for i, (pair, box, area, crowd, mask) in enumerate(columns):
        one = {"id": i + 1, "image_id": number[pair], "category_id": _CATEGORY, "bbox": box, "area": area}
        one["iscrowd"] = int(crowd)
        if kind == "segm":
            one["segmentation"] = _mask(mask, sizes[pair // _PAIR])
        annotations.append(one)
    return annotations


def _mask(mask: bytes, size: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size), "counts": mask.decode("ascii")}


def _mask_area(masks: NDArray[np.object_], size: tuple[int, int]) -> Array:
    from faster_coco_eval.core import mask as mask_ops

    return np.asarray(mask_ops.area([_mask(mask, size) for mask in masks]), np.float64) if len(masks) else np.zeros(0)


def _silent(*_: object) -> None:
    pass
