"""Loads the detection categories, and names alone: from a category or text file, or a COCO or LVIS annotation file."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

from regionclip_core.config.encodings import as_utf_8, decode_text
from regionclip_core.config.nearest import nearest_hint
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.datasets.names import checked_names, names_in
from regionclip_core.datasets.vocabulary import DATA_FOLDER, Vocabulary, clean_lvis_name
from regionclip_core.storage.json_lists import list_entries
from regionclip_core.storage.locations import exists, nearest_file, open_location, read_location

_TAIL = 1 << 22  # bytes of the end in which `categories` is looked for; LVIS's take 0.5 MB
_LISTS = (".json", ".yaml", ".yml")
_FILES = (*_LISTS, ".txt", ".names", ".csv", ".tsv")
GROUPS = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS's `frequency` of a category, and the name of its group."""


def annotation_vocabulary(url: str) -> Vocabulary | None:
    """Return the categories of an annotation file in the order of their ids; None if it has no list `categories`.

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
    is_lvis = any(one is not None for one in given)
    strange = [entry for entry, one in zip(entries, given, strict=True) if is_lvis and one not in GROUPS]
    if strange:
        raise ValueError(f"{url}: expected a `frequency` of r, c or f, found {str(strange[0])[:200]}")
    entry_of: dict[str, Any] = {}
    for entry in entries:
        name = clean_lvis_name(entry["name"]) if is_lvis else entry["name"]
        first = entry_of.setdefault(name, entry)
        if first is not entry:
            raise ValueError(
                f"{url}: the categories {first['id']} ({first['name']!r}) and {entry['id']} ({entry['name']!r}) are "
                f"both called {name!r}; boxes are matched by name, so rename one"
            )
    names = tuple(entry_of)
    if not is_lvis:
        return Vocabulary(names, names)
    groups = {key: tuple(n for n, one in zip(names, given, strict=True) if one == key) for key in GROUPS}
    base = tuple(name for name, one in zip(names, given, strict=True) if one != "r")
    return Vocabulary(names, base, tuple((GROUPS[key], members) for key, members in groups.items()))


def _categories(url: str) -> list[Any] | None:
    """Return the list `categories`; None if the file has none at its top level.

    COCO's file of 450 MB has it at the end, and `status` must not wait for the rest: the end is looked at first.
    """
    with open_location(url) as raw:
        file = as_utf_8(raw, url)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    place = tail.rfind(b'"categories"')
    if place >= 0:
        # After an opening bracket the rest of the file is an object only if the key is at the top level.
        with suppress(ValueError, RecursionError):
            found = json.loads(b"{" + tail[place:])["categories"]
            return found if isinstance(found, list) else None
    elif size <= _TAIL:
        return None
    entries: list[Any] | None = None
    for key, text, value in list_entries(url):
        if key == "categories":
            entries = [*(entries or ()), value] if text else []
        elif entries is not None:
            break  # they are complete
    return entries


def load_categories(spec: str, option: str | None = None) -> Vocabulary:
    """Load the detection categories: `world`, a name under data/ (`coco_ovd`), or a path or URL of a YAML or JSON file.

    A file has `base:` and `novel:` lists, and optionally `order:`, all names in the order of their indices; without
    it, base comes first. Or it is a COCO or LVIS annotation file, see `annotation_vocabulary`. For an `option` of the
    command line, names alone will do: a list, or a file with `names:`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the lists do not fit.
    """
    if spec == "world":
        from regionclip_core.datasets.world.categories import CATEGORIES  # here, since it loads numpy

        return Vocabulary(
            names=tuple(category.name for category in CATEGORIES),
            base=tuple(category.name for category in CATEGORIES if not category.novel),
        )
    url = spec if os.path.splitext(spec)[1] else str(DATA_FOLDER / f"{spec}.yaml")
    if not exists(url):
        known = sorted(file.stem for file in DATA_FOLDER.glob("*.yaml"))
        near = nearest_file(spec) if url == spec else nearest_hint(spec, ["world", *known])
        raise FileNotFoundError(
            f"{option or 'data.categories'}: {spec!r} is not `world`, one of {known}, or a file that is there (looked "
            f"from {os.getcwd()}){near}"
        )
    is_json = url.lower().endswith(".json")
    if is_json and (found := annotation_vocabulary(url)) is not None:
        return found if found.groups or not option else Vocabulary(found.names)
    text = decode_text(read_location(url), url)
    try:
        lists = json.loads(text) if is_json else parse_yaml(text, url)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{url}: not valid JSON: {error}; is the file whole?") from error
    alone = lists if isinstance(lists, list) else lists.get("names") if isinstance(lists, dict) else None
    if option and alone is not None:
        names = list(alone.values()) if isinstance(alone, dict) else alone  # YOLO's {0: cat, 1: dog}
        return Vocabulary.from_json({**({} if lists is alone else lists), "names": checked_names(names, url)})
    if not isinstance(lists, dict) or set(lists) - {"base", "novel", "order"} or "base" not in lists:
        raise ValueError(
            f"{url} must hold the lists base:, novel: and optionally order:, and nothing else, or be a COCO or LVIS "
            f"annotation file with a list `categories`; found {str(lists)[:100]!r}"
        )
    given = {key: [] if lists.get(key) is None else lists[key] for key in ("base", "novel", "order")}
    base, novel, order = (checked_names(names, f"{url}: {key}") for key, names in given.items())
    order = order or base + novel
    if both := sorted(set(base) & set(novel)):
        raise ValueError(f"{url}: {both[:5]} are both base and novel")
    if wrong := sorted(set(order) ^ {*base, *novel}):
        raise ValueError(f"{url}: order: must hold all base and novel names and no other; check {wrong[:5]}")
    return Vocabulary(names=order, base=base)


def read_names(spec: str, option: str) -> Vocabulary:
    """Return the names of a text file, see `names_in`, or of what `load_categories` takes for an option."""
    if not exists(spec) or spec.lower().endswith(_LISTS):
        return load_categories(spec, option)
    return Vocabulary(names_in(decode_text(read_location(spec), spec), spec))


def class_names(value: str, option: str = "--classes") -> tuple[str, ...]:
    """Return the names behind an option: written out, see `names_in`, or of a file or category set.

    It is a file where one is there, where it begins or ends like one, and always behind @. Raises as `read_names`.
    """
    spec, what = os.path.expanduser(value.strip().removeprefix("@")), f"{option} {value[:100]!r}"
    is_file = value.strip().startswith(("@", "./", "../", "/", "~")) or "://" in spec
    is_file = is_file or spec.lower().endswith((*_FILES, "/"))
    is_file = is_file or exists(spec) or exists(str(DATA_FOLDER / f"{spec}.yaml"))
    if is_file and os.path.isdir(spec):
        raise ValueError(f'{what} is a folder; expected "a,b,c", or a file with one name per line')
    names = read_names(spec, option).names if is_file else names_in(value, what)
    if not names:
        raise ValueError(f'{what} names no category; expected "a,b,c", or a file with one name per line')
    return names
