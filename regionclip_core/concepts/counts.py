"""How often the captions of a shard have each phrase."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from regionclip_core.storage.tables import PHRASES

if TYPE_CHECKING:  # the merge reads counts without a parser, and spaCy takes 500 MiB
    from regionclip_core.concepts.parser import CaptionParser
    from regionclip_core.concepts.phrases import Phrase

PARSER_KEY = b"parser"
"""Arrow metadata key of a counts table: the parser that made it, as JSON."""
EXAMPLE_LENGTH = 200
"""Longest example caption, characters."""


@dataclass
class _Count:
    """Counts of one phrase."""

    head: str
    words: int
    example: str
    captions: int = 0
    images: int = 0
    mentions: int = 0
    surfaces: Counter[str] = field(default_factory=Counter)


class ConceptCounts:
    """How often each phrase was seen; a phrase that was dropped for two reasons has two entries."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str | None], _Count] = {}

    def add(self, captions: Sequence[str], phrases: Sequence[Sequence[Phrase]]) -> None:
        """Count one image: its captions, and the phrases of each."""
        in_image: set[tuple[str, str | None]] = set()
        for caption, mentions in zip(captions, phrases, strict=True):
            in_caption: set[tuple[str, str | None]] = set()
            for phrase in mentions:
                key = (phrase.text, phrase.drop_reason)
                count = self._counts.get(key)
                if count is None:
                    count = self._counts[key] = _Count(phrase.head, phrase.words, caption[:EXAMPLE_LENGTH])
                count.mentions += 1
                count.surfaces[phrase.surface] += 1
                if key not in in_caption:
                    in_caption.add(key)
                    count.captions += 1
                    if key not in in_image:
                        in_image.add(key)
                        count.images += 1

    def to_table(self, parser: Mapping[str, Any] | None = None) -> pa.Table:
        """Return tables.PHRASES, most captions first, ties by phrase and reason; `parser` goes into its metadata."""
        rows = []
        order = sorted(self._counts.items(), key=lambda item: (-item[1].captions, item[0][0], item[0][1] or ""))
        for (phrase, reason), count in order:
            surfaces = sorted(count.surfaces.items(), key=lambda item: (-item[1], item[0]))
            rows.append(
                {
                    "phrase": phrase,
                    "head": count.head,
                    "n_words": count.words,
                    "n_captions": count.captions,
                    "n_images": count.images,
                    "n_mentions": count.mentions,
                    "surface_forms": [form for form, _ in surfaces],
                    "surface_counts": [seen for _, seen in surfaces],
                    "drop_reason": reason,
                    "example": count.example,
                }
            )
        made_by = {PARSER_KEY: json.dumps(parser, sort_keys=True).encode()} if parser else None
        return pa.Table.from_pylist(rows, schema=PHRASES.with_metadata(made_by))


def count_captions(parser: CaptionParser, images: Iterable[Sequence[str]]) -> ConceptCounts:
    """Parse and count the captions of many images; `images` yields one sequence of captions per image."""
    counts = ConceptCounts()
    groups = list(images)
    parsed = parser.parse(caption for group in groups for caption in group)
    for group in groups:
        counts.add(group, [next(parsed) for _ in group])
    return counts
