"""A person's corrections of pseudo labels, `labels.corrections`: read, matched with regions, and put into the labels.

R regions of one image, k concepts stored per region. Boxes are xyxy pixels in the original image.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from regionclip_core.config.encodings import decode_text
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.tree import LabelsConfig
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.ops.boxes import iou
from regionclip_core.pretraining.regions import read_regions
from regionclip_core.storage.locations import read_location
from regionclip_core.storage.records import Folder

CORRECTIONS = "corrections.json"
"""`regions`: [shard, key, region, concept id or -1] each; `no_region`: lines whose box is on no region."""
NO_OBJECT = "no object"
_COLUMNS = ("key", "box", "name")
MATCH = 0.5
"""IoU from which on a corrected box means a region."""
Box = tuple[float, float, float, float]
_BY_SHARD = dict[int, dict[str, dict[int, int]]]


@dataclass(frozen=True)
class Correction:
    """One line: the region at `box` shows `name`, or nothing where that is None."""

    line: int
    key: str
    box: Box
    name: str | None


def read_corrections(url: str) -> list[Correction]:
    """Return the lines of a file of corrections.

    The columns `key`, `box` and `name`, in any order, are separated by commas, semicolons or tabs; others are passed
    over. A box is four numbers with spaces or commas between them, in quotes where the file's separator is in it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another header, or lines that are none; names all of them.
    """
    text = decode_text(read_location(url), f"labels.corrections: {url}")
    first = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    header = [name.strip().lower() for name in reader.fieldnames or ()]
    if any(header.count(name) != 1 for name in _COLUMNS):
        wanted = f"expected a header with {', '.join(_COLUMNS)}, once each"
        raise ValueError(f"labels.corrections: {url}: {wanted}, found {header[:10]}")
    reader.fieldnames = header
    found, wrong = [], []
    try:
        for row in reader:
            key, box, name = ((row[column] or "").strip() for column in _COLUMNS)
            numbers = box_numbers(box)
            if row.get(None):  # DictReader's key of further fields
                wrong.append(f"line {reader.line_num}: has more than {len(header)} fields; put the box in quotes")
            elif not key or not name:
                wrong.append(f"line {reader.line_num}: expected a key and a name, or {NO_OBJECT!r} as the name")
            elif numbers is None:
                wrong.append(f"line {reader.line_num}: expected a box as x1 y1 x2 y2, came {box!r:.60}")
            else:
                found.append(Correction(reader.line_num, key, numbers, None if name.lower() == NO_OBJECT else name))
    except csv.Error as error:
        wrong.append(f"line {reader.line_num}: {error}")
    _refuse(url, wrong)
    return found


def box_numbers(text: str) -> Box | None:
    """Return the box in a text, four numbers with spaces or commas between them; None for none, or one of no area."""
    try:
        x1, y1, x2, y2 = map(float, re.split(r"[\s,;]+", text.strip(" []()")))
    except ValueError:
        return None
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 and all(map(math.isfinite, (x1, y1, x2, y2))) else None


def box_text(box: Sequence[float]) -> str:
    """Return a box as `labels.corrections` has it."""
    return " ".join(f"{side:.2f}" for side in box)


def write_corrections(
    out: Folder, data: Folder, regions: Folder, settings: LabelsConfig, concept_of: Mapping[str, int]
) -> None:
    """Find the region of each correction, and write CORRECTIONS into the labels artifact.

    A correction is of the region that overlaps its box most, from an IoU of 0.5 on. Which boxes there are depends on
    other settings, so one without a region is no error: it is written down with its line.

    Args:
        regions: as `read_regions` takes it.
        concept_of: concept ids by name.

    Raises:
        ValueError: a key is in none of the splits, or in several; a name is not in the pool; two lines are of one
            region. Names all of them.
    """
    assert settings.corrections is not None
    url, given = settings.corrections, defaultdict[str, list[Correction]](list)
    for one in read_corrections(url):
        given[one.key].append(one)
    wrong: dict[int, str] = {}  # by line
    for one in (one for several in given.values() for one in several):
        if one.name is not None and one.name not in concept_of:
            hint = nearest_hint(one.name, list(concept_of))
            wrong[one.line] = f"no concept of the pool is called {one.name!r}{hint}"
    corrected: list[tuple[int, str, int, int]] = []
    without: list[dict[str, Any]] = []
    seen: set[str] = set()
    for shard in split_shards(data, settings.splits):
        images = read_index(data, shard)
        if not any(image.key in given for image in images):
            continue
        boxes = read_regions(regions, images, shard, settings).boxes
        for image, own in zip(images, boxes, strict=True):
            line_of: dict[int, int] = {}
            for one in given.get(image.key, ()):
                if image.key in seen:
                    wrong[one.line] = f"the key {one.key!r} is in several of labels.splits"
                    continue
                overlap, region = _nearest(one.box, own)
                if overlap < MATCH:
                    without.append({"line": one.line, "key": one.key, "best_iou": round(overlap, 3)})
                elif (other := line_of.setdefault(region, one.line)) != one.line:
                    wrong[one.line] = f"is of the same region as line {other}"
                else:
                    corrected.append((shard, one.key, region, -1 if one.name is None else concept_of.get(one.name, -1)))
            if image.key in given:
                seen.add(image.key)
    for key in given.keys() - seen:
        for one in given[key]:
            wrong[one.line] = f"no image of {', '.join(settings.splits)} has the key {key!r}"
    _refuse(url, [f"line {line}: {what}" for line, what in sorted(wrong.items())])
    out.write_json(CORRECTIONS, {"regions": corrected, "no_region": sorted(without, key=lambda one: int(one["line"]))})


def _refuse(url: str, wrong: Sequence[str]) -> None:
    if wrong:
        raise ValueError(f"labels.corrections: {url}: {len(wrong)} wrong: {'; '.join(wrong)}")


def _nearest(box: Collection[float], boxes: npt.NDArray[np.float32]) -> tuple[float, int]:
    """Return the highest IoU of a box with boxes [R, 4], and with which; 0 and 0 where there is none."""
    if not len(boxes):
        return 0.0, 0
    overlap = iou(torch.tensor([list(box)]), torch.from_numpy(boxes))[0]
    return float(overlap.max()), int(overlap.argmax())


def corrections_by_shard(labels: Folder) -> _BY_SHARD:
    """Return {shard: {key: {region: concept id, -1 for no object}}}; empty where there are no corrections."""
    found: _BY_SHARD = defaultdict(lambda: defaultdict(dict))
    if labels.exists(CORRECTIONS):
        for shard, key, region, concept in labels.read_json(CORRECTIONS)["regions"]:
            found[shard][key][region] = concept
    return found


def correct(labels: Mapping[str, npt.NDArray[Any]], corrected: Iterable[tuple[int, int]]) -> None:
    """Put corrections into the labels of one image, LABELS's columns as arrays [R, ...]: (region, concept id or -1).

    A corrected concept has the probability 1, and the score. Regions without an object keep the teacher's concepts, at
    score 0, which no threshold keeps.
    """
    for region, concept in corrected:
        labels["score"][region], labels["kept"][region] = float(concept >= 0), concept >= 0
        if concept >= 0:
            labels["concept_id"][region], top = concept, labels["top_concepts"][region]
            top[:] = [concept, *top[top != concept][: len(top) - 1]]
            labels["top_probabilities"][region] = np.arange(len(top)) == 0
            labels["residual_mass"][region] = 0
