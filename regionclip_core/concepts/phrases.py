"""From a caption's noun chunks to the phrases that may become concepts.

Shared by all parsers: it reads noun chunks, parts of speech, dependencies and lemmas, nothing else. A chunk counts for
its head and for its full compound, never for the suffixes between ("link fence" of "chain link fence"). A phrase that
names no visible thing is not lost: it carries the reason.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from spacy.language import Language

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.component import ParsedCaption, noun_lemmas
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
_SUSPICIOUS = re.compile(r"[^ -~]|[<>&@#_|{}\\^~*=\[\]]|://|\.\w")
_WEB = re.compile(
    r"<[^<>]{0,300}>|\b(?:https?|ftp)://\S+|\bwww\.\S+|\S+@\S+\.\S+|[@#]\w+|\b[\w.-]+\.(?:com|org|net|co\.\w\w|jpe?g|png|gif)\b\S*",
    re.IGNORECASE,
)
_NOT_TEXT = re.compile(r"[^ -~À-ɏ‘’“”–—]+|[<>@#_|{}\\^~*=\[\]]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\xa0\u2028\u2029\u202f]+")
_WIDTHLESS = re.compile(r"[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]+")  # soft hyphens and the like
_STOP = re.compile(r"(?<=[^\W\d_]{2})\.(?=[^\W\d_]{2}|an? )")
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
    while (text := html.unescape(caption)) != caption:  # web text is often escaped twice
        caption = text
    text = unicodedata.normalize("NFKC", _CONTROL.sub(" ", _WIDTHLESS.sub("", text)))
    text = _STOP.sub(". ", _NOT_TEXT.sub(" , ", _WEB.sub(" , ", text)))  # "a dog.A cat" is two sentences
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

_NOMINAL = ("NOUN", "PROPN")


class PhraseExtractor:
    """Reads phrases off parsed captions, by one configuration.

    Args:
        nlp: the pipeline that parsed them; its tokenizer splits the protected names.
        config: multiword, max_words, merge and drop are used.
        protected: class names that are never dropped, and whose inner head is no mention of its own.
    """

    def __init__(self, nlp: Language, config: ConceptsConfig, protected: Sequence[str] = ()) -> None:
        self._multiword, self._max_words, self._merge = config.multiword, config.max_words, dict(config.merge)
        self._drop = frozenset(config.drop)
        self._protected: set[str] = set()
        self._names: dict[str, list[tuple[list[str], str]]] = {}  # class names of several words, by their first
        for lemmas in sorted((class_lemmas(nlp, name) for name in protected), key=len, reverse=True):
            text = " ".join(lemmas)
            name = self._merge.get(text, text)
            if lemmas:
                self._protected.add(name)
            if len(lemmas) > 1:
                parts = noun_lemmas(lemmas)
                self._names.setdefault(parts[0], []).append((parts, name))

    def extract(self, text: ParsedCaption) -> list[Phrase]:
        """Return the phrases of one parsed caption, in the order of their heads."""
        found: list[Phrase] = []
        starts: dict[int, int] = {}  # head -> first word of its noun phrase
        for start, head in text.chunks:
            for i in range(start, head):  # "the old man's hat": the man is a mention too
                if text.labels[i] == "poss" and text.pos[i] in _NOMINAL:
                    starts[i] = start
            if text.pos[head] in _NOMINAL:
                starts[head] = start
        names = self._class_names(text) if self._names else {}
        inner = {i for head, (first, _) in names.items() for i in range(first, head)}
        for head in sorted((starts.keys() - inner) | names.keys()) if names else starts:
            if head in names:  # "hot dog" is a mention of itself alone, whatever `multiword` and the parser say
                first, name = names[head]
                surface = " ".join(text.lower[first : head + 1])
                found.append(Phrase(name, name.rpartition(" ")[2], head + 1 - first, surface, None))
            else:
                self._phrases(text, starts[head], head, found)
        return found

    def _class_names(self, text: ParsedCaption) -> dict[int, tuple[int, str]]:
        """Return the class names of several words in a caption, whatever its parse: (first word, name) by last word."""
        found: dict[int, tuple[int, str]] = {}
        lemmas, end = noun_lemmas(text.lower), 0
        for i, lemma in enumerate(lemmas):
            for parts, name in self._names.get(lemma, ()):  # longest first; a name inside a longer one doesn't count
                if i + len(parts) > end and lemmas[i : i + len(parts)] == parts:
                    end = i + len(parts)
                    found[end - 1] = i, name
                    break
        return found

    def _phrases(self, text: ParsedCaption, start: int, head: int, found: list[Phrase]) -> None:
        """Add the phrases of one head, whose noun phrase begins at `start`, to `found`."""
        first = head
        while first > start and text.labels[first - 1] == "compound":
            first -= 1
        if first > start and f"{text.lemmas[first - 1]} {text.lemmas[first]}" in words.LEXICAL_PAIRS:
            first -= 1  # "polar bear": an adjective that makes a thing of its own
        lemma = self._merge.get(text.lemmas[head], text.lemmas[head])
        pair = f"{text.lemmas[head - 1]} {text.lemmas[head]}" if head > start else ""
        reason = None if lemma in self._protected else self._reason(text, start, head, lemma)
        if first == head or (reason is not None and pair not in words.LEXICAL_HEADS):
            found.append(Phrase(lemma, lemma, 1, text.lower[head], reason))
            return
        # The first words of a compound keep their form where the plural is a word of its own ("sports car").
        parts = [
            text.lower[i] if text.lower[i] in words.PLURAL_MODIFIERS else text.lemmas[i] for i in range(first, head)
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

    def _reason(self, text: ParsedCaption, start: int, head: int, lemma: str) -> str | None:
        """Return why the head makes no concept: `not_a_word` or one of the classes in config.drop; else None."""
        if not 2 <= len(lemma) <= _LONGEST_WORD or not _CONCEPT.match(lemma):
            return "not_a_word"
        after = text.lower[head + 1] if head + 1 < len(text.lower) else ""
        reason = None
        if lemma in words.PARTITIVES and (after == "of" or lemma in words.QUANTITY_NOUNS):  # "a slice of pizza"
            reason = "partitive"
        elif lemma in words.COLORS:  # "in red"; but "an orange", "oranges" and "ice cream" are things
            if lemma not in words.COLOR_THINGS or (0 < start == head and text.lower[head] == lemma):
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


def class_lemmas(nlp: Language, name: str) -> list[str]:
    """Return the lemmas of a class name as the pool spells them ("skis" -> ["ski"]); [] for an empty name.

    All its words are read as nouns: alone, a parser may take "remote" for an adjective and "crossing" for a verb.
    """
    plain = re.sub(r"\(.*?\)", " ", name.replace("_", " ")).strip().lower()
    parts = [token.text for token in nlp.tokenizer(plain)]
    lemmas = noun_lemmas(parts)
    first = [p if p in words.PLURAL_MODIFIERS else lemma for p, lemma in zip(parts, lemmas, strict=True)]  # "sports"
    return first[:-1] + lemmas[-1:]
