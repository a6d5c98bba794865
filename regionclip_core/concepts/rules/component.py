"""The spaCy components of the caption parsers.

`caption_rules` sets POS, LEMMA, HEAD and DEP of English captions, without a trained model; `parse_words` is the same
parse without a spaCy document, which takes longer to fill and read than the rules. `table_lemmas` gives a trained
pipeline the same lemmas, so that a concept has one name whichever parser found it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import spacy
from spacy import symbols
from spacy.attrs import DEP, HEAD, LEMMA, LOWER, POS
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import compile_infix_regex

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.readings import Tag, Word, lexicon
from regionclip_core.concepts.rules.tagger import Tagger
from regionclip_core.concepts.rules.tree import dependencies, modifiers, noun_phrases

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


class ParsedCaption(NamedTuple):
    """What the phrase rules read of a parsed caption, as plain lists with one entry per word."""

    lower: list[str]
    """The words in lower case."""
    pos: Sequence[str]
    """Parts of speech; NOUN and PROPN are nouns."""
    lemmas: list[str]
    labels: list[str]
    """spaCy's names of the dependencies; of other words than those before the head of a noun chunk nothing is read."""
    chunks: list[tuple[int, int]]
    """First word and last word, which is the head, of each noun chunk."""


def parse_words(texts: list[str]) -> ParsedCaption:
    """Parse a caption given as words: words to readings, readings to tags, tags to noun phrases."""
    word = lexicon().word
    caption = [word(text) for text in texts]
    tags = Tagger(caption).tags()
    chunks = noun_phrases(tags)
    labels = modifiers(tags, chunks)[1]
    lemmas = [_lemma(caption, tags, i) for i in range(len(caption))]
    return ParsedCaption([text.lower() for text in texts], tags, lemmas, labels, chunks)


@Language.component(
    "caption_rules", assigns=["token.pos", "token.lemma", "token.dep", "token.head", "doc.noun_chunks", "doc.sents"]
)
def caption_rules(doc: Doc) -> Doc:
    """Parse a caption, and write the noun phrases into its document as a tree."""
    if not len(doc):
        return doc
    parsed, add = parse_words([token.text for token in doc]), doc.vocab.strings.add
    heads, labels = dependencies(parsed.pos, parsed.chunks)
    flat: list[int] = []
    for i, tag in enumerate(parsed.pos):
        flat += (_POS[tag], add(parsed.lemmas[i]), (heads[i] - i) & _MASK, add(labels[i]))
    annotations: Any = np.array(flat, dtype=np.uint64).reshape(-1, 4)  # spaCy's stubs know int arrays only
    doc.from_array([POS, LEMMA, HEAD, DEP], annotations)
    return doc


def read_doc(doc: Doc) -> ParsedCaption:
    """Return what a spaCy pipeline with a tagger, a parser and lemmas wrote into a caption's document."""
    columns = doc.to_array([LOWER, POS, LEMMA, DEP]).T.tolist()  # much faster to walk than spaCy's tokens
    lower, pos, lemmas, labels = ([doc.vocab.strings[key] for key in column] for column in columns)
    chunks = [(chunk.start, chunk.end - 1) for chunk in doc.noun_chunks]
    return ParsedCaption(lower, pos, [lemma.lower() for lemma in lemmas], labels, chunks)


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
