"""Joins the annotation files of a split by image: COCO's and LVIS's instances and captions.

N images of the split, A annotations of one file. Memory while the files are read: about 40 bytes per annotation, and
the ids and file names of all images.
"""

from __future__ import annotations

import json
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from regionclip_core.datasets.image_list import Spool, by_image
from regionclip_core.storage.json_lists import list_entries

Image = dict[str, Any]
_WHOLE = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass
class _File:
    """What one file lists. Entries are numbered in the spool, ids over all files."""

    images: list[tuple[int, int, str | None]] = field(default_factory=list)
    """(entry, id, file name)"""
    annotations: array[int] = field(default_factory=lambda: array("i"))
    """[A] entries."""
    owners: array[int] = field(default_factory=lambda: array("i"))
    """[A] the id of each annotation's image; -1 where it names none."""
    categories: dict[Any, str] = field(default_factory=dict)
    """Name by category id."""
    boxes: Counter[Any] = field(default_factory=Counter)
    """Annotations by category id."""
    captions: int = 0
    """Annotations with a caption."""


def join_annotations(
    urls: Mapping[str, str], file_name: Callable[[Image], str | None], every_image: bool, limit: int | None = None
) -> tuple[Iterator[bytes], dict[str, Any]]:
    """Read annotation files once and join them by image id.

    Args:
        urls: the files by kind (`instances`, `captions`). All images of the first file come first, then those that
            only later ones list.
        file_name: the name of an entry of `images`, by which duplicates are found.
        every_image: False takes the images of the first file only.
        limit: how many images are taken at most.

    Returns:
        A JSON document for each image: {"image": its entry, "duplicate": whether its id or file name has been seen
        before, "shared": whether images of other file names have its id, and for each kind the list of its
        annotations}. And the facts: {"lost": how many annotations of all files are of no image that any file lists,
        "categories": {kind: [[id, name], ...]}, "boxes": {kind: [[category id, annotations], ...]}}.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, not of COCO's form, or a file none of whose annotations is of an image of the split.
    """
    spool = Spool()
    ids: dict[Any, int] = {}
    files = {kind: _read_file(url, spool, ids, file_name) for kind, url in urls.items()}
    for kind, file in files.items():
        if kind == "instances" and not file.categories:
            seen = ", and its annotations have captions: this looks like a captions file" if file.captions else ""
            raise ValueError(f"instances: {urls[kind]} names no `categories`{seen}; give an instances file")
        if kind == "captions" and file.boxes and not file.captions:
            raise ValueError(
                f"captions: none of the {len(file.owners)} annotations of {urls[kind]} has a `caption`, and they have "
                "a `category_id`: this looks like an instances file; give a captions file"
            )

    # One more place than there are ids: -1, the owner of an annotation that names no image, leads there.
    listed = np.zeros(len(ids) + 1, np.bool_)
    position_of = np.full(len(ids) + 1, -1, np.int32)
    chosen: list[tuple[int, int, bool]] = []  # (entry, id, whether it is a duplicate) of each image
    names: set[str | None] = set()
    name_of: dict[int, str | None] = {}  # of the first image of each id
    shared: set[int] = set()  # ids of images of several file names: nobody knows whose the annotations are
    for number, file in enumerate(files.values()):
        for entry, image_id, name in file.images:
            if listed[image_id] or (number > 0 and not every_image):
                continue
            chosen.append((entry, image_id, bool(position_of[image_id] >= 0) or name in names))
            if name_of.setdefault(image_id, name) != name:
                shared.add(image_id)
            if position_of[image_id] < 0:
                position_of[image_id] = len(chosen) - 1
            names.add(name)
        listed[[image_id for _, image_id, _ in file.images]] = True

    lost = 0
    annotations = []
    for kind, file in files.items():
        owners = np.asarray(file.owners, np.int32)
        lost += int(np.count_nonzero(~listed[owners]))
        positions = position_of[owners]
        if len(owners) and not (positions >= 0).any():
            every_id = list(ids)
            images = [one for one, number in ids.items() if position_of[number] >= 0]
            named = list(dict.fromkeys(every_id[number] for number in file.owners[:1000] if number >= 0))
            theirs = f"their `image_id` are {_some(named)}" if named else "they name no `image_id`"
            # Images without a usable id are bad samples, and no sign that the file belongs to another data set.
            if any(isinstance(one, int) for one in images):
                raise ValueError(
                    f"{urls[kind]}: none of its {len(owners)} annotations is of an image of the split: {theirs}, the "
                    f"images' `id` are {_some(images)}; give files that belong together"
                )
        annotations.append((kind.encode(), file.annotations, *by_image(positions, len(chosen))))

    def documents() -> Iterator[bytes]:
        for n, (entry, image_id, duplicate) in enumerate(chosen[:limit]):
            marks = json.dumps({"duplicate": duplicate, "shared": image_id in shared})[1:-1].encode()
            parts = [b'{"image": ', spool.joined([entry])[1:-1], b", ", marks]
            for kind, entries, order, first in annotations:
                mine = [entries[i] for i in order[first[n] : first[n + 1]].tolist()]
                parts.append(b', "%s": %s' % (kind, spool.joined(mine)))
            yield b"".join(parts) + b"}"

    return documents(), {
        "lost": lost,
        "categories": {kind: [*file.categories.items()] for kind, file in files.items()},
        "boxes": {kind: [*file.boxes.items()] for kind, file in files.items()},
    }


def _read_file(url: str, spool: Spool, ids: dict[Any, int], file_name: Callable[[Image], str | None]) -> _File:
    found = _File()
    lists = set()
    for key, text, value in list_entries(url):
        if not text:
            lists.add(key)
        elif key == "images":
            image = value if isinstance(value, dict) else {}
            image_id = ids.setdefault(hashable(image.get("id")), len(ids))
            found.images.append((spool.append(text), image_id, file_name(image)))
        elif key == "annotations":
            named = isinstance(value, dict) and "image_id" in value
            found.owners.append(ids.setdefault(hashable(value["image_id"]), len(ids)) if named else -1)
            found.annotations.append(spool.append(text))
            if isinstance(value, dict) and "category_id" in value:
                found.boxes[hashable(value["category_id"])] += 1
            found.captions += isinstance(value, dict) and "caption" in value
        elif key == "categories":
            if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "id" not in value:
                raise ValueError(f"{url}: expected categories with `id` and `name`, found {str(value)[:200]}")
            category, name = hashable(value["id"]), value["name"]
            if found.categories.setdefault(category, name) != name:
                raise ValueError(
                    f"{url}: the categories {found.categories[category]!r} and {name!r} both have the id {category!r}, "
                    "so that a box of this id may show either; give each category its own id"
                )
    if not {"images", "annotations"} <= lists:
        raise ValueError(f"{url}: expected a COCO annotation file with the lists `images` and `annotations`")
    return found


def _some(values: Sequence[Any]) -> str:
    return ", ".join([repr(value)[:50] for value in values[:5]] + ["..."] * (len(values) > 5))


def whole(value: Any) -> Any:
    """Return a whole number that was written as a float or as text (tables are often exported so) as an int.

    Anything else comes back as it is, "007" too, which is a name.
    """
    is_whole = value.is_integer() if isinstance(value, float) else isinstance(value, str) and _WHOLE.fullmatch(value)
    return int(value) if is_whole else value


def hashable(value: Any) -> Any:
    """Return an id as a key of a dict, whatever JSON value it is; text and number of one value are one id."""
    return whole(value) if isinstance(value, (int, str, float)) else repr(value)
