"""Masks for the tests: triangles and blobs, which no flip or transposition leaves as they are, and naive coding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pycocotools import mask as coco_mask
from small_artifacts import VOCABULARY

from regionclip_core.datasets.index import index_name, read_index, write_index
from regionclip_core.storage.records import Folder


def triangle(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """uint8[H, W]: the upper left half of a box, cut from its lower left to its upper right corner."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    x0, y0, x1, y1 = (float(v) for v in box)
    inside = (x > x0) & (y > y0) & ((x - x0) / (x1 - x0) + (y - y0) / (y1 - y0) < 1)
    return inside.astype(np.uint8)


def blob(size: tuple[int, int], seed: int) -> np.ndarray:
    """uint8[H, W]: an ellipse with holes somewhere in the image."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    centre, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.2, 0.5, 2) * size
    inside = ((y - centre[0]) / radius[0]) ** 2 + ((x - centre[1]) / radius[1]) ** 2 < 1
    return (inside & (rng.random(size) > 0.1)).astype(np.uint8)


def coded(mask: np.ndarray) -> bytes:
    """COCO's compressed run lengths by pycocotools."""
    counts: bytes = coco_mask.encode(np.asfortranarray(mask))["counts"]
    return counts


def decoded(counts: bytes, size: tuple[int, int]) -> np.ndarray:
    """uint8[H, W]"""
    found: np.ndarray = coco_mask.decode({"size": list(size), "counts": counts})
    return found


def add_masks(data: Folder, split: str) -> None:
    """Give every box of a data artifact its triangle, as the data stage does with `masks: true`."""
    for shard in data.read_json("splits.json")[split]["shards"]:
        rows = [
            replace(row, box_masks=[coded(triangle(box, (row.height, row.width))) for box in row.boxes])
            for row in read_index(data, shard)
        ]
        with data.write(index_name(shard)) as file:
            write_index(file, rows, VOCABULARY.digest)
