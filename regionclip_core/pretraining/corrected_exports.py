"""What people changed in exported labels with Label Studio or CVAT, as a file for `labels.corrections`.

Boxes are xyxy pixels in the original image.
"""

from __future__ import annotations

import csv
import io
import math
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch

from regionclip_core.config.encodings import decode_text
from regionclip_core.ops.boxes import iou
from regionclip_core.pretraining.corrections import (
    MATCH,
    NO_OBJECT,
    Box,
    Correction,
    box_numbers,
    box_text,
    read_corrections,
)
from regionclip_core.storage.folder import Folder, new_file
from regionclip_core.storage.json_lists import top_entries
from regionclip_core.storage.locations import exists, printable, read_location

LIST = "labels.csv"
"""In the folder of exported labels, a line per label."""
LIST_COLUMNS = ("key", "box", "name", "score", "split", "image")
"""The first three are those of `labels.corrections`."""
_FORMS = "Label Studio's export as JSON (.json), or CVAT's annotations.xml in the form CVAT for images 1.1 (.xml)"
_RENAMED, _GONE, _NEW, _SECOND = "renamed", "no object", "new", "left out: a second box on one region"


class NamedBox(NamedTuple):
    """A box with its name."""

    box: Box
    name: str


class ExportedImage(NamedTuple):
    """The labels of one image as they were exported."""

    key: str
    labels: list[NamedBox]


def write_changes(file: str, exported: str, out: str, onto: str | None = None) -> str:
    """Write what people changed to `out`, a new CSV file for `labels.corrections`; return what it is, in words.

    See `changes`. Images that nobody looked at change nothing: in Label Studio those without a submitted annotation, in
    CVAT those that are not in the file.

    Args:
        file: Label Studio's export (.json), or CVAT's (.xml).
        exported: the folder that `regionclip export labels` made: its LIST says what there was before.
        onto: corrections that the exported labels had; those that nothing newer replaces come first in `out`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: it is of another form, or of other images.
    """
    target, before = new_file(out, ".csv"), _read_list(Folder(exported))
    earlier = [] if onto is None else read_corrections(onto)
    meaning = _meanings(before)
    kinds, rows = Counter[str](), list[tuple[str, str, str]]()
    looked_at = set[str]()
    replaced: dict[str, list[tuple[str, NamedBox]]] = {}
    """What is different, by key."""
    for image, boxes in read_corrected(file):
        name = _meant(image, meaning)
        if name is None:
            raise ValueError(
                f"{file}: the image {printable(image)!r} is not in {Folder(exported).path(LIST)}; give the folder that "
                "`regionclip export labels` made these images in with --exported"
            )
        if name in looked_at:
            raise ValueError(f"{file}: the image {printable(image)!r} is there twice; leave one out")
        looked_at.add(name)
        found = replaced[before[name].key] = list(changes(before[name].labels, boxes))
        kinds.update(kind for kind, _ in found)
        rows += [_row(before[name].key, one.box, one.name) for kind, one in found if kind != _SECOND]
    if not looked_at:
        raise ValueError(f"{file}: no image with a submitted annotation; expected {_FORMS}")
    labels = {one.key: one.labels for one in before.values()}
    old = [one for one in earlier if not _is_replaced(one, labels.get(one.key, []), replaced.get(one.key, []))]
    lines = [("key", "box", "name"), *(_row(one.key, one.box, one.name or NO_OBJECT) for one in old), *rows]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    Folder(str(target.absolute().parent)).write_bytes(target.name, text.getvalue().encode())
    what = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common()) or "nothing was changed"
    kept = f", behind {len(old)} of {len(earlier)} earlier ones" if onto is not None else ""
    return f"{len(rows)} corrections in {out} ({what}){kept}; images looked at: {len(looked_at)} of {len(before)}"


def _row(key: str, box: Box, name: str) -> tuple[str, str, str]:
    return key, box_text(box), name


def _is_replaced(earlier: Correction, labels: Sequence[NamedBox], found: Sequence[tuple[str, NamedBox]]) -> bool:
    """Return whether a newer change is about the region of an earlier correction.

    That region was exported by the name that it got, or as no object not at all.

    Args:
        labels: that were exported of its image.
        found: what is different there.
    """
    boxes = [one.box for kind, one in found if kind == _NEW]
    if earlier.name is not None:
        boxes = [one.box for one in labels]
    if not boxes:
        return False
    overlap = iou(torch.tensor([earlier.box]), torch.tensor(boxes))[0]
    nearest = boxes[int(overlap.argmax())]
    return float(overlap.max()) >= MATCH and any(one.box == nearest for _, one in found)


def changes(before: Sequence[NamedBox], after: Sequence[NamedBox]) -> Iterator[tuple[str, NamedBox]]:
    """Yield what is different in an image's labels, each with its kind.

    Boxes belong together from an IoU of MATCH on, those that overlap most first. One with another name gets that name,
    one without a partner is no object, both at the box that was exported. A new box is as it was drawn; but on a region
    that has a name already it is a second one, for which the labels have no place.
    """
    overlap = iou(*(torch.tensor([one.box for one in some]).reshape(-1, 4) for some in (before, after)))
    partner: dict[int, int] = {}
    order = overlap.flatten().argsort(descending=True, stable=True).tolist() if before and after else []
    for place in order:
        old, new = divmod(place, len(after))
        if float(overlap[old, new]) >= MATCH and old not in partner and new not in partner.values():
            partner[old] = new
    for old, one in enumerate(before):
        if old not in partner:
            yield _GONE, NamedBox(one.box, NO_OBJECT)
        elif after[partner[old]].name != one.name:
            yield _RENAMED, NamedBox(one.box, after[partner[old]].name)
    for new, one in enumerate(after):
        if new not in partner.values():
            yield (_SECOND if before and float(overlap[:, new].max()) >= MATCH else _NEW), one


def read_corrected(url: str) -> Iterator[tuple[str, list[NamedBox]]]:
    """Yield the images of a corrected file, by their names there, with their boxes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is of another form.
    """
    ending = posixpath.splitext(url)[1].lower()
    if ending not in (".json", ".xml"):
        unpack = "; unpack the archive" if ending == ".zip" else ""
        raise ValueError(f"{url}: expected {_FORMS}{unpack}")
    if not exists(url):
        raise FileNotFoundError(f"no file {printable(url)}; expected {_FORMS}")
    yield from _label_studio(url) if ending == ".json" else _cvat(url)


def _label_studio(url: str) -> Iterator[tuple[str, list[NamedBox]]]:
    """Yield the tasks that have been looked at; of several people's annotations the last one counts."""
    for number, task in enumerate(top_entries(url), start=1):
        where = f"{url}, task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        if not isinstance(data, dict) or not isinstance(task.get("annotations", []), list):
            raise ValueError(f"{where}: expected `data` and `annotations`; export as JSON, not as JSON-MIN")
        image = data.get("file") or data.get("image")
        done = [one for one in task.get("annotations", []) if isinstance(one, dict) and not one.get("was_cancelled")]
        if not done:
            continue
        if not isinstance(image, str):
            raise ValueError(f"{where}: expected the image in `data.image`, found {str(data)[:100]}")
        results = [one for one in done[-1].get("result") or () if one.get("type") == "rectanglelabels"]
        yield image, [_of_result(one, where) for one in results]


def _of_result(result: Mapping[str, Any], where: str) -> NamedBox:
    """Return a box of Label Studio: percent of the image's sides, turned around its upper left corner by `rotation`."""
    value, names = result.get("value") or {}, (result.get("value") or {}).get("rectanglelabels") or []
    try:
        width, height = float(result["original_width"]), float(result["original_height"])
        x, y, w, h = (float(value[key]) / 100 for key in ("x", "y", "width", "height"))
        angle = math.radians(float(value.get("rotation") or 0))
        [name] = names
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: expected a rectangle with x, y, width, height, original_width, original_height and one name, "
            f"found {str(result)[:200]}"
        ) from error
    x, y, w, h = x * width, y * height, w * width, h * height
    corners = [(w * i * math.cos(angle) - h * j * math.sin(angle), w * i * math.sin(angle) + h * j * math.cos(angle))
               for i in (0, 1) for j in (0, 1)]  # fmt: skip
    across, down = zip(*corners, strict=True)
    return _named((x + min(across), y + min(down), x + max(across), y + max(down)), name, where)


def _cvat(url: str) -> Iterator[tuple[str, list[NamedBox]]]:
    try:
        root = ElementTree.fromstring(read_location(url))
    except ElementTree.ParseError as error:
        raise ValueError(f"{url}: no whole XML file ({error}); expected {_FORMS}") from error
    if root.tag != "annotations" or root.find("image") is None:
        raise ValueError(f"{url}: expected <annotations> with <image>s, found <{root.tag}>; expected {_FORMS}")
    for image in root.iter("image"):
        name, boxes = image.get("name", ""), []
        for box in image.iter("box"):
            sides = " ".join(box.get(key, "") for key in ("xtl", "ytl", "xbr", "ybr"))
            boxes.append(_named(box_numbers(sides), box.get("label"), f"{url}, image {printable(name)!r}"))
        yield name, boxes


def _named(box: Sequence[float] | None, name: Any, where: str) -> NamedBox:
    numbers = box_numbers(" ".join(map(str, box))) if box is not None else None
    if numbers is None or not isinstance(name, str) or not name.strip():
        raise ValueError(f"{where}: expected a box with an area and a name, found {box} and {name!r}")
    return NamedBox(numbers, name.strip())


def _read_list(exported: Folder) -> dict[str, ExportedImage]:
    """Return the labels that were exported, by the name of their image there."""
    if not exported.exists(LIST):
        raise FileNotFoundError(
            f"--exported {exported.url}: no {LIST} there; expected the folder that `regionclip export labels` made"
        )
    where = exported.path(LIST)
    reader = csv.DictReader(io.StringIO(decode_text(exported.read_bytes(LIST), where), newline=""))
    if missing := {"key", "box", "name", "image"} - set(reader.fieldnames or ()):
        raise ValueError(f"{where}: has no column {', '.join(sorted(missing))}; export the labels again")
    found: dict[str, ExportedImage] = {}
    for row in reader:
        one = found.setdefault(row["image"], ExportedImage(row["key"], []))
        one.labels.append(_named(box_numbers(row["box"]), row["name"], f"{where}, line {reader.line_num}"))
    return found


def _meanings(names: Mapping[str, object]) -> dict[str, str | None]:
    """Return the images by their whole names, and by the last parts of these; None where two have the same."""
    found: dict[str, str | None] = {}
    for name in names:
        base = posixpath.basename(name)
        found[base] = None if base in found else name
    return found | {name: name for name in names}


def _meant(image: str, meaning: Mapping[str, str | None]) -> str | None:
    """Return the exported image that a name means; Label Studio puts letters and a dash before uploaded files."""
    base = posixpath.basename(image.replace("\\", "/"))
    return meaning.get(image) or meaning.get(base) or meaning.get(base.partition("-")[2])
