"""Segmentations as COCO and LVIS write them, brought to one form: COCO's compressed run lengths.

A mask is [height, width] in the pixels of the image; runs go down its columns, zeros first.
"""

from __future__ import annotations

from pycocotools import mask as coco_mask

_FARTHEST = 2.0**20  # pixels; the rasteriser's integers and its memory end somewhere beyond


class BadMask(ValueError):
    """A segmentation that can't be read; the message is the reason."""


def mask_counts(segmentation: object, height: int, width: int) -> bytes:
    """Return the compressed run lengths (`counts`) of one object's mask.

    Args:
        segmentation: polygons `[[x1, y1, x2, y2, ...], ...]`, whose union is taken, or run lengths
            `{"size": [h, w], "counts": ...}`, as a list of numbers or as compressed text.
        height, width: of the image, pixels.

    Raises:
        BadMask: none of these forms, not of the image's size, or no polygon with three corners.
    """
    if isinstance(segmentation, dict):
        size, runs = segmentation.get("size"), segmentation.get("counts")
        if size != [height, width]:
            raise BadMask(f"run lengths are of size {str(size)[:40]}, the image is [{height}, {width}]")
        if isinstance(runs, str):
            runs = _from_text(runs)
        if not isinstance(runs, list) or not all(type(run) is int and run >= 0 for run in runs):
            raise BadMask("run lengths are not whole numbers of at least 0")
        if sum(runs) != height * width:
            raise BadMask(f"run lengths cover {sum(runs)} pixels, the image has {height * width}")
        encoded = coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)
    else:
        if not isinstance(segmentation, list) or not all(isinstance(one, list) for one in segmentation):
            raise BadMask("segmentation is neither a list of polygons nor run lengths")
        for polygon in segmentation:
            if len(polygon) % 2 or not all(type(value) in (int, float) for value in polygon):
                raise BadMask("a polygon is not a list of x, y pairs")
            if not all(abs(value) <= _FARTHEST for value in polygon):
                raise BadMask("a corner of a polygon is not finite, or far outside the image")
        # COCO has a few polygons with fewer corners beside good ones.
        polygons = [[float(value) for value in polygon] for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            raise BadMask("no polygon with three corners")
        encoded = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    counts: bytes = encoded["counts"]
    return counts


def _from_text(text: str) -> list[int]:
    """Return the runs of COCO's compressed text, which pycocotools would read without looking for errors.

    Five bits per character from 48 on, the lowest first; from the fourth run on, differences.
    """
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
