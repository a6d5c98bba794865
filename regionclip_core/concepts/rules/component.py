"""The spaCy components of the caption parsers.

`caption_rules` sets POS, LEMMA, HEAD and DEP of English captions, without a trained model. `table_lemmas` gives a
trained pipeline the same lemmas, so that a concept has one name whichever parser found it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import numpy as np
import spacy
from spacy import symbols
from spacy.attrs import DEP, HEAD, LEMMA, POS
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import compile_infix_regex

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.readings import Tag, Word, lexicon
from regionclip_core.concepts.rules.tagger import Tagger
from regionclip_core.concepts.rules.tree import dependencies, noun_phrases

TABLE_LEMMAS = "table_lemmas"
"""Name of the spaCy component that gives a trained pipeline our lemmas."""
_UNIVERSAL = {"POSS": "PRON", "ADVERBIAL": "ADV"}  # universal names of our own tags
_POS: dict[str, int] = {tag: getattr(symbols, _UNIVERSAL.get(tag, tag), symbols.X) for tag in get_args(Tag)}
_MASK = (1 << 64) - 1  # HEAD is a signed offset in an unsigned column


def _lemma(caption: list[Word], tags: list[Tag], i: int) -> str:
    """Return the lemma of word `i`: of nouns and verbs by the tables, of other words the lower-case word itself."""
    word, tag = caption[i], tags[i]
    if tag == "NOUN":
        if word.lower == "glasses":  # "wine glasses", "two glasses" and "glasses of milk" are glasses; else eyewear
            before = caption[i - 1].lower if i else ""
            after = caption[i + 1].lower if i + 1 < len(caption) else ""
            drinks = before in words.DRINKS or after == "of" or (i > 0 and tags[i - 1] == "NUM")
            return "glass" if drinks else "glasses"
        return word.noun
    return word.verb if tag in ("VERB", "AUX") else word.lower


def noun_lemmas(texts: Iterable[str]) -> list[str]:
    """Return the lemmas of words in a row if each is a noun, as in a class name; no parser is asked."""
    caption = [lexicon().word(text) for text in texts]
    tags: list[Tag] = ["NOUN"] * len(caption)
    return [_lemma(caption, tags, i) for i in range(len(caption))]


@Language.component(
    "caption_rules", assigns=["token.pos", "token.lemma", "token.dep", "token.head", "doc.noun_chunks", "doc.sents"]
)
def caption_rules(doc: Doc) -> Doc:
    """Parse a caption: words to readings, readings to tags, tags to noun phrases, noun phrases to a tree."""
    if not len(doc):
        return doc
    word, add = lexicon().word, doc.vocab.strings.add
    caption = [word(token.text) for token in doc]
    tags = Tagger(caption).tags()
    heads, labels = dependencies(tags, noun_phrases(tags))
    flat: list[int] = []
    for i, tag in enumerate(tags):
        flat += (_POS[tag], add(_lemma(caption, tags, i)), (heads[i] - i) & _MASK, add(labels[i]))
    annotations: Any = np.array(flat, dtype=np.uint64).reshape(-1, 4)  # spaCy's stubs know int arrays only
    doc.from_array([POS, LEMMA, HEAD, DEP], annotations)
    return doc


@Language.component(TABLE_LEMMAS, requires=["token.pos", "token.dep"], assigns=["token.lemma"])
def table_lemmas(doc: Doc) -> Doc:
    """Set the lemmas of a caption that a trained pipeline has parsed.

    Nouns, names and the first words of compounds ("swimming pool") are nouns here; every other word keeps its form,
    since the phrase rules read no verbs, and "stuffed animal" is the same name whichever the tag of "stuffed".
    """
    readings = lexicon()
    caption = [readings.word(token.text) for token in doc]
    tags: list[Tag] = ["X"] * len(doc)
    for token in doc:
        if token.pos_ in ("NOUN", "PROPN") or token.dep_ == "compound":
            tags[token.i] = "NOUN"
        elif token.pos_ == "NUM":
            tags[token.i] = "NUM"
    for token in doc:
        token.lemma_ = _lemma(caption, tags, token.i)
    return doc


def keep_hyphens(nlp: Language) -> None:
    """Have the tokenizer of an English pipeline keep "t-shirt" in one piece."""
    infixes = [rule for rule in nlp.Defaults.infixes or () if isinstance(rule, str) and "(?:-|" not in rule]
    infixes.append("(?<=[A-Za-z0-9])(?:–|—|--|---|——|~)(?=[A-Za-z0-9])")
    tokenizer: Any = nlp.tokenizer
    tokenizer.infix_finditer = compile_infix_regex(infixes).finditer


def blank_pipeline() -> Language:
    """Return `spacy.blank("en")` with the component `caption_rules`.

    Raises:
        ValueError: spacy-lookups-data is not installed.
    """
    lexicon()  # now, not with the first caption
    nlp = spacy.blank("en")
    keep_hyphens(nlp)
    nlp.add_pipe("caption_rules")
    return nlp
