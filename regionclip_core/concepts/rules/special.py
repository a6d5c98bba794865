"""Words of closed classes whose part of speech hangs on their neighbours: "to", "that", "next", "light", "'s", ...

Each rule gets the tagger in its state before the word, the word's number and its readings, and returns a tag.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from regionclip_core.concepts.rules import words
from regionclip_core.concepts.rules.lexicon import (
    ADJ,
    ADJECTIVE,
    ADP,
    ADV,
    ADVERBIAL,
    AUX,
    BASE,
    CCONJ,
    DET,
    END,
    GERUND,
    NAMED,
    NOMINAL,
    NOUN,
    NUM,
    OPEN,
    OPENED,
    PART,
    PAST,
    PLURAL,
    POSS,
    PRON,
    PUNCT,
    SCONJ,
    THIRD,
    VERB,
    Word,
)

if TYPE_CHECKING:
    from regionclip_core.concepts.rules.tagger import Tagger

PARTICLE_FIRSTS = frozenset(first for first, _ in words.PARTICLE_COMPOUNDS) | {"close"}


def special(tagger: Tagger, i: int, word: Word) -> int:
    """The tag of word `i`, which is of class SPECIAL."""
    return _SPECIAL.get(word.lower, _quantifier)(tagger, i, word)


def _quantifier(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i)
    if following.tag in (DET, POSS) and word.lower in ("all", "both", "half"):
        return DET
    leads = (
        following.nominal or (following.tag in (NUM, ADV) and tagger.next_word(i, 2).nominal) or tagger.leads_to_noun(i)
    )
    participle = bool(following.readings & (PAST | GERUND))
    leads = leads or (participle and tagger.next_word(i, 2).nominal)
    if word.lower == "one":
        return NUM if leads and following.lower != "another" else PRON
    if not leads or (following.strong_verb and following.readings & THIRD and not following.readings & PLURAL):
        return PRON
    if word.lower in ("other", "several", "many", "few", "more", "most", "much", "enough", "less", "fewer", "half"):
        return ADJ
    return DET


def _that(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i)
    if tagger.previous() == NOUN or following.tag in (AUX, DET, POSS, PRON):
        return PRON
    return DET if following.nominal and not following.strong_verb else PRON


def _this(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i)
    leads = following.nominal or following.tag == NUM or following.readings & (PAST | GERUND)
    return DET if leads and not (following.strong_verb and following.readings & THIRD) else PRON


def _to(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i)
    if not following.readings & BASE or (following.tag not in (OPEN, AUX) and following.lower not in ("light", "top")):
        return PART if following.lower in ("be", "have", "do", "get") else ADP
    before = tagger.words[i - 1].lower if i else ""
    if before in words.BEFORE_TO and not (before in words.PARTICLES and following.strong_verb):
        return ADP
    if following.lower in words.VERBS_ONLY:
        return PART
    if following.readings & NOMINAL and following.lower in words.LIKELY_TO_NOUNS:
        return ADP
    after = tagger.next_word(i, 2)
    if following.readings & NOMINAL and not following.strong_verb and (after.tag in (PUNCT, CCONJ) or after is END):
        return ADP
    return PART


def _her(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i)
    return POSS if following.nominal or following.readings & (PAST | GERUND) or following.tag == NUM else PRON


def _next_word(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i).lower
    if following == "to":
        return ADV
    if word.lower == "close" and following in ("up", "ups") and tagger.phrase != NAMED:
        return NOUN
    return ADJ if tagger.phrase == OPENED or tagger.next_word(i).nominal else ADV


def particle(tagger: Tagger, i: int, word: Word) -> int:
    """The second word of "pick up truck" and of "close up"."""
    before = tagger.words[i - 1].lower
    particle = words.PARTICLE_COMPOUNDS.get((before, word.lower), ())
    if tagger.next_word(i).lower in particle and tagger.previous() in (NOUN, ADJ):
        return tagger.previous()
    return NOUN if before == "close" and word.lower == "up" and tagger.previous() == NOUN else ADP


def _place(tagger: Tagger, i: int, word: Word) -> int:
    """front, back, top, left, right: noun, adjective or adverb."""
    following, previous = tagger.next_word(i), tagger.previous()
    if tagger.phrase == NAMED and word.lower in ("top", "front", "back") and not following.nominal:
        follows_verb = tagger.animate or (following.tag in (ADP, PUNCT) and word.lower == "back")
        return NOUN if not follows_verb or word.lower == "top" else ADV
    if following.nominal and (tagger.phrase == OPENED or previous == ADP) and following.lower != "of":
        if not (following.strong_verb and following.readings & (THIRD | BASE) and not following.lower.endswith("r")):
            return ADJ
        return ADJ if following.lower in words.NOUNS else NOUN
    if tagger.phrase == OPENED or previous == ADP:
        return NOUN
    if word.lower == "left" and (previous == AUX or tagger.phrase == NAMED):
        return VERB
    if following.nominal and previous in (PUNCT, VERB, CCONJ) and word.lower not in ("back", "left"):
        return ADJ
    return NOUN if word.lower in ("top", "front") and following.lower == "of" else ADV


def _in_or_out(tagger: Tagger, i: int, word: Word) -> int:
    if tagger.previous() in (DET, POSS) or (tagger.previous() == ADP and tagger.next_word(i).lower == "of"):
        return ADJ if tagger.next_word(i).nominal else NOUN
    return ADP


def _light(tagger: Tagger, i: int, word: Word) -> int:
    following = tagger.next_word(i)
    if tagger.phrase == NAMED:  # "a traffic light close to it"
        return NOUN if word.lower == "light" else ADJ
    if following.lower in words.COLORS or (following.readings & ADJECTIVE and following.lower in words.ADJECTIVES):
        return ADJ
    if tagger.previous() == PART:
        return VERB
    if word.lower == "dark":
        return ADJ if tagger.leads_to_noun(i) or tagger.previous() in (AUX, ADV) else NOUN
    return NOUN


def _possessive(tagger: Tagger, i: int, word: Word) -> int:
    if tagger.previous() == PRON:
        return PART if tagger.next_word(i).nominal and tagger.words[i - 1].lower == "it" else AUX
    following = tagger.next_word(i)
    if (following.readings & GERUND and following.lower not in words.ING_NOUNS) or following.tag in (DET, ADP):
        return AUX if following.lower not in words.GERUND_HEADS else PART
    return PART


def _well(tagger: Tagger, i: int, word: Word) -> int:
    return NOUN if tagger.phrase == OPENED else ADV if tagger.next_word(i).readings & PAST else ADVERBIAL


def _can(tagger: Tagger, i: int, word: Word) -> int:
    return NOUN if tagger.phrase == OPENED or tagger.next_word(i).tag in (ADP, PUNCT) else AUX


def _like(tagger: Tagger, i: int, word: Word) -> int:
    return VERB if tagger.previous() == PART else ADP


def _as(tagger: Tagger, i: int, word: Word) -> int:
    following, after = tagger.next_word(i), tagger.next_word(i, 2)
    return SCONJ if following.tag in (DET, POSS, PRON, OPEN) and after.tag != PUNCT else ADP


def _past(tagger: Tagger, i: int, word: Word) -> int:
    return ADJ if tagger.phrase == OPENED and tagger.next_word(i).nominal else ADP


def _getting(tagger: Tagger, i: int, word: Word) -> int:
    return AUX if tagger.next_word(i).readings & PAST else VERB


_Rule = Callable[["Tagger", int, Word], int]
_SPECIAL: dict[str, _Rule] = {
    "that": _that,
    "this": _this,
    "these": _this,
    "those": _this,
    "to": _to,
    "her": _her,
    "next": _next_word,
    "close": _next_word,
    "front": _place,
    "back": _place,
    "top": _place,
    "left": _place,
    "right": _place,
    "inside": _in_or_out,
    "outside": _in_or_out,
    "light": _light,
    "dark": _light,
    "'s": _possessive,
    "can": _can,
    "well": _well,
    "like": _like,
    "as": _as,
    "past": _past,
    "opposite": _past,
    "getting": _getting,
}
