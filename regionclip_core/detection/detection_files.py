"""Detections and labels as the files of other programs: COCO's, YOLO's and Pascal VOC's, CSV, and those of Label
Studio, CVAT and FiftyOne (`annotation_tools.py`).

Nothing slow is imported: what a user can get wrong is checked before torch is loaded.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from regionclip_core.config.nearest import nearest_hint
from regionclip_core.datasets.vocabulary import clean_lvis_name
from regionclip_core.detection.annotation_tools import TOOLS, AnnotationTool
from regionclip_core.detection.listed_files import ListedFiles
from regionclip_core.storage.json_lists import list_entries
from regionclip_core.storage.locations import printable

if TYPE_CHECKING:
    from regionclip_core.detection.results import NamedDetections

FORMATS = ("coco", "yolo", "voc", "csv", *TOOLS)
CSV_COLUMNS = ("image", "name", "score", "xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class CocoIds:
    """Ids of an annotation file, for COCO's results."""

    url: str
    images: dict[str, Any]
    """Image ids by file, as it was named."""
    categories: dict[str, Any]
    """By name; LVIS's also by its cleaned name."""


def check_formats(given: Sequence[str], files: Sequence[str], ids: str | None) -> tuple[str, ...]:
    """Return the formats in values such as `coco,csv`, each once. ValueError if one can't be written for the files."""
    formats = tuple(dict.fromkeys(part.strip() for one in given for part in one.split(",") if part.strip()))
    for one in formats:
        if one not in FORMATS:
            raise ValueError(f"--format {one}: expected some of {', '.join(FORMATS)}{nearest_hint(one, FORMATS)}")
    if ids is not None and "coco" not in formats:
        raise ValueError("--ids are those of COCO's results: give --format coco too, or leave it out")
    by_stem: dict[str, str] = {}
    for file in files if {"yolo", "voc"} & {*formats} else ():
        other = by_stem.setdefault(Path(file).stem, file)
        if other != file:
            raise ValueError(
                f"{printable(other)} and {printable(file)}: YOLO's and VOC's files are called as the image, so both "
                "would be the same file; rename one, search one folder at a time, or take --format coco or csv"
            )
    return formats


def read_ids(url: str, files: Sequence[str]) -> CocoIds:
    """Return the ids that a COCO or LVIS annotation file has for these images, found by their file names.

    Raises:
        FileNotFoundError: no such file.
        ValueError: if an image is not in it, or two are the same one, or it is no annotation file.
    """
    listed: dict[str, Any] = {}
    categories: dict[str, Any] = {}
    for key, text, entry in list_entries(url):
        if not text or not isinstance(entry, dict) or "id" not in entry:
            continue
        if key == "images":  # LVIS's have an address, whose end is the file
            listed[str(entry.get("file_name") or entry.get("coco_url") or "")] = entry["id"]
        elif key == "categories" and isinstance(entry.get("name"), str):
            categories[entry["name"]] = entry["id"]
            if "frequency" in entry:
                categories.setdefault(clean_lvis_name(entry["name"]), entry["id"])
    if not listed or not categories:
        raise ValueError(f"--ids {url}: expected a COCO annotation file with the lists `images` and `categories`")
    names, images = ListedFiles(listed), dict[str, Any]()
    owner: dict[Any, str] = {}
    for file in files:
        name = names.meaning(file)
        if name is None:
            raise ValueError(
                f"--ids {url}: {printable(file)} is not among its `images`, which are known by `file_name`, and where "
                "several have one name, by their folders too"
            )
        images[file] = listed[name]
        if (other := owner.setdefault(images[file], file)) != file:
            raise ValueError(f"--ids {url}: {printable(other)} and {printable(file)} are the same of its `images`")
    return CocoIds(url, images, categories)


@dataclass
class DetectionFiles:
    """Writes formats into a folder, image by image; `close` writes what holds all images.

    coco: `coco-results.json`, and without `ids` the images and categories whose ids it has, `coco-images.json`.
    yolo: `yolo/labels/<image>.txt` with lines "class cx cy w h", shares of the image, and `yolo/data.yaml`.
    voc: `voc/<image>.xml`, whole pixels counted from 1.
    csv: `detections.csv`, boxes in pixels as everywhere.
    label-studio, cvat, fiftyone: see `annotation_tools.py`.

    A data set, whose images are in `images/` of the folder, has its boxes as annotations: in `coco-instances.json`,
    with their scores, in the place of `coco-images.json`; YOLO's in `labels/` beside the images, with `data.yaml`.
    """

    folder: Path
    formats: Sequence[str]
    classes: Sequence[str]
    ids: CocoIds | None = None
    is_data_set: bool = False
    _images: list[dict[str, Any]] = field(default_factory=list)
    _results: list[dict[str, Any]] = field(default_factory=list)
    _rows: list[tuple[Any, ...]] = field(default_factory=list)
    _tools: list[AnnotationTool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tools += [make(self.classes, self.is_data_set) for name, make in TOOLS.items() if name in self.formats]
        if self.ids is not None and (missing := [name for name in self.classes if name not in self.ids.categories]):
            near = nearest_hint(missing[0], list(self.ids.categories))
            raise ValueError(
                f"--ids {self.ids.url}: its `categories` have no {missing[:5]}{near}; look for its names alone "
                "(--classes), or leave out --ids"
            )

    def add(self, file: str, found: NamedDetections, **facts: str) -> None:
        """Write or keep the detections of one image.

        `file`: its path or URL, in a data set from the folder on. `facts`: more to say of it, such as its split, where
        the format has a place for it.
        """
        stem = printable(Path(file).stem)
        if "coco" in self.formats:
            self._add_coco(file, found, facts)
        if "yolo" in self.formats:
            self._write(f"{self._yolo}labels/{stem}.txt", _yolo_lines(found))
        if "voc" in self.formats:
            self._write(f"voc/{stem}.xml", _voc_page(printable(Path(file).name), found))
        if "csv" in self.formats:
            scores, boxes = found.scores.tolist(), found.boxes.tolist()
            for name, score, box in zip(found.names, scores, boxes, strict=True):
                self._rows.append((printable(file), name, f"{score:.6f}", *(f"{side:.2f}" for side in box)))

        for tool in self._tools:
            tool.add(file, found, facts)

    @property
    def _yolo(self) -> str:
        return "" if self.is_data_set else "yolo/"

    def _add_coco(self, file: str, found: NamedDetections, facts: Mapping[str, str]) -> None:
        if self.ids is not None:
            self._results += found.to_coco(self.ids.images[file], self.ids.categories)
            return
        height, width = found.size
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": printable(file), "width": width, "height": height, **facts})
        self._results += found.to_coco(number, {name: row for row, name in enumerate(self.classes, start=1)})

    def close(self) -> None:
        """Write the files that hold all images."""
        if "coco" in self.formats:
            self._write("coco-results.json", json.dumps(self._results))
            if self.ids is None:
                categories = [{"id": row, "name": name} for row, name in enumerate(self.classes, start=1)]
                annotations = [
                    {"id": number, **one, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
                    for number, one in enumerate(self._results if self.is_data_set else (), start=1)
                ]
                listed = {"images": self._images, "annotations": annotations, "categories": categories}
                name = "coco-instances.json" if self.is_data_set else "coco-images.json"
                self._write(name, json.dumps(listed, indent=1))
        if "yolo" in self.formats:
            # Trainers ask for `val`; without boxes that people drew there is none of its own.
            places = "train: images\nval: images\n" if self.is_data_set else ""
            names = json.dumps([*self.classes], ensure_ascii=False)
            self._write(f"{self._yolo}data.yaml", f"{places}names: {names}\n")
        for tool in self._tools:
            for name, text in tool.files():
                self._write(name, text)
        if "csv" in self.formats:
            with (self.folder / "detections.csv").open("w", encoding="utf-8", newline="") as out:
                csv.writer(out, lineterminator="\n").writerows([CSV_COLUMNS, *self._rows])

    def _write(self, name: str, text: str) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _yolo_lines(found: NamedDetections) -> str:
    height, width = found.size
    lines = []
    for label, (x0, y0, x1, y1) in zip(found.labels.tolist(), found.boxes.tolist(), strict=True):
        shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        lines.append(f"{label} " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    return "".join(lines)


def _voc_page(name: str, found: NamedDetections) -> str:
    root = ElementTree.Element("annotation")
    height, width = found.size
    ElementTree.SubElement(root, "filename").text = name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", width), ("height", height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for called, box in zip(found.names, found.boxes.tolist(), strict=True):
        one = ElementTree.SubElement(root, "object")
        for key, text in (("name", called), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            ElementTree.SubElement(one, key).text = text
        # The first and the last pixel of the box, counted from 1; a box of less than a pixel has one.
        x0, y0, x1, y1 = map(round, box)
        sides = (x0 + 1, y0 + 1, max(x1, x0 + 1), max(y1, y0 + 1))
        corners = ElementTree.SubElement(one, "bndbox")
        for key, number in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True):
            ElementTree.SubElement(corners, key).text = str(number)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
