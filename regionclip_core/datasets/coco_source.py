"""COCO-style annotation files beside a folder of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np

from regionclip_core.config.tree import CocoSplit, LvisSplit
from regionclip_core.datasets.annotation_scan import AnnotationScan, EntryReader, Image, hashable, scan_annotations
from regionclip_core.datasets.cleaning import clean_box, clean_captions, reasons
from regionclip_core.datasets.images import MAX_PIXELS, MIN_SIDE
from regionclip_core.datasets.index import WHOLE_FILE, IndexRow
from regionclip_core.datasets.segmentations import BadMask, mask_counts
from regionclip_core.datasets.source import Found, Piece, ShardPlan, Source, even_pieces
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.locations import absolute, join, printable, unsafe_name
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tars import TarWriter

_MAX_AREA = 2.0**53  # square pixels; a larger or infinite area is no area


class CocoSource(Source):
    """Images listed in instances_*.json, captions_*.json or both, joined by image id.

    Width and height are the file's: opening 118,000 images to ask them is slow, and a reader checks them anyway when
    it decodes. Boxes come from xywh; categories are matched to the vocabulary by name, -1 where it lacks them. An
    image without captions or boxes is kept.
    """

    caption_images = True
    """Whether images that only the captions file lists belong to the split."""

    def __init__(
        self, name: str, split: CocoSplit | LvisSplit, vocabulary: Vocabulary, scratch: Folder | None = None
    ) -> None:
        """`scratch` is a folder for what was found by scanning the files, which is slow."""
        if split.instances is None and split.captions is None:
            raise ValueError(f"data.splits.{name}: a coco split needs `instances:`, `captions:` or both")
        self._name, self._split, self._vocabulary, self._scratch = name, split, vocabulary, scratch
        self._images = absolute(split.images)
        self._row_of = {label: row for row, label in enumerate(vocabulary.names)}
        self._kinds = [kind for kind in ("instances", "captions") if getattr(split, kind)]
        self._urls = [absolute(getattr(split, kind)) for kind in self._kinds]
        self._reader = EntryReader(self._urls)  # of all shards: a remote file is copied once a worker
        self._scan: AnnotationScan | None = None

    def pieces(self, shard_size: int) -> list[Piece]:
        count = len(self._scanned())
        if count == 0:
            files = " and ".join(f"{kind}: {getattr(self._split, kind)}" for kind in self._kinds)
            raise ValueError(f"data.splits.{self._name}: no images are listed in {files}; give other files or drop it")
        return even_pieces(min(count, self._split.limit or count), shard_size)

    def samples(self, plan: ShardPlan, store: TarWriter | None) -> Iterator[Found]:
        scan = self._scanned()
        categories = self._category_names(scan)
        read = self._reader.read
        for number in range(plan.piece.start, plan.piece.stop):
            (image,) = read(int(scan.image_file[number]), scan.images, number, number + 1)
            annotations: dict[str, Iterator[Any]] = {
                kind: map(_as_object, read(i, scan.annotations[i], *scan.first[i][number : number + 2].tolist()))
                for i, kind in enumerate(self._kinds)
            }
            yield self._sample(number, image, bool(scan.duplicates[number]), annotations, categories)

    def lost(self, plan: ShardPlan) -> dict[str, int]:
        found = self._scanned().lost
        return {"lost_annotations": found} if found and plan.piece.ordinal == 0 else {}

    def _scanned(self) -> AnnotationScan:
        """Once a run, by whoever asks first: the driver, when it counts the images."""
        if self._scan is None and self._scratch is not None:
            self._scan = AnnotationScan.load(self._scratch, quote(self._name, safe=""))
        if self._scan is None:
            self._scan = scan_annotations(self._urls, self._file_name, self.caption_images)
            if self._scratch is not None:
                self._scan.save(self._scratch, quote(self._name, safe=""))
        return self._scan

    def _category_names(self, scan: AnnotationScan) -> dict[Any, str]:
        """The vocabulary's names by the file's category ids."""
        if "instances" not in self._kinds:
            return {}
        found = scan.categories[self._kinds.index("instances")]
        names = {key: self._category_name(name) for key, name in found.items()}
        if not set(names.values()) & set(self._row_of):
            raise ValueError(
                f"data.splits.{self._name}.instances: none of the categories in {self._split.instances} "
                f"({sorted(set(names.values()))[:5]} ...) is in data.categories "
                f"({list(self._vocabulary.names[:5])} ...)"
            )
        return names

    def _sample(
        self,
        number: int,
        image: Any,
        duplicate: bool,
        annotations: dict[str, Iterator[Any]],
        categories: dict[Any, str],
    ) -> Found:
        image = _as_object(image)
        name = self._file_name(image)
        problem = _image_problem(image, image.get("id"), name, duplicate)
        if problem is not None:
            # Keys and (negative) ids of bad rows never meet a good one's.
            key = f"{printable(name or '')}#{number}"
            return Found(IndexRow(key, -1 - number, status=problem[0], reason=problem[1]))
        assert name is not None
        captions, bad_captions = clean_captions(one.get("caption") for one in annotations.get("captions", ()))
        boxes, bad_boxes = self._boxes(image, annotations.get("instances", iter(())), categories)
        labels, bad_labels = self._image_labels(image, categories)
        row = IndexRow(
            key=name,
            image_id=int(image["id"]),
            url=join(self._images, name),
            size=WHOLE_FILE,
            width=image["width"],
            height=image["height"],
            captions=captions,
            reason=reasons([*bad_captions, *bad_boxes, *bad_labels]),
            **boxes,
            **labels,
        )
        lost = {"lost_caption": bad_captions, "lost_box": bad_boxes, "lost_image_labels": bad_labels}
        return Found(row, tuple(status for status, why in lost.items() if why))

    def _boxes(
        self, image: Image, annotations: Iterator[Any], categories: dict[Any, str]
    ) -> tuple[dict[str, Any], list[str]]:
        """Box columns of the image's row, and why boxes were dropped."""
        boxes, labels, crowd, areas, masks, dropped = [], [], [], [], [], []
        for one in annotations:
            corners = _corners(one.get("bbox"))
            if corners is None:
                dropped.append("box is not four numbers")
                continue
            category = hashable(one.get("category_id"))
            if category not in categories:
                dropped.append(f"box of category {category!r}, which the file does not name")
                continue
            box, problem = clean_box(corners, image["width"], image["height"])
            if box is None:
                dropped.append(f"box dropped: {problem}")
                continue
            if self._split.masks:
                try:
                    masks.append(mask_counts(one.get("segmentation"), image["height"], image["width"]))
                except BadMask as error:
                    dropped.append(f"box dropped: {error}")
                    continue
            boxes.append(box)
            labels.append(self._row_of.get(categories[category], -1))
            crowd.append(bool(one.get("iscrowd")))
            area = one.get("area")
            areas.append(area if _positive(area) else float((box[2] - box[0]) * (box[3] - box[1])))
        return {
            "boxes": np.asarray(boxes, np.float32).reshape(-1, 4),
            "box_labels": np.asarray(labels, np.int32),
            "box_crowd": np.asarray(crowd, np.bool_),
            "box_area": np.asarray(areas, np.float32),
            "box_masks": masks,
        }, dropped

    def _file_name(self, image: Image) -> str | None:
        """`file_name`; where there is none, what `coco_url` ends with, folder included."""
        name = image.get("file_name")
        return name if isinstance(name, str) else url_name(image)

    def _category_name(self, name: str) -> str:
        """The vocabulary's name for a category of the file."""
        return name

    def _image_labels(self, image: Image, categories: dict[Any, str]) -> tuple[dict[str, Any], list[str]]:
        """Columns about categories of the image as a whole, and what was wrong with them: COCO has none."""
        return {}, []


def _as_object(entry: Any) -> dict[str, Any]:
    """An entry of a list; without fields if it is no object, or one nested too deep to be read."""
    return entry if isinstance(entry, dict) else {}


def url_name(image: Image) -> str | None:
    """The last folder and the name of `coco_url`, as train2017/000000000009.jpg."""
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
