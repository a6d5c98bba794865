"""Captions to a concept pool (paper section 3.2).

make_parser(config, protected)      a spaCy pipeline that fills doc.noun_chunks, and the phrase rules behind it
count_captions(parser, images)      -> ConceptCounts, one shard's counts (schemas.PHRASES)

pool.py makes the pool of all shards' counts.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regionclip_core.concepts.phrases import Phrase, PhraseExtractor, class_lemmas, clean, is_foreign, pieces
from regionclip_core.config.tree import ConceptsConfig

if TYPE_CHECKING:
    import pyarrow as pa
    from spacy.language import Language
    from spacy.tokens import Doc

__all__ = [
    "CaptionParser",
    "ConceptCounts",
    "Phrase",
    "count_captions",
    "make_parser",
    "parser_identity",
]

logger = logging.getLogger(__name__)

PARSER_KEY = b"parser"
"""Arrow metadata key of a counts table: the parser that made it, as JSON."""
EXAMPLE_LENGTH = 200
"""Longest example caption, characters."""


# ---------------------------------------------------------------- parsers


class CaptionParser:
    """A pipeline and the phrase rules. Made by `make_parser`.

    Attributes:
        name: `rules`, or `spacy:<pipeline>`.
        version: of the rules, or of the pipeline.
        tables: name and version of the lemma tables; None for a trained pipeline.
    """

    def __init__(
        self,
        nlp: Language,
        config: ConceptsConfig,
        protected: Sequence[str],
        name: str,
        version: str,
        tables: str | None,
    ) -> None:
        self.nlp, self.name, self.version, self.tables = nlp, name, version, tables
        self.extractor = PhraseExtractor(nlp, config, protected)
        self._merge = dict(config.merge)

    def parse(self, captions: Iterable[str]) -> Iterator[list[Phrase]]:
        """The phrases of each caption, in order; [] for an empty one and for one in another language."""
        texts = ((piece, last) for caption in captions for piece, last in _texts(caption))
        found: list[Phrase] = []
        for doc, last in self._docs(texts):
            found += self.extractor.extract(doc)
            if last:
                yield found
                found = []

    def _docs(self, texts: Iterator[tuple[str, bool]]) -> Iterator[tuple[Doc, bool]]:
        """Batches pay for a network; the rules are faster without."""
        if self.name == "rules":
            return ((self.nlp(text), last) for text, last in texts)
        return self.nlp.pipe(texts, as_tuples=True, batch_size=256)

    def class_name(self, name: str) -> str:
        """A class name as the pool would spell it ("skis" -> "ski"); lemmatised by the same pipeline."""
        text = " ".join(class_lemmas(self.nlp, name))
        return self._merge.get(text, text)

    def description(self) -> dict[str, Any]:
        """What to record with a pool."""
        return {"parser": self.name, "version": self.version, "tables": self.tables, "spacy": metadata.version("spacy")}


def _texts(caption: str) -> Iterator[tuple[str, bool]]:
    text = clean(caption)
    parts = [""] if is_foreign(text) else list(pieces(text))
    for i, part in enumerate(parts):
        yield part, i == len(parts) - 1


def make_parser(config: ConceptsConfig, protected: Sequence[str] = ()) -> CaptionParser:
    """The parser that `config.parser` names.

    Args:
        config: the concepts section.
        protected: class names that are never dropped; those of several words ("hot dog") also keep their inner head
            from counting.

    Raises:
        ValueError: `parser: spacy` and the pipeline is not installed or parses no noun chunks; `rules` without the
            lemma tables.
    """
    if config.parser == "rules":
        return _rules_parser(config, protected)
    try:
        nlp = _load_pipeline(config.spacy_model)
    except OSError as error:
        if config.parser == "spacy":
            raise ValueError(_missing_pipeline(config.spacy_model)) from error
        logger.warning(
            "spaCy pipeline %r is not installed: parsing captions with the built-in rules (concepts.parser: rules)",
            config.spacy_model,
        )
        return _rules_parser(config, protected)
    _check_pipeline(nlp, config.spacy_model)
    meta = nlp.meta
    name = f"spacy:{meta['lang']}_{meta['name']}"
    return CaptionParser(nlp, config, protected, name, str(meta["version"]), None)


def parser_identity(config: ConceptsConfig) -> dict[str, str | None]:
    """Which parser `config` stands for on this machine, for a fingerprint; imports neither spaCy nor a model.

    A pipeline that `parser: spacy` asks for and that is missing has version None; `make_parser` raises for it.
    """
    from regionclip_core.concepts.rules.lexicon import RULES_VERSION, tables_version

    version = None if config.parser == "rules" else _installed_version(config.spacy_model)
    if config.parser == "spacy" or version is not None:
        return {"parser": f"spacy:{config.spacy_model}", "version": version, "tables": None}
    return {"parser": "rules", "version": str(RULES_VERSION), "tables": tables_version()}


def _installed_version(name: str) -> str | None:
    """Version of a pipeline package or folder, found where spacy.load would find it."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        meta = Path(name) / "meta.json"
    return str(json.loads(meta.read_text(encoding="utf-8"))["version"]) if meta.is_file() else None


def _load_pipeline(name: str) -> Language:
    import spacy

    import regionclip_core.concepts.rules.component  # noqa: F401  a saved pipeline may hold the component `caption_rules`

    return spacy.load(name, exclude=["ner", "textcat", "entity_linker", "entity_ruler"])


def _rules_parser(config: ConceptsConfig, protected: Sequence[str]) -> CaptionParser:
    from regionclip_core.concepts.rules.component import blank_pipeline
    from regionclip_core.concepts.rules.lexicon import RULES_VERSION, tables_version

    return CaptionParser(blank_pipeline(), config, protected, "rules", str(RULES_VERSION), tables_version())


def _missing_pipeline(name: str) -> str:
    return (
        f"concepts.parser is `spacy`, but the pipeline {name!r} is not installed (nothing is downloaded by itself). "
        f"Install it with `python -m spacy download {name}`, or set concepts.spacy_model to the path of a pipeline "
        "folder on this machine, or set concepts.parser to `rules`, the built-in parser, which needs no download"
    )


def _check_pipeline(nlp: Language, name: str) -> None:
    """The pipeline must fill what the phrase rules read."""
    doc = nlp("A dog sits on a red chair.")
    missing = [what for what in ("POS", "DEP", "LEMMA") if not doc.has_annotation(what)]
    if nlp.lang != "en" or missing:
        raise ValueError(
            f"concepts.spacy_model {name!r} has language {nlp.lang!r} and sets no {', '.join(missing) or 'English'}; "
            "expected an English pipeline with a tagger, a parser and a lemmatizer. Choose another pipeline, or set "
            "concepts.parser to `rules`"
        )


# ---------------------------------------------------------------- counting


@dataclass
class _Count:
    """Counts of one phrase."""

    head: str
    words: int
    captions: int = 0
    images: int = 0
    mentions: int = 0
    surfaces: Counter[str] = field(default_factory=Counter)
    example: str | None = None


class ConceptCounts:
    """How often each phrase was seen; a phrase dropped for two reasons has two entries."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str | None], _Count] = {}
        self.images = 0
        self.captions = 0

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, captions: Sequence[str], phrases: Sequence[Sequence[Phrase]]) -> None:
        """Count one image: its captions, and the phrases of each."""
        self.images += 1
        self.captions += len(captions)
        in_image: set[tuple[str, str | None]] = set()
        for caption, mentions in zip(captions, phrases, strict=True):
            in_caption: set[tuple[str, str | None]] = set()
            for phrase in mentions:
                key = (phrase.text, phrase.drop_reason)
                count = self._counts.get(key)
                if count is None:
                    count = self._counts[key] = _Count(phrase.head, phrase.words, example=caption[:EXAMPLE_LENGTH])
                count.mentions += 1
                count.surfaces[phrase.surface] += 1
                if key not in in_caption:
                    in_caption.add(key)
                    count.captions += 1
                    if key not in in_image:
                        in_image.add(key)
                        count.images += 1

    def to_table(self, parser: Mapping[str, Any] | None = None) -> pa.Table:
        """schemas.PHRASES, most captions first, ties by phrase and reason; `parser` goes into its metadata."""
        import pyarrow as pa

        from regionclip_core.storage.tables import PHRASES

        rows = []
        order = sorted(self._counts.items(), key=lambda item: (-item[1].captions, item[0][0], item[0][1] or ""))
        for (phrase, reason), count in order:
            surfaces = _by_frequency(count.surfaces)
            rows.append(
                {
                    "phrase": phrase,
                    "head": count.head,
                    "n_words": count.words,
                    "n_captions": count.captions,
                    "n_images": count.images,
                    "n_mentions": count.mentions,
                    "surface_forms": [form for form, _ in surfaces],
                    "surface_counts": [n for _, n in surfaces],
                    "drop_reason": reason,
                    "example": count.example,
                }
            )
        described = json.dumps(parser, sort_keys=True).encode() if parser else b""
        schema = PHRASES.with_metadata({PARSER_KEY: described}) if described else PHRASES
        return pa.Table.from_pylist(rows, schema=schema)


def _by_frequency(surfaces: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(surfaces.items(), key=lambda item: (-item[1], item[0]))


def count_captions(parser: CaptionParser, images: Iterable[Sequence[str]]) -> ConceptCounts:
    """Parse and count the captions of many images; `images` yields one sequence of captions an image."""
    counts = ConceptCounts()
    groups: list[Sequence[str]] = list(images)
    parsed = parser.parse(caption for group in groups for caption in group)
    for group in groups:
        counts.add(group, [next(parsed) for _ in group])
    return counts
