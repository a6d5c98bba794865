"""COCO-style (and LVIS) annotation files beside a folder of images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from regionclip_core.checks import clean_box, clean_captions, printable, reasons, unsafe_name
from regionclip_core.config import CocoSplit
from regionclip_core.images import MAX_PIXELS, MIN_SIDE
from regionclip_core.index import WHOLE_FILE, IndexRow
from regionclip_core.locations import absolute, join, read_location, stamp
from regionclip_core.sources import Found, Piece, ShardPlan, Source, even_pieces
from regionclip_core.tars import TarWriter
from regionclip_core.vocabulary import Vocabulary

_MAX_AREA = 2.0**53  # square pixels; a larger or infinite area is no area


class Annotation(NamedTuple):
    """What is kept of one annotation; masks are dropped while parsing, they are nine tenths of the file."""

    image_id: Any
    category_id: Any
    bbox: Any
    area: Any
    iscrowd: Any
    caption: Any


@dataclass
class CocoFile:
    """One parsed annotation file. Entries are as found: nothing is checked yet."""

    images: list[dict[str, Any]]
    annotations: dict[Any, list[Annotation]] = field(default_factory=dict)
    """By image id, in the order of the file."""
    categories: dict[Any, str] = field(default_factory=dict)
    """Name by category id."""


def read_coco(url: str, with_annotations: bool = True) -> CocoFile:
    """Parse an annotation file (instances or captions, COCO or LVIS).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or not of COCO's form.
    """

    def slim(entry: dict[str, Any]) -> Any:
        if "image_id" not in entry:
            entry.pop("segmentation", None)
            return entry
        if not with_annotations:
            return None
        return Annotation(*(entry.get(name) for name in Annotation._fields))

    # An undecodable byte must cost its caption, not the file: it becomes a lone surrogate, refused later.
    text = read_location(url).decode("utf-8", "surrogateescape")
    try:
        body = json.loads(text, object_hook=slim)
    except ValueError as error:
        raise ValueError(f"{url}: not valid JSON ({error}); fetch the file again") from error
    lists = ("images", "annotations")
    if not isinstance(body, dict) or any(not isinstance(body.get(name), list) for name in lists):
        raise ValueError(f"{url}: expected a COCO annotation file with the lists `images` and `annotations`")
    file = CocoFile([entry if isinstance(entry, dict) else {} for entry in body["images"]])
    for one in body["annotations"]:
        if isinstance(one, Annotation):
            file.annotations.setdefault(_hashable(one.image_id), []).append(one)
    for category in body.get("categories") or []:
        if not isinstance(category, dict) or not {"id", "name"} <= set(category):
            raise ValueError(f"{url}: expected categories with `id` and `name`, found {category!r}")
        file.categories[_hashable(category["id"])] = category["name"]
    return file


@dataclass
class _Loaded:
    """Everything of a split, joined by image id."""

    images: list[dict[str, Any]]
    duplicates: set[int]
    """Positions in `images` whose id or file name has been seen before."""
    instances: CocoFile
    captions: CocoFile


class CocoSource(Source):
    """Images listed in instances_*.json, captions_*.json or both, joined by image id.

    Width and height are the file's: opening 118,000 images to ask them is slow, and a reader checks them anyway when
    it decodes. Boxes come from xywh; categories are matched to the vocabulary by name, -1 where it lacks them. An
    image without captions or boxes is kept.
    """

    def __init__(self, name: str, split: CocoSplit, vocabulary: Vocabulary) -> None:
        if split.instances is None and split.captions is None:
            raise ValueError(f"data.splits.{name}: a coco split needs `instances:`, `captions:` or both")
        self._name, self._split, self._vocabulary = name, split, vocabulary
        self._images = absolute(split.images)
        self._loaded: _Loaded | None = None

    def pieces(self, shard_size: int) -> list[Piece]:
        urls = tuple(absolute(url) for url in (self._split.instances, self._split.captions) if url)
        count = _count_images(urls, tuple(stamp(url) for url in urls))
        return even_pieces(min(count, self._split.limit or count), shard_size)

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        loaded = self._load()
        for number in range(plan.piece.start, plan.piece.stop):
            yield self._sample(number, loaded)

    def _load(self) -> _Loaded:
        """Parsed once a worker."""
        if self._loaded is None:
            split = self._split
            instances = read_coco(absolute(split.instances)) if split.instances else CocoFile([])
            captions = read_coco(absolute(split.captions)) if split.captions else CocoFile([])
            names = set(instances.categories.values())
            if split.instances and not names & set(self._vocabulary.names):
                raise ValueError(
                    f"data.splits.{self._name}.instances: none of the categories in {split.instances} "
                    f"({sorted(names)[:5]} ...) is in data.categories ({list(self._vocabulary.names[:5])} ...)"
                )
            images = _merge_images(instances.images, captions.images)
            self._loaded = _Loaded(images, _duplicates(images), instances, captions)
        return self._loaded

    def _sample(self, number: int, loaded: _Loaded) -> Found:
        image = loaded.images[number]
        image_id, name = image.get("id"), _file_name(image)
        problem = _image_problem(image, image_id, name, number in loaded.duplicates)
        if problem is not None:
            # Keys and (negative) ids of bad rows never meet a good one's.
            key = f"{printable(name or '')}#{number}"
            return Found(IndexRow(key, -1 - number, status=problem[0], reason=problem[1]))
        assert name is not None
        kept, bad_captions = clean_captions(a.caption for a in loaded.captions.annotations.get(image_id, ()))
        boxes, bad_boxes = self._boxes(loaded.instances, image)
        row = IndexRow(
            key=name,
            image_id=int(image["id"]),
            url=join(self._images, name),
            size=WHOLE_FILE,
            width=image["width"],
            height=image["height"],
            captions=kept,
            reason=reasons([*bad_captions, *bad_boxes]),
            **boxes,
        )
        return Found(row, ("bad_caption",) * bool(bad_captions) + ("bad_box",) * bool(bad_boxes))

    def _boxes(self, file: CocoFile, image: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """Box columns of the image's row, and why boxes were dropped."""
        ids = {name: i for i, name in enumerate(self._vocabulary.names)}
        boxes, labels, crowd, areas, dropped = [], [], [], [], []
        for one in file.annotations.get(image["id"], ()):
            corners = _corners(one.bbox)
            if corners is None:
                dropped.append("box is not four numbers")
                continue
            if _hashable(one.category_id) not in file.categories:
                dropped.append(f"box of category {one.category_id!r}, which the file does not name")
                continue
            box, problem = clean_box(corners, image["width"], image["height"])
            if box is None:
                dropped.append(f"box dropped: {problem}")
                continue
            boxes.append(box)
            labels.append(ids.get(file.categories[_hashable(one.category_id)], -1))
            crowd.append(bool(one.iscrowd))
            areas.append(one.area if _positive(one.area) else float((box[2] - box[0]) * (box[3] - box[1])))
        return {
            "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
            "box_labels": np.asarray(labels, np.int32),
            "box_crowd": np.asarray(crowd, np.bool_),
            "box_area": np.asarray(areas, np.float32),
        }, dropped


@lru_cache(maxsize=64)
def _count_images(urls: tuple[str, ...], stamps: tuple[str, ...]) -> int:
    """Images of a split. Kept by the files' stamps, since planning asks several times and the files are large."""
    files = [read_coco(url, with_annotations=False).images for url in urls]
    return len(_merge_images(files[0], files[1] if len(files) > 1 else []))


def _merge_images(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All images of the first list, then those of the second whose id the first does not have."""
    known = {_hashable(image.get("id")) for image in first}
    return first + [image for image in second if _hashable(image.get("id")) not in known]


def _duplicates(images: list[dict[str, Any]]) -> set[int]:
    ids: set[Any] = set()
    names: set[str | None] = set()
    found = set()
    for position, image in enumerate(images):
        image_id, name = _hashable(image.get("id")), _file_name(image)
        if image_id in ids or name in names:
            found.add(position)
        ids.add(image_id)
        names.add(name)
    return found


def _file_name(image: dict[str, Any]) -> str | None:
    """`file_name`; in LVIS the last folder and the name of `coco_url`, as train2017/000000000009.jpg."""
    name = image.get("file_name")
    if isinstance(name, str):
        return name
    url = image.get("coco_url")
    return "/".join(url.split("/")[-2:]) if isinstance(url, str) else None


def _image_problem(
    image: dict[str, Any], image_id: object, name: str | None, duplicate: bool
) -> tuple[str, str] | None:
    """(status, reason) of an entry of `images` that can't be used."""
    if not isinstance(image_id, int) or not 0 <= image_id < 2**63 or name is None:
        return "bad_image", f"expected an integer id and a file_name, found {image_id!r} and {name!r}"[:500]
    unsafe = unsafe_name(name)
    if unsafe is not None:
        return "bad_unsafe_member", unsafe
    if duplicate:
        return "bad_duplicate_key", f"second image with id {image_id} or file_name {name!r}"
    width, height = image.get("width"), image.get("height")
    if not isinstance(width, int) or not isinstance(height, int):
        return "bad_image", f"width {width!r} and height {height!r} must be integers"
    if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
        return "bad_image", f"{width} x {height} pixels: each side at least {MIN_SIDE}, at most {MAX_PIXELS} in all"
    return None


def _corners(bbox: object) -> list[float] | None:
    """xywh to xyxy; None if it is not four numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(isinstance(v, (int, float)) for v in bbox):
        return None
    try:
        x, y, w, h = (float(v) for v in bbox)
    except OverflowError:  # JSON integers have no upper end
        return None
    return [x, y, x + w, y + h]


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 < value < _MAX_AREA


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (int, str, float)) else repr(value)
