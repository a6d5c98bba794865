"""The spaCy component `caption_rules`: POS, LEMMA, HEAD and DEP for English captions, without a trained model."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import spacy
from spacy import symbols
from spacy.attrs import DEP, HEAD, LEMMA, ORTH, POS
from spacy.language import Language
from spacy.strings import get_string_id
from spacy.tokens import Doc
from spacy.util import compile_infix_regex

from regionclip_core.concepts.rules.lemmas import lemma
from regionclip_core.concepts.rules.readings import Lexicon, Tag, Word, lexicon
from regionclip_core.concepts.rules.tagger import Tagger
from regionclip_core.concepts.rules.tree import LABELS, dependencies, noun_phrases

_UNIVERSAL = {"POSS": "PRON", "ADVERBIAL": "ADV"}  # universal names of our own tags
_POS: dict[str, int] = {tag: getattr(symbols, _UNIVERSAL.get(tag, tag), symbols.X) for tag in get_args(Tag)}
_DEP = {label: get_string_id(label) for label in LABELS}
_ATTRIBUTES = [POS, LEMMA, HEAD, DEP]
_MASK = (1 << 64) - 1  # HEAD is a signed offset in an unsigned column
_CACHED = 500_000  # a bound for corpora full of one-off strings


class CaptionRules:
    """The component: words to readings, readings to tags, tags to noun phrases, noun phrases to a tree."""

    def __init__(self, table: Lexicon) -> None:
        self.lexicon = table
        self._words: dict[int, Word] = {}  # by spaCy's hash of the text
        self._hashes: dict[str, int] = {}  # spaCy's hash of a lemma

    def __call__(self, doc: Doc) -> Doc:
        n = len(doc)
        if n == 0:
            return doc
        known = self._words
        caption = []
        for orth in doc.to_array(ORTH).tolist():
            word = known.get(orth)
            if word is None:
                word = self.lexicon.word(doc.vocab.strings[orth])
                if len(known) < _CACHED:
                    known[orth] = word
            caption.append(word)
        tags = Tagger(caption).tags()
        heads, labels = dependencies(tags, noun_phrases(tags))
        hashes, add = self._hashes, doc.vocab.strings.add
        flat: list[int] = []
        for i, tag in enumerate(tags):
            name = lemma(caption, tags, i)
            key = hashes.get(name)
            if key is None:
                key = add(name)
                if len(hashes) < _CACHED:
                    hashes[name] = key
            flat += (_POS[tag], key, (heads[i] - i) & _MASK, _DEP[labels[i]])
        annotations: Any = np.array(flat, dtype=np.uint64).reshape(n, 4)  # spaCy's stubs know int arrays only
        doc.from_array(_ATTRIBUTES, annotations)
        return doc

    def to_disk(self, path: object, exclude: object = ()) -> None:
        """Save nothing: the rules are code, the tables a package."""

    def from_disk(self, path: object, exclude: object = ()) -> CaptionRules:
        """Load nothing."""
        return self


@Language.factory(
    "caption_rules", assigns=["token.pos", "token.lemma", "token.dep", "token.head", "doc.noun_chunks", "doc.sents"]
)
def _make_caption_rules(nlp: Language, name: str) -> CaptionRules:
    for label in LABELS:
        nlp.vocab.strings.add(label)
    return CaptionRules(lexicon())


def blank_pipeline() -> Language:
    """Return `spacy.blank("en")` with the component, and a tokenizer that keeps "t-shirt" in one piece.

    Raises:
        ValueError: spacy-lookups-data is not installed.
    """
    nlp = spacy.blank("en")
    infixes = [rule for rule in nlp.Defaults.infixes or () if isinstance(rule, str) and "(?:-|" not in rule]
    infixes.append("(?<=[A-Za-z0-9])(?:–|—|--|---|——|~)(?=[A-Za-z0-9])")
    tokenizer: Any = nlp.tokenizer
    tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
    nlp.add_pipe("caption_rules")
    return nlp
