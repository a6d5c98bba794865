"""What detectors found in every image of a split: counts of right and wrong boxes, the pictures worth showing, and
which name an object of a novel category got instead of its own.

The detections are those of `evaluate`'s artifact. A detection counts here if it is among the MOST best of its image
and has a score of at least MIN_SCORE; it is right if it finds an object of its category (`samples.correct`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from regionclip_core.datasets.index import IndexRow, category_ids, read_index_table, rows_of_table, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.report.samples import MATCH_IOU, Box, Detection, correct, objects_of, read_detections
from regionclip_core.storage.records import Folder

MIN_SCORE = 0.3
"""Detections below this score are neither drawn nor counted."""
MOST = 8
"""Detections drawn and counted per image, highest score first."""
_COLUMNS = ("key", "image_id", "boxes", "box_labels", "box_crowd", "neg_labels", "status")


@dataclass(frozen=True)
class Found:
    """What a detector found in one image."""

    drawn: Sequence[Detection]
    """The detections that count, highest score first."""
    right: Sequence[bool]
    """Of each of these."""
    right_novel: int

    @property
    def n_right(self) -> int:
        """Objects found: an object is found once, a second box on it is wrong."""
        return sum(self.right)

    @property
    def n_wrong(self) -> int:
        """Boxes that count and find no object of their name, or one that a better box has found."""
        return len(self.right) - sum(self.right)


NOTHING = Found((), (), 0)


@dataclass(frozen=True)
class Truth:
    """The readable images of a split and their objects; pixels, captions and masks are left out."""

    vocabulary: Vocabulary
    category_ids: Sequence[Any]
    rows: Mapping[int, tuple[int, IndexRow]]
    """Shard and row by image id."""
    objects: Mapping[int, Sequence[tuple[Box, int]]]
    """Objects that count by image id."""

    @property
    def novel(self) -> set[int]:
        """Labels of the novel categories."""
        return set(self.vocabulary.novel_ids)

    def count(self, labels: set[int] | None = None) -> int:
        """Return the number of objects, of these labels or of all."""
        return sum(labels is None or label in labels for found in self.objects.values() for _, label in found)


@dataclass
class Detections:
    """What one detector found in all images of a split."""

    by_image: dict[int, Found] = field(default_factory=dict)
    names: Counter[tuple[int, int | None]] = field(default_factory=Counter)
    """How often an object of a novel label got a label, by both: that of the best detection of any name that overlaps
    it by IoU 0.5, whatever its score; None: there is none."""

    def at(self, image: int) -> Found:
        """Return what was found in an image; the file has no line for one without detections."""
        return self.by_image.get(image, NOTHING)


def read_truth(data: Folder, split: str) -> Truth:
    """Return the images of a split and their objects."""
    rows = {}
    for shard in split_shards(data, (split,)):
        for row in rows_of_table(read_index_table(data, shard, columns=_COLUMNS)):
            if row.ok:
                rows[row.image_id] = shard, row
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    objects = {image: objects_of(row) for image, (_, row) in rows.items()}
    return Truth(vocabulary, category_ids(data, split), rows, objects)


def look_at(
    evaluate: Folder, detector: str, truth: Truth, also: Callable[[int, Sequence[Detection]], None] | None = None
) -> Detections:
    """Read `detections-<detector>.json` once. `also` gets every image's detections, too.

    Raises:
        ValueError: the file is damaged, or has other category ids or images.
    """
    result = Detections()
    for image, found in read_detections(evaluate, detector, truth.category_ids):
        if image not in truth.rows:
            name = evaluate.path(f"detections-{detector}.json")
            raise ValueError(f"{name} has image {image}, which the data doesn't: run the evaluate stage again")
        objects, row = truth.objects[image], truth.rows[image][1]
        counted = [one for one in found if one.score >= MIN_SCORE]
        if row.neg_labels is not None:  # LVIS: of other categories nobody looked whether the image has any
            known = {label for _, label in objects}.union(row.neg_labels.tolist())
            counted = [one for one in counted if one.label in known]
        right = correct(counted[:MOST], objects)
        novel = sum(hit and one.label in truth.novel for one, hit in zip(counted, right, strict=False))
        result.by_image[image] = Found(counted[:MOST], right, novel)
        _count_names(result.names, found, [one for one in objects if one[1] in truth.novel])
        if also is not None:
            also(image, found)
    for image, objects in truth.objects.items():
        if image not in result.by_image:
            _count_names(result.names, [], [one for one in objects if one[1] in truth.novel])
    return result


def _count_names(
    names: Counter[tuple[int, int | None]], found: Sequence[Detection], objects: Sequence[tuple[Box, int]]
) -> None:
    """Count for each object the label of the first, so best, detection on it."""
    if not found or not objects:
        names.update((label, None) for _, label in objects)
        return
    overlap = box_ops.iou(torch.tensor([box for box, _ in objects]), torch.tensor([one.box for one in found]))
    on_object = overlap >= MATCH_IOU
    first, is_found = on_object.int().argmax(dim=1).tolist(), on_object.any(dim=1).tolist()
    for (_, label), best, there in zip(objects, first, is_found, strict=True):
        names[label, found[best].label if there else None] += 1


def choose(images: Sequence[int], worth: Callable[[int], tuple[int, int]], count: int) -> dict[str, list[int]]:
    """Return at most `count` images by what they are examples of: `best`, `middle` and `worst`, none twice.

    About a third of `count` each. In the order of `worth`, falling, and of the image ids where it is equal: the first,
    the last (the last one first), and those in the middle.
    """
    order = sorted(images, key=lambda image: (*(-value for value in worth(image)), image))
    count = min(count, len(order))
    best, worst = order[: (count + 2) // 3], order[len(order) - (count + 1) // 3 :][::-1]
    rest, middle = order[len(best) : len(order) - len(worst)], count // 3
    start = (len(rest) - middle) // 2
    return {"best": best, "middle": rest[start : start + middle], "worst": worst}


def totals(truth: Truth, found: Mapping[str, Detections]) -> list[tuple[str, int, int, int]]:
    """Return name, objects found, novel objects found and wrong boxes of each detector, over all images."""
    return [
        (
            name,
            sum(one.n_right for one in detections.by_image.values()),
            sum(one.right_novel for one in detections.by_image.values()),
            sum(one.n_wrong for one in detections.by_image.values()),
        )
        for name, detections in found.items()
    ]
