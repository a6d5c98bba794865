"""Segmentations as COCO and LVIS write them, brought to one form: COCO's compressed run lengths.

A mask is [height, width] in the pixels of the image; runs go down its columns, zeros first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_FARTHEST = 2.0**20  # pixels; corners beyond overflow the rasteriser's integers
_LONGEST_OUTLINE = 2.0**22  # pixels; the rasteriser's memory follows it


class BadMask(ValueError):
    """A segmentation that can't be read; the message is the reason."""


def mask_counts(segmentation: object, height: int, width: int) -> bytes:
    """The compressed run lengths (`counts`) of one object's mask.

    Args:
        segmentation: polygons `[[x1, y1, x2, y2, ...], ...]`, whose union is taken, or run lengths
            `{"size": [h, w], "counts": ...}`, as a list of numbers or as compressed text.
        height, width: of the image, pixels.

    Raises:
        BadMask: none of these forms, not of the image's size, or no polygon with three corners.
    """
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, dict):
        runs = _runs(segmentation, height, width)
        encoded = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    else:
        encoded = coco_mask.merge(coco_mask.frPyObjects(_polygons(segmentation), height, width))
    counts: bytes = encoded["counts"]
    return counts


def _polygons(segmentation: object) -> list[list[float]]:
    """The polygons with at least three corners: COCO has a few with fewer beside good ones."""
    if not isinstance(segmentation, list) or not all(isinstance(one, list) for one in segmentation):
        raise BadMask("segmentation is neither a list of polygons nor run lengths")
    kept = []
    for polygon in segmentation:
        if len(polygon) % 2 or not all(type(value) in (int, float) for value in polygon):
            raise BadMask("a polygon is not a list of x, y pairs")
        if len(polygon) >= 6:
            kept.append(_drawable(polygon))
    if not kept:
        raise BadMask("no polygon with three corners")
    return kept


def _drawable(polygon: list[Any]) -> list[float]:
    try:
        corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    except OverflowError:  # JSON integers have no upper end
        corners = np.full((1, 2), np.inf)
    if not (np.abs(corners) <= _FARTHEST).all():
        raise BadMask("a corner of a polygon is not finite, or far outside the image")
    if np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum() > _LONGEST_OUTLINE:
        raise BadMask(f"the outline of a polygon is longer than {_LONGEST_OUTLINE:.0f} pixels")
    return [float(value) for value in polygon]


def _runs(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise BadMask(f"run lengths are of size {str(size)[:40]}, the image is [{height}, {width}]")
    runs = _from_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
        raise BadMask("run lengths are not whole numbers of at least 0")
    if sum(runs) != height * width:
        raise BadMask(f"run lengths cover {sum(runs)} pixels, the image has {height * width}")
    return runs


def _from_text(text: str) -> list[int]:
    """COCO's text form: 5 bits a character from 48 on, the lowest first; from the fourth run on, differences."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 50:
            raise BadMask("compressed run lengths can't be read")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise BadMask("compressed run lengths end early")
    return runs
