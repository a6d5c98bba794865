"""Which names of `data.categories` the annotation files have, and which of their categories are in neither set."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from regionclip_core.config.nearest import nearest
from regionclip_core.datasets.vocabulary import Vocabulary


def refuse_near_names(where: str, names: Collection[str], vocabulary: Vocabulary) -> None:
    """Raise ValueError if a file's category differs from a name that the file lacks only in case, spaces, _ and -.

    Boxes are matched by name, so all boxes of this category would be in neither set.

    Args:
        where: the key of the config that names the file.
        names: the file's categories.
    """
    lacking = {_plain(name): name for name in vocabulary.names if name not in names}
    others = sorted(set(names) - set(vocabulary.names))
    if meant := [f"{lacking[_plain(name)]!r} for {name!r}" for name in others if _plain(name) in lacking]:
        raise ValueError(
            f"{where}: {vocabulary.source} has {_listed(meant)}. They differ only in case or spaces, and boxes are "
            "matched by name: write the names as the annotation file has them"
        )


def refuse_other_names(where: str, names: Collection[str], vocabulary: Vocabulary) -> None:
    """Raise ValueError if none of a file's categories, `names`, is in the vocabulary; `where` names the file."""
    if set(names) & set(vocabulary.names):
        return
    near = _listed([f"{one!r} for {name!r}" for name in sorted(names) for one in nearest(name, vocabulary.names)])
    raise ValueError(
        f"{where}: none of its categories ({_listed([*map(repr, sorted(names))])}) is in {vocabulary.source} "
        f"({_listed([*map(repr, vocabulary.names)])}). Boxes are matched by name: give the category file of this data "
        f"set, or write its names as the annotation file has them{f'; nearest: {near}' if near else ''}"
    )


def unmatched(boxes: Mapping[str, int], vocabulary: Vocabulary) -> dict[str, Any]:
    """Return what doesn't match, for a stage's summary; empty where all names do, or nothing is annotated.

    `not_annotated` has the names of the vocabulary that no file has, each with the nearest name of the files or null;
    `in_neither_set` the files' other categories with their numbers of boxes; `notes` both as sentences.

    boxes: numbers of boxes by category, of all annotation files.
    """
    spare = sorted(set(boxes) - set(vocabulary.names))
    others = {name: boxes[name] for name in spare if boxes[name]}
    lacking = [name for name in vocabulary.names if boxes and name not in boxes]
    absent = {name: next(iter(nearest(name, spare)), None) for name in lacking}
    shown = [f"{name!r}" + (f" (nearest: {near!r})" if near else "") for name, near in absent.items()]
    notes = [f"no annotation file has these names of data.categories: {_listed(shown)}"] if absent else []
    if others:
        counted = _listed([f"{name!r} ({count})" for name, count in others.items()])
        notes.append(f"{sum(others.values())} boxes are of categories that are neither base nor novel: {counted}")
    found = {"not_annotated": absent, "in_neither_set": others, "notes": notes}
    return {key: value for key, value in found.items() if value}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _listed(shown: list[str]) -> str:
    return ", ".join(shown[:10]) + (f" and {len(shown) - 10} more" if len(shown) > 10 else "")
