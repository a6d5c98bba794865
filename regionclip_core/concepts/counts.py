"""How often the captions of a shard have each phrase."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from regionclip_core.storage.tables import PHRASES

if TYPE_CHECKING:  # the merge reads counts without a parser, and spaCy takes 524 MB
    from regionclip_core.concepts.parser import CaptionParser

PARSER_KEY = b"parser"
"""Arrow metadata key of a counts table: the parser that made it, as JSON."""
EXAMPLE_LENGTH = 200
"""Longest example caption, characters."""


@dataclass(slots=True)
class _Count:
    """Counts of one phrase."""

    head: str
    words: int
    example: str
    captions: int = 0
    images: int = 0
    mentions: int = 0
    surfaces: dict[str, int] = field(default_factory=dict)


def count_captions(parser: CaptionParser, images: Iterable[Sequence[str]]) -> pa.Table:
    """Parse and count the captions of many images; `images` yields one sequence of captions per image.

    Returns:
        tables.PHRASES, most captions first, ties by phrase and reason, with the parser in its metadata. A phrase that
        was dropped for two reasons has two rows.
    """
    counts: dict[tuple[str, str | None], _Count] = {}
    groups = list(images)
    parsed = parser.parse(caption for group in groups for caption in group)
    for group in groups:
        in_image: set[tuple[str, str | None]] = set()
        for caption in group:
            in_caption: set[tuple[str, str | None]] = set()
            for phrase in next(parsed):
                key = (phrase.text, phrase.drop_reason)
                count = counts.get(key)
                if count is None:
                    count = counts[key] = _Count(phrase.head, phrase.words, caption[:EXAMPLE_LENGTH])
                count.mentions += 1
                count.surfaces[phrase.surface] = count.surfaces.get(phrase.surface, 0) + 1
                in_caption.add(key)
            for key in in_caption:
                counts[key].captions += 1
            in_image |= in_caption
        for key in in_image:
            counts[key].images += 1
    order = sorted(counts.items(), key=lambda item: (-item[1].captions, item[0][0], item[0][1] or ""))
    surfaces = [sorted(count.surfaces.items(), key=lambda item: (-item[1], item[0])) for _, count in order]
    columns = {
        "phrase": [text for (text, _), _ in order],
        "head": [count.head for _, count in order],
        "n_words": [count.words for _, count in order],
        "n_captions": [count.captions for _, count in order],
        "n_images": [count.images for _, count in order],
        "n_mentions": [count.mentions for _, count in order],
        "surface_forms": [[form for form, _ in forms] for forms in surfaces],
        "surface_counts": [[seen for _, seen in forms] for forms in surfaces],
        "drop_reason": [reason for (_, reason), _ in order],
        "example": [count.example for _, count in order],
    }
    made_by = {PARSER_KEY: json.dumps(parser.description(), sort_keys=True).encode()}
    return pa.Table.from_pydict(columns, schema=PHRASES.with_metadata(made_by))
