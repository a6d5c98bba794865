"""Concepts of captions in memory: the part of the public door that needs spaCy."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.given_names import read_given
from regionclip_core.concepts.parser import make_parser
from regionclip_core.concepts.pool import build_pool
from regionclip_core.config.tree import ConceptsConfig

Parser = Literal["auto", "spacy", "rules"]
_T = TypeVar("_T")


def parse_captions(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Return the concepts of captions with the number of captions that name each, most frequent first.

    >>> import regionclip_core
    >>> regionclip_core.parse_captions(["A dog chases two red kites.", "Dogs at a traffic light"])
    [('dog', 2), ('kite', 1), ('light', 1), ('traffic light', 1)]

    The built-in rules parse them, as with `concepts.parser: rules`; the stage of the pipeline can also use a trained
    spaCy pipeline, drop rare concepts and merge names.
    """
    counts: Counter[str] = Counter()
    for phrases in make_parser(ConceptsConfig(splits=(), parser="rules")).parse(_listed(captions)):
        counts.update({phrase.text for phrase in phrases if phrase.drop_reason is None})
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


@dataclass(frozen=True)
class ConceptPool:
    """The concepts of captions as the pipeline's `concepts` stage makes them: names in the order of their ids.

    >>> import regionclip_core
    >>> captions = ["A dog chases two red kites.", "Dogs at a traffic light", "A dog in the background"]
    >>> pool = regionclip_core.ConceptPool.from_captions(captions, min_count=2)
    >>> pool.names
    ['dog']
    >>> pool.table.select(["concept", "n_captions"]).to_pylist()
    [{'concept': 'dog', 'n_captions': 3}]
    >>> sorted(set(pool.dropped["reason"].to_pylist()))
    ['below_min_count', 'relational']
    >>> regionclip_core.ConceptPool.from_captions(captions, add=["teapot"], ban=["kite", "light"]).names
    ['dog', 'traffic light', 'teapot']
    """

    table: pa.Table
    """As concepts.parquet: id, concept, counts, surface forms, an example."""
    dropped: pa.Table
    """As dropped.parquet: what was left out, with the reason."""

    @property
    def names(self) -> list[str]:
        """The concepts, most frequent first; of a file of names in its order."""
        names: list[str] = self.table["concept"].to_pylist()
        return names

    @classmethod
    def from_captions(
        cls,
        captions: Iterable[str | Sequence[str]],
        min_count: int = 1,
        max_concepts: int | None = None,
        parser: Parser = "rules",
        *,
        file: str | None = None,
        add: Sequence[str] | str = (),
        ban: Sequence[str] | str = (),
    ) -> Self:
        """Parse captions and build their pool; all are held in memory.

        Args:
            captions: each is of an image of its own; several of one image are a list.
            min_count: captions that have to name a concept.
            max_concepts: concepts that are kept, the most frequent ones; None: all.
            parser: as `concepts.parser`: the built-in rules, or a trained spaCy pipeline that is installed.
            file, add, ban: as `concepts.file`, `concepts.add` and `concepts.ban` (data/README.md): a file of names
                that is the pool; names, or a file of names, that are kept whatever their counts; and never kept.

        Raises:
            FileNotFoundError: if a file of names is not there.
            ValueError: if no concept is left, or given names don't go together.
        """
        settings = {"parser": parser, "min_count": min_count, "max_concepts": max_concepts}
        config = ConceptsConfig.model_validate({"splits": (), **settings, "file": file, "add": add, "ban": ban})
        given = read_given(config)
        caption_parser = make_parser(config, given=given)
        groups = ([one] if isinstance(one, str) else one for one in _listed(captions))
        counts = count_captions(caption_parser, groups)
        dropped = io.BytesIO()
        table, _ = build_pool([counts], config, dropped, names=[*given.synonyms], banned=caption_parser.banned)
        return cls(table, pq.read_table(pa.BufferReader(dropped.getvalue())))


def _listed(captions: Iterable[_T]) -> Iterable[_T]:
    """Return the captions; ValueError for a text, which would be parsed letter by letter."""
    if isinstance(captions, str):
        raise ValueError(f"expected a list of captions, got the text {captions[:100]!r}; write [caption]")
    return captions
