"""The name that was meant by a misspelt one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, names: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """At most `most` of `names` that look like `word`, whatever their case, the most similar first.

    `cutoff`: the least similarity, 0 to 1 (difflib's ratio).
    """
    by_lower: dict[str, list[str]] = {}
    for name in names:
        by_lower.setdefault(name.lower(), []).append(name)
    close = difflib.get_close_matches(word.lower(), by_lower, n=most, cutoff=cutoff)
    return [name for lower in close for name in by_lower[lower]][:most]


def nearest_hint(word: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`; nearest: NAME`, to end a message with; empty where nothing is near."""
    near = nearest(word, names, cutoff=cutoff)
    return f"; nearest: {near[0]}" if near else ""
