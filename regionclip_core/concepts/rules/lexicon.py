"""Readings of an English word: which parts of speech it can be, and its lemma as each.

The nouns, verbs, adjectives, adverbs, exceptions and suffix rules are the tables of spacy-lookups-data (from WordNet);
`caption_words` says what captions prefer. Readings are cached by word.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

from regionclip_core.concepts.rules import words

RULES_VERSION = 1
"""Version of the caption rules, recorded with a pool; raised when the same caption may parse differently."""

_NO_TABLES = (
    "the built-in caption parser needs the lemma tables of spacy-lookups-data, which are not installed; install them "
    "with `pip install spacy-lookups-data`"
)

# Readings of an open-class word, as bits.
SINGULAR, PLURAL, BASE, THIRD, PAST, GERUND, ADJECTIVE, ADVERB = (1 << i for i in range(8))
NOMINAL = SINGULAR | PLURAL
VERBAL = BASE | THIRD | PAST | GERUND

# Parts of speech; OPEN asks the context, the closed ones are fixed by the word.
(OPEN, NOUN, VERB, ADJ, ADV, ADP, DET, NUM, PRON, AUX, PART, CCONJ, SCONJ, PUNCT, POSS, SPECIAL, OTHER, ADVERBIAL) = (
    range(18)
)


@dataclass(frozen=True, slots=True)
class Word:
    """One word's readings, whatever the caption."""

    lower: str
    tag: int
    """Part of speech if the word alone decides it, else OPEN or SPECIAL."""
    readings: int
    noun: str
    """Lemma as a noun."""
    verb: str
    """Lemma as a verb."""
    nominal: bool
    """Can stand inside a noun phrase, before its head or as its head."""
    strong_verb: bool
    animate: bool


END = Word("", PUNCT, 0, "", "", False, False, False)
"""What stands after the last word."""
# Where a scan stands in a noun phrase: outside, after its first words, after a noun.
OUTSIDE, OPENED, NAMED = range(3)

_CLOSED: dict[str, int] = {
    **dict.fromkeys(words.ADVERBS, ADVERBIAL),
    **dict.fromkeys(words.DEGREE_ADVERBS, ADV),
    **dict.fromkeys(words.ADPOSITIONS, ADP),
    **dict.fromkeys(words.NUMBERS, NUM),
    **dict.fromkeys(words.PRONOUNS, PRON),
    **dict.fromkeys(words.DETERMINERS, DET),
    **dict.fromkeys(words.POSSESSIVES, POSS),
    **dict.fromkeys(words.COORDINATORS, CCONJ),
    **dict.fromkeys(words.SUBORDINATORS, SCONJ),
    **dict.fromkeys(words.BE_FORMS, AUX),
    **dict.fromkeys(words.HAVE_FORMS, AUX),
    **dict.fromkeys(words.MODALS, AUX),
    **dict.fromkeys(words.QUANTIFIERS, SPECIAL),
    **dict.fromkeys(
        (
            "that", "this", "these", "those", "to", "her", "next", "close", "back", "front", "top", "left", "right",
            "inside", "outside", "light", "dark", "'s", "can", "well", "like", "as", "past", "opposite", "getting",
        ),
        SPECIAL,
    ),
}  # fmt: skip


def tables_version() -> str:
    """Version of the installed lemma tables, as recorded with a pool.

    Raises:
        ValueError: they are not installed.
    """
    try:
        return f"spacy-lookups-data {metadata.version('spacy-lookups-data')}"
    except metadata.PackageNotFoundError as error:
        raise ValueError(_NO_TABLES) from error


class Lexicon:
    """The lemma tables and a cache of readings; one object a process (see `lexicon()`)."""

    def __init__(self) -> None:
        from spacy.lookups import load_lookups

        tables = load_lookups("en", ["lemma_index", "lemma_exc"])
        index, exceptions = tables.get_table("lemma_index"), tables.get_table("lemma_exc")
        self.nouns, self.verbs = frozenset(index["noun"]), frozenset(index["verb"])
        self.adjectives, self.adverbs = frozenset(index["adj"]), frozenset(index["adv"])
        self.noun_exceptions: dict[str, list[str]] = exceptions["noun"]
        self.verb_exceptions: dict[str, list[str]] = exceptions["verb"]
        self.adjective_exceptions: dict[str, list[str]] = exceptions["adj"]
        self.cache: dict[str, Word] = {}

    def word(self, text: str) -> Word:
        """Readings of `text` in any case."""
        found = self.cache.get(text)
        if found is None:
            found = self._read(text.lower().replace("’", "'"))
            if len(self.cache) < 500_000:  # a bound for corpora full of one-off strings
                self.cache[text] = found
        return found

    def noun_lemma(self, lower: str) -> tuple[str, int]:
        """(lemma, SINGULAR or PLURAL or 0): a listed noun is itself, then exceptions, then -s; 0 means not a noun."""
        if lower in words.PLURALS:
            lemma = self.noun_exceptions.get(lower, [_KNOWN_PLURALS.get(lower, lower)])[0]
            return lemma, PLURAL
        if lower in _IRREGULAR:
            return _IRREGULAR[lower], PLURAL
        if lower in self.nouns:
            # Trust the listing ("glass", "bus", "tennis"), but a plain plural of a listed noun is a plural.
            stem = lower[:-1]
            plain = lower.endswith("s") and not lower.endswith(("ss", "us", "is")) and len(stem) > 2
            listed = stem in self.nouns or lower.endswith("ers")
            if plain and lower not in words.PLURAL_NOUNS and listed:
                return stem, PLURAL
            return lower, SINGULAR
        if lower in self.noun_exceptions:
            return self.noun_exceptions[lower][0], PLURAL
        for suffix, end in _NOUN_SUFFIXES:
            if lower.endswith(suffix):
                stem = lower[: -len(suffix)] + end
                if len(stem) > 1 and stem in self.nouns:
                    return stem, PLURAL
        return lower, 0

    def verb_lemma(self, lower: str) -> tuple[str, int]:
        """(lemma, readings): 0 means not a verb."""
        readings, lemma = 0, lower
        if lower in self.verbs:
            readings = BASE
        if lower in self.verb_exceptions:
            lemma = self.verb_exceptions[lower][0]
            readings |= _form(lower)
        elif not readings or lower.endswith("ing"):
            for suffix, end in _VERB_SUFFIXES:
                stem = lower[: -len(suffix)] + end
                if lower.endswith(suffix) and len(stem) > 1 and stem in self.verbs:
                    return stem, readings | _form(lower)
        if lower in _UNCHANGED_PASTS:
            readings |= PAST
        return lemma, readings

    def _read(self, lower: str) -> Word:
        tag = _CLOSED.get(lower, OPEN)
        if not any(c.isalpha() for c in lower):
            number = any(c.isdigit() for c in lower)
            return Word(lower, NUM if number else PUNCT, 0, lower, lower, False, False, False)
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
        nominal = tag in (OPEN, SPECIAL) and _is_nominal(lower, readings)
        strong = verb in words.STRONG_VERBS and bool(readings & VERBAL)
        return Word(lower, tag, readings, noun, verb, nominal, strong, lower in words.ANIMATE or _agent(lower))

    def _guess(self, lower: str) -> tuple[str, int]:
        """Readings of a word no table has: a noun, unless its ending says otherwise."""
        if "-" in lower.strip("-"):
            return self._hyphenated(lower)
        if lower.endswith("ly"):
            return lower, ADVERB
        if lower.endswith("ing") and len(lower) > 5:
            return lower, GERUND
        if lower.endswith("ed") and len(lower) > 4:
            return lower, PAST
        if lower.endswith(("less", "ish", "ful", "ous")) and len(lower) > 5:
            return lower, ADJECTIVE | SINGULAR
        if lower.endswith("'s"):
            return lower, ADJECTIVE
        if lower.endswith("ies") and len(lower) > 4:
            return (lower[:-1] if lower[:-1] in self.nouns or lower.endswith("fies") else lower[:-3] + "y"), PLURAL
        if lower.endswith(("sses", "shes", "ches", "xes", "zes")):
            return lower[:-2], PLURAL
        if lower.endswith("s") and len(lower) > 3 and not lower.endswith(("ss", "us", "is")):
            return lower[:-1], PLURAL
        return lower, SINGULAR

    def _hyphenated(self, lower: str) -> tuple[str, int]:
        """A hyphenated word is what its last part is; numbers and participles make adjectives ("two-story")."""
        first, _, last = lower.rpartition("-")
        if not last or not first:
            return lower, SINGULAR
        part = self.word(last)
        if any(c.isdigit() for c in lower) or first.split("-")[0] in words.NUMBERS or "-and-" in lower:
            return lower, ADJECTIVE
        if (part.readings & (PAST | GERUND) and not part.readings & NOMINAL) or last in words.COLORS:
            return lower, ADJECTIVE
        if last in words.ADPOSITIONS or part.readings & NOMINAL:
            return f"{first}-{part.noun}", part.readings & NOMINAL or SINGULAR
        return lower, ADJECTIVE


@lru_cache(maxsize=1)
def lexicon() -> Lexicon:
    """The process's lexicon; the tables take about a second to load.

    Raises:
        ValueError: spacy-lookups-data is not installed.
    """
    try:
        return Lexicon()
    except (ValueError, KeyError) as error:
        raise ValueError(_NO_TABLES) from error


_KNOWN_PLURALS = {"people": "people", "men": "man", "women": "woman", "children": "child"}
_IRREGULAR = {
    "leaves": "leaf",
    "skis": "ski",
    "buses": "bus",
    "gases": "gas",
    "lenses": "lens",
    "shoes": "shoe",
    "pies": "pie",
    "ties": "tie",
    "cookies": "cookie",
    "movies": "movie",
    "smoothies": "smoothie",
    "brownies": "brownie",
    "selfies": "selfie",
    "hoodies": "hoodie",
    "onesies": "onesie",
    "veggies": "veggie",
    "walkies": "walkie",
    "horses": "horse",
    "houses": "house",
    "roses": "rose",
    "noses": "nose",
    "nurses": "nurse",
    "purses": "purse",
    "cases": "case",
    "vases": "vase",
    "axes": "axe",
    "dice": "die",
    "cacti": "cactus",
    "fries": "fry",
    "tomatoes": "tomato",
    "potatoes": "potato",
    "calves": "calf",
    "women's": "woman",
    "men's": "man",
    "bases": "base",
    "canoes": "canoe",
    "toes": "toe",
    "donuts": "donut",
    "doughnuts": "doughnut",
    "bikes": "bike",
    "waves": "wave",
    "caves": "cave",
    "gloves": "glove",
    "stoves": "stove",
    "sleeves": "sleeve",
    "olives": "olive",
    "hooves": "hoof",
    "loaves": "loaf",
    "scarves": "scarf",
    "knives": "knife",
    "wives": "wife",
    "lives": "life",
    "wolves": "wolf",
    "shelves": "shelf",
    "halves": "half",
    "feet": "foot",
    "teeth": "tooth",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
}
_UNCHANGED_PASTS = frozenset(
    [
        "set",
        "cut",
        "hit",
        "put",
        "let",
        "shut",
        "spread",
        "split",
        "shed",
        "bet",
        "cast",
        "hurt",
        "quit",
        "read",
        "cost",
    ]
)
# Longest rule first would read "vases" as "vas"; plain -s first, as the tables' own order has it.
_NOUN_SUFFIXES = (
    ("ies", "y"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("sses", "ss"),
    ("xes", "x"),
    ("zzes", "zz"),
    ("s", ""),
    ("es", ""),
    ("ves", "f"),
    ("ves", "fe"),
    ("men", "man"),
    ("women", "woman"),
)
_VERB_SUFFIXES = (
    ("ies", "y"),
    ("ied", "y"),
    ("s", ""),
    ("es", "e"),
    ("es", ""),
    ("ed", "e"),
    ("ed", ""),
    ("ing", ""),
    ("ing", "e"),
)


def _form(lower: str) -> int:
    if lower.endswith("ing"):
        return GERUND
    if lower.endswith("s") and not lower.endswith("ss"):
        return THIRD
    return PAST


def _prefer(lower: str, readings: int) -> int:
    """Leave the readings that captions use."""
    if lower in words.COLORS:
        return ADJECTIVE | SINGULAR
    if lower in words.NOUNS:
        return (readings & ~(ADJECTIVE | ADVERB | PAST)) | SINGULAR
    if lower in words.ADJECTIVES:
        nominal = SINGULAR if lower in words.ADJECTIVE_NOUNS else 0
        return (ADJECTIVE | nominal | readings & (PAST | GERUND)) & ~ADVERB
    if lower in words.VERBS_ONLY:
        return readings & VERBAL or BASE
    if lower.endswith("ly") and readings & ADVERB and not readings & NOMINAL:
        return ADVERB if not readings & ADJECTIVE or lower not in _LY_ADJECTIVES else ADJECTIVE
    return readings


_LY_ADJECTIVES = frozenset(
    [
        "elderly",
        "friendly",
        "lovely",
        "curly",
        "hilly",
        "ugly",
        "silly",
        "lonely",
        "lively",
        "early",
        "daily",
        "only",
        "costly",
    ]
)


def _is_nominal(lower: str, readings: int) -> bool:
    if lower in words.ING_NOUNS:
        return True
    if readings & GERUND:
        return False
    return bool(readings & (NOMINAL | ADJECTIVE))


def _agent(lower: str) -> bool:
    return lower.endswith(
        (
            "man",
            "men",
            "woman",
            "women",
            "boarder",
            "boarders",
            "player",
            "players",
            "rider",
            "riders",
            "cyclist",
            "ists",
        )
    )
