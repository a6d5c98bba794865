"""From a caption's noun chunks to the phrases that may become concepts.

Shared by all parsers: it reads `doc.noun_chunks`, POS, DEP and LEMMA, nothing else. A chunk counts for its head and for
its full compound, never for the suffixes between ("link fence" of "chain link fence"). A phrase that names no visible
thing is not lost: it carries the reason.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spacy.attrs import DEP, LEMMA, LOWER, POS
from spacy.language import Language
from spacy.matcher import PhraseMatcher
from spacy.tokens import Doc

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.config.tree import ConceptsConfig


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

# Most captions are plain ASCII without any of these, and are not looked at further.
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
    """Return the caption without markup, addresses, control characters, emoji and other scripts.

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
    """Return whether there are more function words of other languages than English ones (and at least two)."""
    parts = set(text.lower().split())
    foreign = len(parts & words.FOREIGN_WORDS)
    return foreign >= 2 and foreign > len(parts & words.ENGLISH_WORDS)


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Yield `text` in stretches of at most `size` characters, cut at the last space before that where there is one."""
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
        self._protected: set[str] = set()
        self._matcher = PhraseMatcher(nlp.vocab, attr="LEMMA")  # class names of several words
        for name in protected:
            lemmas = class_lemmas(nlp, name)
            text = " ".join(lemmas)
            if lemmas:
                self._protected.add(self._merge.get(text, text))
            if len(lemmas) > 1:
                self._matcher.add(text, [Doc(nlp.vocab, words=lemmas, lemmas=lemmas)])

    def extract(self, doc: Doc) -> list[Phrase]:
        """Return the phrases of one parsed caption, in the order of their heads."""
        found: list[Phrase] = []
        chunks = [(chunk.start, chunk.end - 1) for chunk in doc.noun_chunks]
        if not chunks:
            return found
        text = _Words(doc)
        names: dict[int, int] = {}  # last word -> first word of a class name of several words; the longest wins
        if len(self._matcher):
            for _, start, end in self._matcher(doc):
                names[end - 1] = min(start, names.get(end - 1, start))
        for start, head in chunks:
            for i in range(start, head):  # "the old man's hat": the man is a mention too
                if text.dep[i] == self._poss and text.pos[i] in self._nominal:
                    self._phrases(text, start, i, names.get(i), found)
            if text.pos[head] in self._nominal:
                self._phrases(text, start, head, names.get(head), found)
        return found

    def _phrases(self, text: _Words, start: int, head: int, name: int | None, found: list[Phrase]) -> None:
        """Add the phrases of one head to `found`.

        Its noun phrase begins at `start`; a class name of several words that ends in the head begins at `name`.
        """
        if name is not None:  # "hot dog" is a mention of itself alone, whatever `multiword` says
            lemmas, surface = " ".join(text.lemma[name : head + 1]), " ".join(text.lower[name : head + 1])
            found.append(Phrase(self._merge.get(lemmas, lemmas), text.lemma[head], head + 1 - name, surface, None))
            return
        first = head
        while first > start and text.dep[first - 1] == self._compound:
            first -= 1
        if first > start and f"{text.lemma[first - 1]} {text.lemma[first]}" in words.LEXICAL_PAIRS:
            first -= 1  # "polar bear": an adjective that makes a thing of its own
        lemma = self._merge.get(text.lemma[head], text.lemma[head])
        pair = f"{text.lemma[head - 1]} {text.lemma[head]}" if head > start else ""
        reason = None if lemma in self._protected else self._reason(text, start, head, lemma)
        if first == head or (reason is not None and pair not in words.LEXICAL_HEADS):
            found.append(Phrase(lemma, lemma, 1, text.lower[head], reason))
            return
        # The first words of a compound keep their form where the plural is a word of its own ("sports car").
        parts = [
            text.lower[i] if text.lower[i] in words.PLURAL_MODIFIERS else text.lemma[i] for i in range(first, head)
        ]
        parts.append(lemma)
        compound = " ".join(parts)
        compound = self._merge.get(compound, compound)
        compound_reason = None
        if not all(_CONCEPT.match(part) and len(part) <= _LONGEST_WORD for part in parts):
            compound_reason = "not_a_word"
        elif len(parts) > self._max_words and compound not in self._protected:
            compound_reason = "too_long"
        # A compound that makes no concept counts for its head. "hot dog" is no dog, so its head counts for nothing.
        keep_head = self._multiword != "compound" or compound_reason is not None
        if keep_head and not (pair in words.EXOCENTRIC_PAIRS and self._multiword == "both"):
            found.append(Phrase(lemma, lemma, 1, text.lower[head], reason))
        if self._multiword != "head":
            surface = " ".join(text.lower[first : head + 1])
            found.append(Phrase(compound, lemma, len(parts), surface, compound_reason))

    def _reason(self, text: _Words, start: int, head: int, lemma: str) -> str | None:
        """Return why the head makes no concept: `not_a_word` or one of the classes in config.drop; else None."""
        if not 2 <= len(lemma) <= _LONGEST_WORD or not _CONCEPT.match(lemma):
            return "not_a_word"
        after = text.lower[head + 1] if head + 1 < len(text.lower) else ""
        reason = None
        if lemma in words.PARTITIVES and (after == "of" or lemma in words.QUANTITY_NOUNS):  # "a slice of pizza"
            reason = "partitive"
        elif lemma in words.COLORS:  # "in red"; but "an orange" and "oranges" are fruit
            if lemma != "orange" or (start == head and text.lower[head] == lemma):
                reason = "abstract"
        elif lemma in words.IMAGE_WORDS or (after == "of" and lemma in words.IMAGE_WORDS_WITH_OF):  # "a photo of"
            reason = "image"
        elif lemma in words.TIME_WORDS:  # "at night"
            reason = "time"
        elif lemma in words.RELATIONAL:  # "the top of", "in the back"; but "a red top" is a garment, "its back" a part
            thing = (
                lemma == "foot"
                or (lemma == "top" and (text.lower[start] in ("a", "an") or text.lower[head] == "tops"))
                or (lemma == "back" and text.lower[start] in words.POSSESSIVES)
            )
            if after == "of" or not thing:
                reason = "relational"
        elif lemma in words.ABSTRACT or (  # "a trick", "in the wild"
            lemma in words.ADJECTIVES and lemma not in words.ADJECTIVE_NOUNS and lemma not in words.NOUNS
        ):
            reason = "abstract"
        return reason if reason in self._drop else None


class _Words:
    """A parsed caption as plain lists; much faster to walk than spaCy's tokens."""

    def __init__(self, doc: Doc) -> None:
        columns = doc.to_array([POS, DEP, LEMMA, LOWER]).T.tolist()
        string = doc.vocab.strings.__getitem__
        self.pos: list[int] = columns[0]
        self.dep: list[int] = columns[1]
        self.lemma: list[str] = [string(key).lower() for key in columns[2]]
        self.lower: list[str] = [string(key) for key in columns[3]]


def class_lemmas(nlp: Language, name: str) -> list[str]:
    """Return the lemmas of a class name, by the captions' pipeline ("skis" -> ["ski"]); [] for an empty name.

    The name is read inside a noun phrase; alone, "remote" or "train" could be an adjective or a verb.
    """
    plain = re.sub(r"\(.*?\)", " ", name.replace("_", " ")).strip().lower()
    return [token.lemma_.lower() for token in nlp(f"the {plain}")[1:]] if plain else []
