"""Readings of an English word: which parts of speech it can be, and its lemma as each.

The nouns, verbs, adjectives, adverbs and their exceptions are the tables of spacy-lookups-data (from WordNet);
word_lists.py says which of a word's readings captions mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from spacy.lookups import load_lookups

from regionclip_core.concepts.identity import NO_TABLES
from regionclip_core.concepts.rules import word_lists as words

# Readings of an open-class word, as bits.
SINGULAR, PLURAL, BASE, THIRD, PAST, GERUND, ADJECTIVE, ADVERB = (1 << i for i in range(8))
NOMINAL = SINGULAR | PLURAL
VERBAL = BASE | THIRD | PAST | GERUND

Tag = Literal[
    "NOUN", "VERB", "ADJ", "ADV", "ADP", "DET", "NUM", "PRON", "AUX", "PART", "CCONJ", "SCONJ", "PUNCT", "X",
    "POSS", "ADVERBIAL", "OPEN", "SPECIAL",
]  # fmt: skip
"""A part of speech by its universal name, and four of ours.

POSS: "his", "their". ADVERBIAL: an adverb that never comes before an adjective of a noun phrase ("outdoors"). Not
decided yet: OPEN, where the context decides; SPECIAL, where a rule of ambiguous_words.py does.
"""


@dataclass(frozen=True, slots=True)
class Word:
    """A word's readings in any caption."""

    lower: str
    tag: Tag
    """Part of speech if the word alone decides it, else OPEN or SPECIAL."""
    readings: int
    noun: str
    """Lemma as a noun."""
    verb: str
    """Lemma as a verb."""
    nominal: bool
    """Can be inside a noun phrase, before its head or as its head."""
    strong_verb: bool
    """Is a verb right after its subject: "woman stands", never a "woman stand"."""
    animate: bool


END = Word("", "PUNCT", 0, "", "", False, False, False)
"""Takes the place of the word after the last."""

_CLASSES: tuple[tuple[frozenset[str], Tag], ...] = (  # a word in several of these is of the last
    (words.ADVERBS, "ADVERBIAL"),
    (words.DEGREE_ADVERBS, "ADV"),
    (words.ADPOSITIONS, "ADP"),
    (words.NUMBERS, "NUM"),
    (words.PRONOUNS, "PRON"),
    (words.DETERMINERS, "DET"),
    (words.POSSESSIVES, "POSS"),
    (words.COORDINATORS, "CCONJ"),
    (words.SUBORDINATORS, "SCONJ"),
    (words.BE_FORMS | words.HAVE_FORMS | words.MODALS, "AUX"),
    (words.QUANTIFIERS | words.AMBIGUOUS, "SPECIAL"),
)
_CLOSED: dict[str, Tag] = {word: tag for members, tag in _CLASSES for word in members}

# Plurals that the tables lack, or read otherwise ("fries" of chips, "axes" of trees).
_IRREGULAR = {
    "women": "woman", "women's": "woman", "men's": "man", "lenses": "lens", "cookies": "cookie", "axes": "axe",
    "smoothies": "smoothie", "selfies": "selfie", "hoodies": "hoodie", "onesies": "onesie", "walkies": "walkie",
    "dice": "die", "fries": "fry", "flies": "fly",
}  # fmt: skip
# The first that leads to a listed noun wins; plain -s comes before -es, else "vases" would be of a "vas".
_NOUN_SUFFIXES = (
    ("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("zzes", "zz"), ("s", ""), ("es", ""),
    ("ves", "f"), ("ves", "fe"), ("men", "man"), ("women", "woman"),
)  # fmt: skip
_VERB_SUFFIXES = (
    ("ies", "y"), ("ied", "y"), ("s", ""), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", ""), ("ing", "e"),
)  # fmt: skip
_AGENTS = (
    "man", "men", "woman", "women", "boarder", "boarders", "player", "players", "rider", "riders", "cyclist", "ists",
)  # fmt: skip


class Lexicon:
    """The lemma tables and a cache of readings; one object per process (see `lexicon()`)."""

    def __init__(self) -> None:
        tables = load_lookups("en", ["lemma_index", "lemma_exc"])
        index, exceptions = tables.get_table("lemma_index"), tables.get_table("lemma_exc")
        self.nouns, self.verbs = frozenset(index["noun"]), frozenset(index["verb"])
        self.adjectives, self.adverbs = frozenset(index["adj"]), frozenset(index["adv"])
        self.noun_exceptions: dict[str, list[str]] = exceptions["noun"]
        self.verb_exceptions: dict[str, list[str]] = exceptions["verb"]
        self.adjective_exceptions: dict[str, list[str]] = exceptions["adj"]

    @lru_cache(maxsize=500_000)  # noqa: B019 (there is one lexicon per process); a bound for corpora of one-off strings
    def word(self, text: str) -> Word:
        """Return the readings of `text`, in any case."""
        lower = text.lower().replace("’", "'")
        if not any(c.isalpha() for c in lower):
            number = any(c.isdigit() for c in lower)
            return Word(lower, "NUM" if number else "PUNCT", 0, lower, lower, False, False, False)
        noun, number_reading = self.noun_lemma(lower)
        verb, verb_readings = self.verb_lemma(lower)
        readings = number_reading | verb_readings
        if lower in self.adjectives or lower in self.adjective_exceptions:
            readings |= ADJECTIVE
        if lower in self.adverbs:
            readings |= ADVERB
        readings = _prefer(lower, readings)
        if not readings:
            noun, readings = self._guess(lower)
        tag = _CLOSED.get(lower, "OPEN")
        # "building" is a noun by itself; "riding" is one only before nouns that it makes a compound with.
        nominal = lower in words.ING_NOUNS or bool(readings & (NOMINAL | ADJECTIVE) and not readings & GERUND)
        nominal = nominal and tag in ("OPEN", "SPECIAL")
        strong = verb in words.STRONG_VERBS and bool(readings & VERBAL)
        animate = lower in words.ANIMATE or lower.endswith(_AGENTS)
        return Word(lower, tag, readings, noun, verb, nominal, strong, animate)

    def noun_lemma(self, lower: str) -> tuple[str, int]:
        """Return (lemma, SINGULAR or PLURAL); (the word, 0) if it is no noun.

        Without `Number`, spaCy's own rules make "glas" of "glass" and "bu" of "bus". So a listed noun is itself, then
        come the exceptions, then -s.
        """
        if lower in _IRREGULAR:
            return _IRREGULAR[lower], PLURAL
        if lower in words.PLURALS:  # "people", "scissors"
            return self.noun_exceptions.get(lower, [lower])[0], PLURAL
        if lower in self.nouns:
            # Trust the listing ("glass", "bus", "tennis"), but a plain plural of a listed noun is a plural ("colors").
            stem = lower[:-1]
            plain = lower.endswith("s") and not lower.endswith(("ss", "us", "is")) and len(stem) > 2
            listed = stem in self.nouns or lower.endswith("ers")
            if plain and lower not in words.PLURAL_NOUNS and listed:
                return stem, PLURAL
            return lower, SINGULAR
        if lower in self.noun_exceptions:  # "teeth"
            return self.noun_exceptions[lower][0], PLURAL
        for suffix, end in _NOUN_SUFFIXES:
            if lower.endswith(suffix):
                stem = lower[: -len(suffix)] + end
                if len(stem) > 1 and stem in self.nouns:
                    return stem, PLURAL
        return lower, 0

    def verb_lemma(self, lower: str) -> tuple[str, int]:
        """Return (lemma, readings as a verb); (the word, 0) if it is no verb."""
        form = PAST
        if lower.endswith("ing"):
            form = GERUND
        elif lower.endswith("s") and not lower.endswith("ss"):
            form = THIRD
        readings, lemma = 0, lower
        if lower in self.verbs:
            readings = BASE
        if lower in self.verb_exceptions:  # "ridden", "sat"
            lemma = self.verb_exceptions[lower][0]
            readings |= form
        elif not readings or lower.endswith("ing"):  # "sing" and "bring" are verbs as they are
            for suffix, end in _VERB_SUFFIXES:
                stem = lower[: -len(suffix)] + end
                if lower.endswith(suffix) and len(stem) > 1 and stem in self.verbs:
                    return stem, readings | form
        if lower in words.UNCHANGED_PASTS:
            readings |= PAST
        return lemma, readings

    def _guess(self, lower: str) -> tuple[str, int]:
        """Return (noun lemma, readings) of a word that no table has: a noun, unless its ending says otherwise."""
        if "-" in lower.strip("-"):
            first, _, last = lower.rpartition("-")  # the word is what its last part is
            if not last or not first:
                return lower, SINGULAR
            part = self.word(last)
            if any(c.isdigit() for c in lower) or first.split("-")[0] in words.NUMBERS or "-and-" in lower:
                return lower, ADJECTIVE  # "two-story", "black-and-white"
            if (part.readings & (PAST | GERUND) and not part.readings & NOMINAL) or last in words.COLORS:
                return lower, ADJECTIVE  # "snow-covered", "dark-blue"
            if last in words.ADPOSITIONS or part.readings & NOMINAL:
                return f"{first}-{part.noun}", part.readings & NOMINAL or SINGULAR  # "close-up", "t-shirts"
            return lower, ADJECTIVE
        if lower.endswith("ly"):
            return lower, ADVERB
        if lower.endswith("ing") and len(lower) > 5:
            return lower, GERUND
        if lower.endswith("ed") and len(lower) > 4:
            return lower, PAST
        if lower.endswith(("less", "ish", "ful", "ous")) and len(lower) > 5:  # "mirrorless"
            return lower, ADJECTIVE | SINGULAR
        if lower.endswith("'s"):  # a possessor that the tokenizer left whole
            return lower, ADJECTIVE
        if lower.endswith("ies") and len(lower) > 4:  # a plural of a noun in -ie if that is listed, else in -y
            return (lower[:-1] if lower[:-1] in self.nouns or lower.endswith("fies") else lower[:-3] + "y"), PLURAL
        if lower.endswith(("sses", "shes", "ches", "xes", "zes")):
            return lower[:-2], PLURAL
        if lower.endswith("s") and len(lower) > 3 and not lower.endswith(("ss", "us", "is")):  # "smartphones"
            return lower[:-1], PLURAL
        return lower, SINGULAR


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """Return the process's lexicon; the tables take about a second to load.

    Raises:
        ValueError: spacy-lookups-data is not installed.
    """
    try:
        return Lexicon()
    except (ValueError, KeyError) as error:
        raise ValueError(NO_TABLES) from error


def _prefer(lower: str, readings: int) -> int:
    """Return the readings that captions use."""
    if lower in words.COLORS:  # "a red bus", "a woman in red"
        return ADJECTIVE | SINGULAR
    if lower in words.NOUNS:  # "glass" is no verb, "plastic" no adjective
        return (readings & ~(ADJECTIVE | ADVERB | PAST)) | SINGULAR
    if lower in words.ADJECTIVES:  # "an open book"; "an adult" may be a person too
        nominal = SINGULAR if lower in words.ADJECTIVE_NOUNS else 0
        return (ADJECTIVE | nominal | readings & (PAST | GERUND)) & ~ADVERB
    if lower in words.VERBS_ONLY:  # "a man sits": nobody captions "a sit"
        return readings & VERBAL or BASE
    if lower.endswith("ly") and readings & ADVERB and not readings & NOMINAL:  # "quietly", but "an elderly man"
        return ADVERB if not readings & ADJECTIVE or lower not in words.LY_ADJECTIVES else ADJECTIVE
    return readings
