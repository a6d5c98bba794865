"""The name that was probably meant by a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """Return at most `most` of `names` that look like `word`, ignoring case, the most similar first.

    `cutoff`: the lowest similarity, 0 to 1 (difflib's ratio).
    """
    by_lower = {name.lower(): name for name in names}
    return [by_lower[near] for near in difflib.get_close_matches(word.lower(), by_lower, n=most, cutoff=cutoff)]


def nearest_hint(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `; nearest: NAME` for the end of a message; empty where nothing is near."""
    near = nearest(word, names, cutoff=cutoff)
    return f"; nearest: {near[0]}" if near else ""
