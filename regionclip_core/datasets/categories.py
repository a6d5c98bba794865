"""The categories of a COCO or LVIS annotation file as a vocabulary, without reading the rest of the file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any, BinaryIO

from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.datasets.json_lists import decode_entry, list_entries
from regionclip_core.datasets.vocabulary import DATA_FOLDER, Vocabulary, clean_lvis_name
from regionclip_core.storage.locations import exists, open_location, read_location

_TAIL = 1 << 26  # bytes from the end in which `categories` is looked for before the file is scanned
_FIRST_TAIL = 1 << 20  # LVIS's categories take half of it
_KEY = b'"categories"'
GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS's `frequency` of a category, and what its group is called."""


def annotation_vocabulary(url: str) -> Vocabulary | None:
    """The categories of an annotation file in the order of their ids; None if the file has no list `categories`.

    Where they have a `frequency` (LVIS), names are cleaned, the rare categories are novel, the others base, and the
    groups are `rare`, `common` and `frequent`. Otherwise (COCO) all are base, by the names as they are.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or categories that make no vocabulary.
    """
    entries = _categories(url)
    if entries is None:
        return None
    for entry in entries:
        if not isinstance(entry, dict) or type(entry.get("id")) is not int or not isinstance(entry.get("name"), str):
            raise ValueError(f"{url}: expected categories with an integer `id` and a `name`, found {str(entry)[:200]}")
    entries.sort(key=lambda entry: entry["id"])
    ids = [entry["id"] for entry in entries]
    if not entries or len(set(ids)) < len(ids):
        raise ValueError(f"{url}: expected categories of different ids, found {sorted(ids)[:10]} ...")
    given = [entry.get("frequency") for entry in entries]
    if all(one is None for one in given):
        names = _unique([entry["name"] for entry in entries], entries, url)
        return Vocabulary(names, names)
    strange = [entry for entry in entries if entry.get("frequency") not in GROUPS]
    if strange:
        raise ValueError(f"{url}: expected a `frequency` of r, c or f, found {str(strange[0])[:200]}")
    names = _unique([clean_lvis_name(entry["name"]) for entry in entries], entries, url)
    groups = {key: tuple(n for n, one in zip(names, given, strict=True) if one == key) for key in GROUPS}
    base = tuple(name for name, one in zip(names, given, strict=True) if one != "r")
    return Vocabulary(names, base, tuple((GROUPS[key], members) for key, members in groups.items()))


def _unique(names: list[str], entries: list[Any], url: str) -> tuple[str, ...]:
    first: dict[str, Any] = {}
    for name, entry in zip(names, entries, strict=True):
        if name in first:
            raise ValueError(
                f"{url}: the categories {first[name]['id']} ({first[name]['name']!r}) and {entry['id']} "
                f"({entry['name']!r}) are both called {name!r}; boxes are matched by name, so rename one"
            )
        first[name] = entry
    return tuple(names)


def _categories(url: str) -> list[Any] | None:
    """The list `categories`, looked for from the end of the file, where both data sets have it."""
    with open_location(url) as file:
        size = file.seek(0, os.SEEK_END)
        for wanted in (_FIRST_TAIL, _TAIL):
            tail = _last_bytes(file, size, wanted)
            place = tail.rfind(_KEY)
            if place >= 0 or wanted >= size:
                break
    if place < 0 and wanted >= size:
        return None
    if place >= 0:
        # After an opening bracket the rest of the file is an object only if the key stands at the top level.
        with suppress(ValueError, RecursionError):
            rest = decode_entry(b"{" + tail[place:])
            if isinstance(rest, dict):
                return rest["categories"] if isinstance(rest["categories"], list) else None
    return _from_the_start(url)


def _last_bytes(file: BinaryIO, size: int, wanted: int) -> bytes:
    file.seek(max(0, size - wanted))
    return file.read(wanted)


def _from_the_start(url: str) -> list[Any] | None:
    found: list[Any] | None = None
    for key, value, _, length in list_entries(url):
        if key == "categories":
            if length == 0:
                found = []
            else:
                assert found is not None
                found.append(value)
    return found


def load_categories(spec: str) -> Vocabulary:
    """The detection categories: `world`, a name under data/ (`coco_ovd`), or a path or URL of a YAML or JSON file.

    A file has `base:` and `novel:` lists, and optionally `order:`, all names in the order of their indices; without
    it, base comes first. Or it is a COCO or LVIS annotation file, see `annotation_vocabulary`. FileNotFoundError if
    there is no such file, ValueError if the lists do not fit.
    """
    if spec == "world":
        from regionclip_core.datasets.world.categories import CATEGORIES

        return Vocabulary(
            names=tuple(category.name for category in CATEGORIES),
            base=tuple(category.name for category in CATEGORIES if not category.novel),
        )
    url = spec if os.path.splitext(spec)[1] else str(DATA_FOLDER / f"{spec}.yaml")
    if not exists(url):
        known = sorted(file.stem for file in DATA_FOLDER.glob("*.yaml"))
        raise FileNotFoundError(f"data.categories: {spec!r} is not `world`, one of {known}, or a YAML or JSON file")
    if url.endswith(".json"):
        found = annotation_vocabulary(url)
        if found is not None:
            return found
    return _read_categories(url)


def _read_categories(path: str) -> Vocabulary:
    text = read_location(path).decode("utf-8")
    loaded = json.loads(text) if path.endswith(".json") else parse_yaml(text, path)
    if not isinstance(loaded, dict) or set(loaded) - {"base", "novel", "order"} or "base" not in loaded:
        raise ValueError(
            f"{path} must hold the lists base:, novel: and optionally order:, and nothing else, or be a COCO or LVIS "
            "annotation file with a list `categories`"
        )
    base, novel = tuple(loaded["base"] or ()), tuple(loaded.get("novel") or ())
    order = tuple(loaded.get("order") or base + novel)
    both = sorted(set(base) & set(novel))
    if both:
        raise ValueError(f"{path}: {both[:5]} are both base and novel")
    if set(order) != set(base) | set(novel):
        wrong = sorted(set(order) ^ (set(base) | set(novel)))
        raise ValueError(f"{path}: order: must hold all base and novel names and no other; check {wrong[:5]}")
    return Vocabulary(names=order, base=base)
