"""From a caption's noun chunks to the phrases that may become concepts.

Shared by both parsers: all it reads is `doc.noun_chunks`, POS, DEP and LEMMA. A chunk counts for its head and for its
full compound, never for the suffixes between ("link fence" of "chain link fence"); a phrase that names no visible
thing is not lost but carries the reason.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from regionclip_core.concepts.rules import words
from regionclip_core.config.tree import ConceptsConfig

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.matcher import PhraseMatcher
    from spacy.tokens import Doc


class Phrase(NamedTuple):
    """One mention of a possible concept."""

    text: str
    """Name of the concept: lemmas in lower case, one space between."""
    head: str
    """Lemma of the head noun."""
    words: int
    """Number of words in `text`."""
    surface: str
    """The mention as the caption has it, in lower case."""
    drop_reason: str | None
    """None, or why it makes no concept: partitive, relational, image, time, abstract, not_a_word, too_long."""


# ---------------------------------------------------------------- raw text

_SUSPICIOUS = re.compile(r"[^ -~]|[<>&@#_|{}\\^~*=\[\]]|://|www\.|\.(?:com|org|net|jpe?g|png)\b", re.IGNORECASE)
_WEB = re.compile(
    r"<[^<>]{0,300}>|\b(?:https?|ftp)://\S+|\bwww\.\S+|\S+@\S+\.\S+|[@#]\w+|\b[\w.-]+\.(?:com|org|net|jpe?g|png|gif)\b\S*",
    re.IGNORECASE,
)
_NOT_TEXT = re.compile(r"[^ -~À-ɏ‘’“”–—]+|[<>@#_|{}\\^~*=\[\]]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\xa0\u200b-\u200f\u2028-\u202f\ufeff\u00ad]+")
_CONCEPT = re.compile(r"[a-zß-öø-ɏ]+(?:[-'.][a-zß-öø-ɏ]+)*\Z")
_SPACES = re.compile(r"\s{2,}")
_LONGEST_STRING = 100
_ENDLESS = re.compile(rf"\S{{{_LONGEST_STRING + 1},}}")

_LONGEST_WORD = 40
PIECE = 50_000
"""Longest stretch of text parsed at once, characters; longer captions are parsed in pieces cut at spaces."""


def clean(caption: str) -> str:
    """The caption without markup, addresses, control characters, emoji and other scripts.

    What is taken out leaves a comma, so that the words around it don't join into one phrase.
    """
    if len(caption) > _LONGEST_STRING:  # spaCy's tokenizer needs quadratic time on a long string without a space
        caption = _ENDLESS.sub(" , ", caption)
    if not _SUSPICIOUS.search(caption):
        return caption
    text = html.unescape(caption) if "&" in caption else caption
    text = unicodedata.normalize("NFKC", _CONTROL.sub(" ", text))
    text = _NOT_TEXT.sub(" , ", _WEB.sub(" , ", text))
    return _SPACES.sub(" ", text).strip()


def is_foreign(text: str) -> bool:
    """More function words of other languages than English ones (and at least two)."""
    parts = set(text.lower().split())
    foreign = len(parts & words.FOREIGN_WORDS)
    return foreign >= 2 and foreign > len(parts & words.ENGLISH_WORDS)


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """`text` in stretches of at most `size` characters, cut at the last space before that where there is one."""
    start = 0
    while len(text) - start > size:
        cut = text.rfind(" ", start + 1, start + size)
        cut = cut if cut > start else start + size
        yield text[start:cut]
        start = cut
    yield text[start:]


# ---------------------------------------------------------------- phrases


class PhraseExtractor:
    """Reads phrases off parsed captions, by one configuration.

    Args:
        nlp: the pipeline that parsed them; it lemmatises the protected names too.
        config: multiword, max_words, merge and drop are used.
        protected: class names that are never dropped, and whose inner head is no mention of its own.
    """

    def __init__(self, nlp: Language, config: ConceptsConfig, protected: Sequence[str] = ()) -> None:
        strings = nlp.vocab.strings
        self._compound, self._poss = strings.add("compound"), strings.add("poss")
        self._nominal = frozenset(strings.add(tag) for tag in ("NOUN", "PROPN"))
        self._multiword, self._max_words, self._merge = config.multiword, config.max_words, dict(config.merge)
        self._drop = frozenset(config.drop)
        self.protected: dict[str, str] = {}
        self._matcher: PhraseMatcher | None = None
        self._protect(nlp, protected)

    def _protect(self, nlp: Language, names: Sequence[str]) -> None:
        from spacy.matcher import PhraseMatcher

        matcher = PhraseMatcher(nlp.vocab, attr="LEMMA")
        for name in names:
            lemmas = class_lemmas(nlp, name)
            if not lemmas:
                continue
            text = " ".join(lemmas)
            self.protected[self._merge.get(text, text)] = name
            if len(lemmas) > 1:
                from spacy.tokens import Doc

                matcher.add(text, [Doc(nlp.vocab, words=lemmas, lemmas=lemmas)])
        if len(matcher):
            self._matcher = matcher

    def extract(self, doc: Doc) -> list[Phrase]:
        """The phrases of one parsed caption, in the order of their heads."""
        found: list[Phrase] = []
        chunks = [(chunk.start, chunk.end - 1) for chunk in doc.noun_chunks]
        if not chunks:
            return found
        text = _Words(doc)
        spans = self._protected_spans(doc)
        for start, head in chunks:
            for i in range(start, head):
                if text.dep[i] == self._poss and text.pos[i] in self._nominal:
                    self._phrases(text, start, i, spans.get(i), found)
            if text.pos[head] in self._nominal:
                self._phrases(text, start, head, spans.get(head), found)
        return found

    def _protected_spans(self, doc: Doc) -> dict[int, int]:
        """Last word -> first word of the protected multi-word names in `doc`; the longest wins."""
        spans: dict[int, int] = {}
        if self._matcher is not None:
            for _, start, end in self._matcher(doc):
                spans[end - 1] = min(start, spans.get(end - 1, start))
        return spans

    def _phrases(self, text: _Words, start: int, head: int, span: int | None, found: list[Phrase]) -> None:
        """The phrases of one head, whose noun phrase begins at `start`."""
        if span is not None:
            self._protected_name(text, span, head, found)
            return
        first = head
        while first > start and text.dep[first - 1] == self._compound:
            first -= 1
        if first > start and f"{text.lemma[first - 1]} {text.lemma[first]}" in words.LEXICAL_PAIRS:
            first -= 1
        lemma = self._merge.get(text.lemma[head], text.lemma[head])
        pair = f"{text.lemma[head - 1]} {text.lemma[head]}" if head > start else ""
        reason = self._reason(text, start, head, lemma)
        if first == head or (reason is not None and pair not in words.LEXICAL_HEADS):
            found.append(Phrase(lemma, lemma, 1, text.lower[head], reason))
            return
        compound = [_modifier(text, i) for i in range(first, head)]
        compound.append(lemma)
        surface = " ".join(text.lower[first : head + 1])
        self._compound_phrases(compound, surface, text.lower[head], pair, reason, found)

    def _compound_phrases(
        self, compound: list[str], surface: str, head_surface: str, pair: str, reason: str | None, found: list[Phrase]
    ) -> None:
        """Head, full compound or both, as `multiword` says; one that is too long counts for its head only."""
        lemma, text = compound[-1], " ".join(compound)
        text = self._merge.get(text, text)
        readable = all(_CONCEPT.match(part) and len(part) <= _LONGEST_WORD for part in compound)
        whole_reason = None if readable else "not_a_word"
        if len(compound) > self._max_words and text not in self.protected:
            whole_reason = whole_reason or "too_long"
        keep_head = self._multiword != "compound" or whole_reason is not None
        if keep_head and not (pair in words.EXOCENTRIC_PAIRS and self._multiword == "both"):
            found.append(Phrase(lemma, lemma, 1, head_surface, reason))
        if self._multiword != "head":
            found.append(Phrase(text, lemma, len(compound), surface, whole_reason))

    def _protected_name(self, text: _Words, first: int, head: int, found: list[Phrase]) -> None:
        """A class name of several words stands for itself alone, whatever `multiword` says."""
        name = " ".join(text.lemma[first : head + 1])
        surface = " ".join(text.lower[first : head + 1])
        found.append(Phrase(self._merge.get(name, name), text.lemma[head], head + 1 - first, surface, None))

    def _reason(self, text: _Words, start: int, head: int, lemma: str) -> str | None:
        """Why the head makes no concept, or None."""
        if lemma in self.protected:
            return None
        if not 2 <= len(lemma) <= _LONGEST_WORD or not _CONCEPT.match(lemma):
            return "not_a_word"
        reason = _word_class(text, start, head, lemma)
        return reason if reason in self._drop else None


class _Words:
    """A parsed caption as plain lists; much faster to walk than spaCy's tokens."""

    __slots__ = ("dep", "lemma", "lower", "pos")

    def __init__(self, doc: Doc) -> None:
        from spacy.attrs import DEP, LEMMA, LOWER, POS

        columns = doc.to_array([POS, DEP, LEMMA, LOWER]).T.tolist()
        string = doc.vocab.strings.__getitem__
        self.pos: list[int] = columns[0]
        self.dep: list[int] = columns[1]
        self.lemma: list[str] = [string(key).lower() for key in columns[2]]
        self.lower: list[str] = [string(key) for key in columns[3]]


def class_lemmas(nlp: Language, name: str) -> list[str]:
    """Lemmas of a class name, by the same pipeline as the captions ("skis" -> ["ski"]); [] for an empty name.

    The name is read inside a noun phrase; alone, "remote" or "train" could be an adjective or a verb.
    """
    plain = re.sub(r"\(.*?\)", " ", name.replace("_", " ")).strip().lower()
    if not plain:
        return []
    prefix = nlp("the")
    doc = nlp(f"the {plain}")
    return [token.lemma_.lower() for token in doc[len(prefix) :]]


def _modifier(text: _Words, i: int) -> str:
    """A compound's first words keep their form where the plural is a word of its own ("sports car")."""
    lower = text.lower[i]
    return lower if lower in words.PLURAL_MODIFIERS else text.lemma[i]


def _word_class(text: _Words, start: int, head: int, lemma: str) -> str | None:
    """partitive, image, time, relational, abstract, or None."""
    after = text.lower[head + 1] if head + 1 < len(text.lower) else ""
    if lemma in words.PARTITIVES and (after == "of" or lemma in words.QUANTITY_NOUNS):
        return "partitive"
    if lemma in words.COLORS:
        fruit = lemma == "orange" and (start < head or text.lower[head] != lemma)
        return None if fruit else "abstract"
    if lemma in words.IMAGE_WORDS or (after == "of" and lemma in words.IMAGE_WORDS_WITH_OF):
        return "image"
    if lemma in words.TIME_WORDS:
        return "time"
    if lemma in words.RELATIONAL:
        return None if _is_thing(text, start, head, lemma, after) else "relational"
    if lemma in words.ADJECTIVES and lemma not in words.ADJECTIVE_NOUNS and lemma not in words.NOUNS:
        return "abstract"
    return "abstract" if lemma in words.ABSTRACT else None


def _is_thing(text: _Words, start: int, head: int, lemma: str, after: str) -> bool:
    """ "a red top" is a garment and "its back" a body part; "the top of" and "in the back" are places."""
    if after == "of":
        return False
    first = text.lower[start]
    if lemma == "top":
        return first in ("a", "an") or text.lower[head] == "tops"
    return lemma == "foot" or (lemma == "back" and first in words.POSSESSIVES)
