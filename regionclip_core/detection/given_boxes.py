"""Boxes that people have for their images: COCO's annotations, YOLO's label files, or a table (CSV, Parquet)."""

from __future__ import annotations

import csv
import io
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from regionclip_core.config.encodings import decode_text
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.detection.listed_files import ListedFiles
from regionclip_core.storage.json_lists import list_entries
from regionclip_core.storage.locations import exists, open_location, printable, read_location

SIDES = ("xmin", "ymin", "xmax", "ymax")
_FORMS = (
    "a COCO annotation file (.json), a folder of YOLO's label files, or a table (.csv, .parquet) with the columns "
    f"image, {', '.join(SIDES)} in pixels, and if wanted name"
)


@dataclass
class GivenBoxes:
    """The boxes of one image, in the order of the file."""

    boxes: list[list[float]] = field(default_factory=list)
    """xyxy, in pixels or as shares of the image's sides."""
    names: list[str | None] = field(default_factory=list)
    """What each box shows; None: the file doesn't say."""
    are_shares: bool = False

    def add(self, box: Sequence[float], name: str | None) -> None:
        """Append a box."""
        self.boxes.append([float(side) for side in box])
        self.names.append(name)

    def with_area(self, height: int, width: int) -> tuple[list[list[float]], list[str | None]]:
        """Return the boxes in pixels, xyxy, and their names, for an image of this size; without boxes of no area."""
        scale = (width, height, width, height) if self.are_shares else (1, 1, 1, 1)
        boxes = [[side * by for side, by in zip(box, scale, strict=True)] for box in self.boxes]
        kept = [i for i, (x0, y0, x1, y1) in enumerate(boxes) if x1 > x0 and y1 > y0]
        return [boxes[i] for i in kept], [self.names[i] for i in kept]


def read_boxes(url: str, files: Sequence[str]) -> dict[str, GivenBoxes]:
    """Return boxes by image file, of the image files that a file or folder of boxes names.

    Images are known by their names, and where several images have one name, by as much of the path as is given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: if it is no file of boxes, or has none for these images.
    """
    ending = Path(url).suffix.lower()
    if os.path.isdir(url):
        given = _yolo(Path(url))
    elif not exists(url):
        raise FileNotFoundError(f"--boxes: no file {printable(url)} (looked from {os.getcwd()}); expected {_FORMS}")
    elif ending == ".json":
        given = _coco(url)
    elif ending == ".csv":
        reader = csv.DictReader(io.StringIO(decode_text(read_location(url), url), newline=""))
        given = _rows(url, reader, reader.fieldnames or ())
    elif ending == ".parquet":
        with open_location(url) as file:
            table = pq.ParquetFile(file)
            columns = [name for name in table.schema_arrow.names if name in ("image", "name", *SIDES)]
            given = _rows(url, table.read(columns).to_pylist(), columns)
    else:
        raise ValueError(f"--boxes {printable(url)}: expected {_FORMS}")
    return _of_files(url, given, files)


def _of_files(url: str, given: Mapping[str, GivenBoxes], files: Sequence[str]) -> dict[str, GivenBoxes]:
    listed = ListedFiles(given, endings=not any(one.are_shares for one in given.values()))
    found: dict[str, GivenBoxes] = {}
    for file in files:
        name = listed.meaning(file)
        if name is not None and given[name].boxes:
            found[file] = given[name]
    if not found:
        raise ValueError(
            f"--boxes {url}: none of the {len(files)} images, such as {printable(files[0])}, has boxes there, only "
            f"{', '.join(printable(name) for name in list(given)[:3]) or 'nothing at all'}; images are known by name"
        )
    return found


def _coco(url: str) -> dict[str, GivenBoxes]:
    names: dict[Any, str] = {}
    categories: dict[Any, str] = {}
    of_image: defaultdict[Any, list[tuple[list[float], Any]]] = defaultdict(list)
    for key, text, entry in list_entries(url):
        if not text or not isinstance(entry, dict):
            continue
        if key == "images":  # LVIS's have an address, whose end is the file
            names[entry.get("id")] = str(entry.get("file_name") or entry.get("coco_url") or "")
        elif key == "categories":
            categories[entry.get("id")] = str(entry.get("name"))
        elif key == "annotations":
            x, y, width, height = _numbers(entry.get("bbox"), f"{url}: an annotation's `bbox`", 4)
            of_image[entry.get("image_id")].append(([x, y, x + width, y + height], entry.get("category_id")))
    given: dict[str, GivenBoxes] = {}
    for image, boxes in of_image.items():
        if image not in names:
            raise ValueError(f"{url}: boxes of the image {image!r}, which is not among `images`")
        own = given.setdefault(names[image], GivenBoxes())
        for box, category in boxes:
            own.add(box, categories.get(category))
    return given


def _yolo(folder: Path) -> dict[str, GivenBoxes]:
    names = _yolo_names(folder)
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    given: dict[str, GivenBoxes] = {}
    for file in sorted(labels.rglob("*.txt")):
        if file.name == "classes.txt":
            continue
        own = given.setdefault(file.relative_to(labels).with_suffix("").as_posix(), GivenBoxes(are_shares=True))
        for number, line in enumerate(decode_text(file.read_bytes(), str(file)).splitlines(), start=1):
            if not (words := line.split()):
                continue
            where = f"{file}, line {number}"
            label, *numbers = _numbers(words, where)
            if len(numbers) in (4, 5):  # with a score behind it
                x, y, width, height = numbers[:4]
                box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            elif len(numbers) >= 6 and len(numbers) % 2 == 0:  # corners of a polygon
                box = [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])]
            else:
                raise ValueError(f"{where}: expected a class and a box or polygon, as shares, found {line[:100]!r}")
            if min(box) < -0.5 or max(box) > 1.5:
                raise ValueError(f"{where}: expected shares of the image's sides, 0 to 1, found {line[:100]!r}")
            own.add(box, names.get(int(label)))
    if not given:
        raise ValueError(f"--boxes {folder} holds no label file (.txt); expected {_FORMS}")
    return given


def _yolo_names(folder: Path) -> dict[int, str]:
    """Return the names beside YOLO's label files, by class; none if there are none."""
    if (folder / "classes.txt").is_file():
        lines = decode_text((folder / "classes.txt").read_bytes(), "classes.txt").split("\n")
        return {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    for file in sorted(folder.glob("*.y*ml")):
        content = parse_yaml(decode_text(file.read_bytes(), str(file)), str(file))
        names = content.get("names") if isinstance(content, dict) else None
        if names:
            return {
                int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))
            }
    return {}


def _rows(url: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, GivenBoxes]:
    if missing := [name for name in ("image", *SIDES) if name not in columns]:
        raise ValueError(f"--boxes {url}: it has no column {', '.join(missing)}, but {list(columns)[:8]}")
    given: dict[str, GivenBoxes] = {}
    for number, row in enumerate(rows, start=1):
        box = _numbers([row[side] for side in SIDES], f"{url}, row {number}", 4)
        given.setdefault(str(row["image"]), GivenBoxes()).add(box, row.get("name") or None)
    return given


def _numbers(values: Any, where: str, count: int | None = None) -> list[float]:
    """Return finite numbers; ValueError, which begins with `where`, for others, or another number of them."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)) or count not in (None, len(numbers)):
        raise ValueError(f"{where}: expected {count or 'only'} numbers, found {str(values)[:100]}")
    return numbers
