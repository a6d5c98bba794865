"""COCO-style annotation files beside a folder of images, and those of LVIS, which say more.

LVIS is federated: a category is annotated in some images only. An image lists the categories that are known to be
absent from it (`neg_category_ids`) and those of which not every object is annotated (`not_exhaustive_category_ids`);
of a category that it neither lists nor has a box of, nothing is known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from regionclip_core.config.tree import CocoSplit, LvisSplit
from regionclip_core.datasets.annotation_files import Image, hashable, join_annotations, whole
from regionclip_core.datasets.category_match import refuse_near_names, refuse_other_names
from regionclip_core.datasets.cleaning import clean_box, clean_captions, reasons
from regionclip_core.datasets.image_list import ListedSource
from regionclip_core.datasets.images import MAX_PIXELS, MIN_SIDE
from regionclip_core.datasets.index import WHOLE_FILE, IndexRow
from regionclip_core.datasets.source import Piece, ShardPlan
from regionclip_core.datasets.vocabulary import Vocabulary, clean_lvis_name
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.locations import absolute, file_in, printable, unsafe_name
from regionclip_core.storage.tars import TarWriter

_MAX_AREA = 2.0**53  # square pixels; a larger or infinite area is no area
_FARTHEST = 2.0**20  # pixels; farther out the rasteriser overflows or runs out of memory


class CocoSource(ListedSource):
    """Images listed in instances_*.json, captions_*.json or both, joined by image id.

    Width and height come from the file: opening 118,000 images to find them out is slow, and a reader checks them
    anyway when it decodes. Boxes come from xywh; categories are matched to the vocabulary by name, -1 where it lacks
    them. An image without captions or boxes is kept.

    With LVIS, names of categories are cleaned, images that only the captions file lists are left out, and rows have
    `neg_labels` and `not_exhaustive_labels`.
    """

    def __init__(self, name: str, split: CocoSplit | LvisSplit, vocabulary: Vocabulary, scratch: Folder) -> None:
        files = {kind: url for kind in ("instances", "captions") if (url := getattr(split, kind))}
        if not files:
            raise ValueError(f"data.splits.{name}: a coco split needs `instances:`, `captions:` or both")
        super().__init__(name, scratch, " and ".join(f"{kind}: {url}" for kind, url in files.items()))
        self._split, self._vocabulary, self._is_lvis = split, vocabulary, isinstance(split, LvisSplit)
        self._files = {kind: absolute(url) for kind, url in files.items()}
        self._images = absolute(split.images).rstrip("/")
        self._row_of = {label: row for row, label in enumerate(vocabulary.names)}

    def _read_files(self) -> tuple[Iterator[bytes], dict[str, Any]]:
        return join_annotations(self._files, self._file_name, not self._is_lvis, self._split.limit)

    def _file_name(self, image: Image) -> str | None:
        """Return `file_name`, or the last folder and the name of `coco_url`, as train2017/000000000009.jpg.

        LVIS takes its images from two of COCO's folders, which only `coco_url` names; else `file_name` comes first.
        """
        url = image.get("coco_url")
        names = [image.get("file_name"), "/".join(url.split("/")[-2:]) if isinstance(url, str) else None]
        return next((name for name in (reversed(names) if self._is_lvis else names) if isinstance(name, str)), None)

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[IndexRow]:
        categories = self._category_names()
        for number, found in enumerate(self._documents(plan.piece), start=plan.piece.start):
            image = _as_object(found["image"])
            image |= {key: whole(image.get(key)) for key in ("id", "width", "height")}
            name = self._file_name(image)
            problem = _image_problem(image, name, found["duplicate"], found["shared"])
            if problem is not None:
                # No good row has such a key or a negative id.
                key = f"{printable(name or '')}#{number}"
                yield IndexRow(key, -1 - number, status=problem[0], reason=problem[1])
                continue
            assert name is not None
            captions, bad_captions = clean_captions(_as_object(a).get("caption") for a in found.get("captions", ()))
            boxes, bad_boxes, odd_boxes = self._boxes(image, found.get("instances", ()), categories)
            labels, bad_labels = self._image_labels(image, categories) if self._is_lvis else ({}, [])
            lost = {"lost_caption": bad_captions, "lost_box": bad_boxes, "lost_image_labels": bad_labels}
            yield IndexRow(
                key=name,
                image_id=int(image["id"]),
                url=file_in(self._images, name),
                size=WHOLE_FILE,
                width=image["width"],
                height=image["height"],
                captions=captions,
                reason=reasons([*bad_captions, *bad_boxes, *bad_labels, *(why for _, why in odd_boxes)]),
                lost=(*(status for status, why in lost.items() if why), *(kind for kind, _ in odd_boxes)),
                **boxes,
                **labels,
            )

    def category_ids(self) -> dict[str, Any]:
        return {name: number for number, name in self._category_names().items() if name in self._row_of}

    def check(self, first: Piece) -> None:
        self._refuse_shifted_ids()
        self._check_images(self._images, [*islice(self.file_names(first), 20)])

    def file_names(self, piece: Piece) -> Iterator[str]:
        return (self._file_name(_as_object(one["image"])) or "" for one in self._documents(piece))

    def categories(self) -> dict[str, int]:
        boxes = Counter(dict(self._facts["boxes"].get("instances", ())))
        names = self._category_names().items()
        return {name: sum(boxes[key] for key, other in names if other == name) for _, name in names}

    def lost(self, plan: ShardPlan) -> dict[str, int]:
        lost = self._facts["lost"]
        return {"lost_annotations": lost} if lost and plan.piece.ordinal == 0 else {}

    def _category_names(self) -> dict[Any, str]:
        """Return the vocabulary's names by the file's category ids."""
        if "instances" not in self._files:
            return {}
        names = dict(self._facts["categories"]["instances"])
        if self._is_lvis:
            names = {key: clean_lvis_name(name) for key, name in names.items()}
        for name, count in Counter(names.values()).items():
            if count > 1 and name in self._row_of:
                found = [key for key, one in names.items() if one == name]
                raise ValueError(
                    f"{self._split.instances}: the categories {found} are all called {name!r}"
                    f"{' once cleaned' if self._is_lvis else ''}; boxes are matched by name, so rename all but one"
                )
        refuse_near_names(f"data.splits.{self._name}.instances", set(names.values()), self._vocabulary)
        where = f"data.splits.{self._name}.instances: {self._split.instances}"
        refuse_other_names(where, set(names.values()), self._vocabulary)
        return names

    def _refuse_shifted_ids(self) -> None:
        """Raise ValueError if boxes, one in a hundred or more, have the id before the file's first, and none its last.

        The boxes then count their categories from another number than the file, and most have a wrong category.
        """
        ids = [key for key in self._category_names() if isinstance(key, int)] or [0]
        boxes = Counter(dict(self._facts["boxes"].get("instances", ())))
        if boxes[before := min(ids) - 1] * 100 >= boxes.total() > 0 and not boxes[max(ids)]:
            raise ValueError(
                f"data.splits.{self._name}.instances: {boxes[before]} of {boxes.total()} boxes have the category_id "
                f"{before}, and none has {max(ids)}: the ids look shifted by one, as {self._split.instances} names "
                f"{min(ids)} to {max(ids)}. Give each box the `id` of its category"
            )

    def _boxes(
        self, image: Image, annotations: list[Any], categories: dict[Any, str]
    ) -> tuple[dict[str, Any], list[str], list[tuple[str, str]]]:
        """Return the box columns of the image's row, why boxes were dropped, and which are odd: (of ODD_BOXES, why)."""
        boxes, labels, crowd, areas, masks, dropped, odd = [], [], [], [], [], [], []
        for one in map(_as_object, annotations):
            bbox = one.get("bbox")
            four = bbox if isinstance(bbox, list) and len(bbox) == 4 else []
            numbers = [number for value in four if (number := _number(value)) is not None]
            if len(numbers) != 4:
                dropped.append(f"box is not four numbers: {bbox!r:.60}")
                continue
            x, y, w, h = numbers
            category = hashable(one.get("category_id"))
            if category not in categories:
                named = ", ".join([*map(repr, islice(categories, 3)), *["..."] * (len(categories) > 3)])
                dropped.append(
                    f"box of category {category!r:.60}, which the file does not name ({named}); add it to its "
                    "`categories`, or correct the box"
                )
                continue
            box, problem = clean_box((x, y, x + w, y + h), image["width"], image["height"])
            if box is None:
                dropped.append(f"box dropped: {problem}")
                continue
            if self._split.masks:
                try:
                    masks.append(mask_counts(one.get("segmentation"), image["height"], image["width"]))
                except BadMask as error:
                    dropped.append(f"box dropped: {error}")
                    continue
            past = max(-x, -y, x + w - image["width"], y + h - image["height"]) > 1  # more than rounding does
            if past or max(w, h) <= 1:
                size = f"{image['width']} x {image['height']}"
                what = f"reaches past the edge of {size}" if past else "is of a pixel or less"
                shown = ", ".join(f"{number:g}" for number in numbers)
                odd.append(("odd_past_edge" if past else "odd_under_pixel", f"box [{shown}] {what}"))
            boxes.append(box)
            labels.append(self._row_of.get(categories[category], -1))
            crowd.append(bool(whole(one.get("iscrowd"))))
            area = _number(one.get("area"))
            given = area is not None and 0 < area < _MAX_AREA
            areas.append(area if given else float((box[2] - box[0]) * (box[3] - box[1])))
        columns = {
            "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
            "box_labels": np.asarray(labels, np.int32),
            "box_crowd": np.asarray(crowd, np.bool_),
            "box_area": np.asarray(areas, np.float32),
            "box_masks": masks,
        }
        return columns, dropped, odd

    def _image_labels(self, image: Image, categories: dict[Any, str]) -> tuple[dict[str, Any], list[str]]:
        """Return LVIS's columns about the image as a whole, and what was wrong with its lists.

        Categories outside the vocabulary are left out. A missing list counts as empty, and of a list with ids that are
        no category the other ids are kept.
        """
        columns: dict[str, Any] = {}
        problems = []
        lists = {"neg_labels": "neg_category_ids", "not_exhaustive_labels": "not_exhaustive_category_ids"}
        for column, field in lists.items():
            ids = image.get(field)
            if not isinstance(ids, list):
                problems.append(f"{field} is not a list of category ids")
                ids = []
            named = [categories[hashable(one)] for one in ids if hashable(one) in categories]
            if len(named) < len(ids):
                problems.append(f"{field} holds ids that are no category of the file")
            rows = {self._row_of[name] for name in named if name in self._row_of}
            columns[column] = np.array(sorted(rows), np.int32)
        return columns, problems


def _as_object(entry: Any) -> dict[str, Any]:
    """Return an entry of a list; without fields if it is no object."""
    return entry if isinstance(entry, dict) else {}


def _number(value: Any) -> float | None:
    """Return a number, also one written as text; None for anything else."""
    try:
        return float(value) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _image_problem(image: Image, name: str | None, duplicate: bool, shared: bool) -> tuple[str, str] | None:
    """Return (status, reason) of an entry of `images` that can't be used; None if it can."""
    image_id = image.get("id")
    if not isinstance(image_id, int) or not 0 <= image_id < 2**63 or name is None:
        return "bad_image", f"expected an integer id and a file_name, found {image_id!r} and {name!r}"[:500]
    unsafe = unsafe_name(name)
    if unsafe is not None:
        return "bad_unsafe_member", unsafe
    if shared:
        whose = "nobody knows whose its boxes and captions are; give each image an id of its own"
        return "bad_duplicate_key", f"image {name!r} is one of several with the id {image_id}: {whose}"
    if duplicate:
        return "bad_duplicate_key", f"second image with id {image_id} or file_name {name!r}"
    width, height = image.get("width"), image.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        return "bad_image", f"width {width!r} and height {height!r} must be whole numbers"[:500]
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        return "bad_image", f"{width} x {height} pixels: each side at least {MIN_SIDE}, at most {MAX_PIXELS} in all"
    return None


class BadMask(ValueError):
    """A segmentation that can't be read; the message is the reason."""


def mask_counts(segmentation: object, height: int, width: int) -> bytes:
    """Return one object's mask as COCO's compressed run lengths (`counts`), which go down the columns, zeros first.

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
