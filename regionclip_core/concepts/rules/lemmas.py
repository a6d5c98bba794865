"""What a word of a tagged caption is called in the pool, by the same tables for every parser."""

from __future__ import annotations

from spacy.language import Language
from spacy.tokens import Doc

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.readings import Tag, Word, lexicon

TABLE_LEMMAS = "table_lemmas"
"""Name of the spaCy component that gives a trained pipeline our lemmas."""


def lemma(caption: list[Word], tags: list[Tag], i: int) -> str:
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
        token.lemma_ = lemma(caption, tags, token.i)
    return doc
