"""A small data set in LVIS's layout: images, and an annotation file with everything that LVIS has over COCO.

Objects are coloured polygons on dark noise, one colour per category, so that a test can read off the pixels what an
annotation must say. The ground truth is a function of the seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

CATEGORIES = (
    (3, "aerosol_can", "f"),
    (7, "bow_(decorative_ribbons)", "c"),
    (12, "cat", "f"),
    (20, "hot_dog", "r"),
    (21, "drum_(musical_instrument)", "c"),
    (44, "T-shirt", "r"),
)
"""(id, name as LVIS writes it, frequency): ids have gaps, the file lists them in another order."""
NAMES = ("aerosol can", "bow decorative ribbons", "cat", "hot dog", "drum musical instrument", "T-shirt")
"""Cleaned, in the order of the ids."""
BASE = ("aerosol can", "bow decorative ribbons", "cat", "drum musical instrument")
COLOURS = ((230, 40, 40), (40, 220, 40), (60, 60, 240), (230, 220, 40), (220, 60, 220), (60, 220, 220))
_SHARES = (0.6, 0.3, 0.5, 0.15, 0.3, 0.15)  # how often an image holds a category


@dataclass(frozen=True)
class LvisSample:
    """What `write_lvis` wrote."""

    images: Path
    """The root to give as `images:`; it holds train2017/ and val2017/."""
    instances: Path
    captions: Path
    """COCO's captions file of the same images."""
    body: dict[str, Any]
    """The content of `instances`."""

    def split(self, **settings: Any) -> dict[str, Any]:
        """An entry of `data.splits`, as plain YAML values."""
        return {"source": "lvis", "images": str(self.images), "instances": str(self.instances), **settings}


def write_lvis(
    folder: Path | str,
    images: int = 12,
    *,
    name: str = "lvis_v1_train",
    subfolder: str = "train2017",
    size: tuple[int, int] = (64, 96),
    seed: int = 0,
) -> LvisSample:
    """Write `<folder>/<subfolder>/*.png`, `<folder>/<name>.json` and `<folder>/captions_<name>.json`.

    Every category occurs at least once where there are six images or more. About half of the categories that an image
    lacks are in its `neg_category_ids`, every fourth one that it has is in `not_exhaustive_category_ids`.

    Args:
        size: (height, width) of the images, pixels.
    """
    root = Path(folder)
    (root / subfolder).mkdir(parents=True, exist_ok=True)
    body: dict[str, Any] = {"info": {"year": 2026}, "annotations": [], "images": [], "licenses": []}
    captions = []
    for number in range(images):
        rng = np.random.default_rng([seed, number])
        image_id = 100 + 7 * number
        held = _categories_of(number, rng)
        canvas = Image.fromarray(rng.integers(0, 40, (*size, 3)).astype(np.uint8))
        for row in held:
            for _ in range(rng.integers(1, 3)):
                entry = _object(rng, size)
                polygons = entry["segmentation"]
                for polygon in polygons:
                    ImageDraw.Draw(canvas).polygon([*zip(polygon[::2], polygon[1::2], strict=True)], COLOURS[row])
                number_of = len(body["annotations"]) + 1
                body["annotations"].append(
                    {"id": number_of, "image_id": image_id, "category_id": CATEGORIES[row][0], **entry}
                )
        file = f"{subfolder}/{image_id:012d}.png"
        canvas.save(root / file)
        body["images"].append(_image(image_id, file, size, held, rng))
        captions.append({"id": number, "image_id": image_id, "caption": f"a picture of a {NAMES[held[0]]}"})
    order = np.random.default_rng(seed).permutation(len(CATEGORIES))
    body["categories"] = [_category(CATEGORIES[row], body) for row in order]
    instances, captions_file = root / f"{name}.json", root / f"captions_{name}.json"
    instances.write_text(json.dumps(body))
    named = [{**image, "file_name": image["coco_url"].rsplit("/", 1)[1]} for image in body["images"]]
    captions_file.write_text(json.dumps({"images": named, "annotations": captions}))
    return LvisSample(root, instances, captions_file, body)


def _categories_of(number: int, rng: np.random.Generator) -> list[int]:
    """Rows of the categories in an image; image number i has category i modulo 6."""
    drawn = rng.random(len(CATEGORIES)) < _SHARES
    drawn[number % len(CATEGORIES)] = number < len(CATEGORIES) or drawn[number % len(CATEGORIES)]
    return [row for row in range(len(CATEGORIES)) if drawn[row]] or [0]


def _object(rng: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
    """One object of one polygon or, one time in four, of two: its segmentation, xywh box and area."""
    height, width = size
    radius = rng.uniform(0.1, 0.22) * min(size)
    centre = rng.uniform([radius, radius], [width - radius, height - radius])
    polygons = [_polygon(rng, centre, radius, size)]
    if rng.random() < 0.25:
        polygons.append(_polygon(rng, centre + np.array([radius, 0]), radius / 2, size))
    corners = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
    (x1, y1), (x2, y2) = corners.min(0), corners.max(0)
    return {
        "bbox": [round(float(v), 2) for v in (x1, y1, x2 - x1, y2 - y1)],
        "area": round(sum(_area(polygon) for polygon in polygons), 2),
        "segmentation": polygons,
    }


def _polygon(rng: np.random.Generator, centre: np.ndarray, radius: float, size: tuple[int, int]) -> list[float]:
    """A star-shaped polygon of five to eight corners around the centre, inside the image."""
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(5, 9)), endpoint=False)
    spokes = rng.uniform(0.7, 1.0, len(angles)) * radius
    corners = centre + np.stack([np.cos(angles) * spokes, np.sin(angles) * spokes], 1)
    return np.clip(corners, 0, [size[1] - 1, size[0] - 1]).round(2).reshape(-1).tolist()


def _area(polygon: list[float]) -> float:
    x, y = np.reshape(polygon, (-1, 2)).T
    return abs(float(np.sum(x * np.roll(y, 1) - y * np.roll(x, 1)))) / 2


def _image(
    image_id: int, file: str, size: tuple[int, int], held: list[int], rng: np.random.Generator
) -> dict[str, Any]:
    absent = [row for row in range(len(CATEGORIES)) if row not in held]
    return {
        "id": image_id,
        "height": size[0],
        "width": size[1],
        "coco_url": f"http://images.cocodataset.org/{file}",
        "neg_category_ids": [CATEGORIES[row][0] for row in absent if rng.random() < 0.5],
        "not_exhaustive_category_ids": [CATEGORIES[row][0] for row in held if rng.random() < 0.25],
    }


def _category(category: tuple[int, str, str], body: dict[str, Any]) -> dict[str, Any]:
    category_id, name, frequency = category
    found = [one["image_id"] for one in body["annotations"] if one["category_id"] == category_id]
    return {
        "id": category_id,
        "name": name,
        "frequency": frequency,
        "synset": f"{name.split('_')[0].lower()}.n.01",
        "synonyms": [name],
        "def": f"a {name}",
        "image_count": len(set(found)),
        "instance_count": len(found),
    }
