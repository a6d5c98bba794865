"""Words of closed classes whose part of speech hangs on their neighbours: "to", "that", "next", "light", "'s", ...

Each rule gets the state before the word, the word's number and its readings, and returns a tag.
"""

from __future__ import annotations

from collections.abc import Callable

from regionclip_core.concepts.rules import words
from regionclip_core.concepts.rules.context import Context
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

PARTICLE_FIRSTS = frozenset(first for first, _ in words.PARTICLE_COMPOUNDS) | {"close"}


def special(context: Context, i: int, word: Word) -> int:
    """The tag of word `i`, which is of class SPECIAL."""
    return _SPECIAL.get(word.lower, _quantifier)(context, i, word)


def _quantifier(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i)
    if following.tag in (DET, POSS) and word.lower in ("all", "both", "half"):
        return DET
    leads = (
        following.nominal
        or (following.tag in (NUM, ADV) and context.next_word(i, 2).nominal)
        or context.leads_to_noun(i)
    )
    participle = bool(following.readings & (PAST | GERUND))
    leads = leads or (participle and context.next_word(i, 2).nominal)
    if word.lower == "one":
        return NUM if leads and following.lower != "another" else PRON
    if not leads or (following.strong_verb and following.readings & THIRD and not following.readings & PLURAL):
        return PRON
    if word.lower in ("other", "several", "many", "few", "more", "most", "much", "enough", "less", "fewer", "half"):
        return ADJ
    return DET


def _that(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i)
    if context.previous() == NOUN or following.tag in (AUX, DET, POSS, PRON):
        return PRON
    return DET if following.nominal and not following.strong_verb else PRON


def _this(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i)
    leads = following.nominal or following.tag == NUM or following.readings & (PAST | GERUND)
    return DET if leads and not (following.strong_verb and following.readings & THIRD) else PRON


def _to(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i)
    if not following.readings & BASE or (following.tag not in (OPEN, AUX) and following.lower not in ("light", "top")):
        return PART if following.lower in ("be", "have", "do", "get") else ADP
    before = context.words[i - 1].lower if i else ""
    if before in words.BEFORE_TO and not (before in words.PARTICLES and following.strong_verb):
        return ADP
    if following.lower in words.VERBS_ONLY:
        return PART
    if following.readings & NOMINAL and following.lower in words.LIKELY_TO_NOUNS:
        return ADP
    after = context.next_word(i, 2)
    if following.readings & NOMINAL and not following.strong_verb and (after.tag in (PUNCT, CCONJ) or after is END):
        return ADP
    return PART


def _her(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i)
    return POSS if following.nominal or following.readings & (PAST | GERUND) or following.tag == NUM else PRON


def _next_word(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i).lower
    if following == "to":
        return ADV
    if word.lower == "close" and following in ("up", "ups") and context.phrase != NAMED:
        return NOUN
    return ADJ if context.phrase == OPENED or context.next_word(i).nominal else ADV


def particle(context: Context, i: int, word: Word) -> int:
    """The second word of "pick up truck" and of "close up"."""
    before = context.words[i - 1].lower
    particle = words.PARTICLE_COMPOUNDS.get((before, word.lower), ())
    if context.next_word(i).lower in particle and context.previous() in (NOUN, ADJ):
        return context.previous()
    return NOUN if before == "close" and word.lower == "up" and context.previous() == NOUN else ADP


def _place(context: Context, i: int, word: Word) -> int:
    """front, back, top, left, right: noun, adjective or adverb."""
    following, previous = context.next_word(i), context.previous()
    if context.phrase == NAMED and word.lower in ("top", "front", "back") and not following.nominal:
        follows_verb = context.animate or (following.tag in (ADP, PUNCT) and word.lower == "back")
        return NOUN if not follows_verb or word.lower == "top" else ADV
    if following.nominal and (context.phrase == OPENED or previous == ADP) and following.lower != "of":
        if not (following.strong_verb and following.readings & (THIRD | BASE) and not following.lower.endswith("r")):
            return ADJ
        return ADJ if following.lower in words.NOUNS else NOUN
    if context.phrase == OPENED or previous == ADP:
        return NOUN
    if word.lower == "left" and (previous == AUX or context.phrase == NAMED):
        return VERB
    if following.nominal and previous in (PUNCT, VERB, CCONJ) and word.lower not in ("back", "left"):
        return ADJ
    return NOUN if word.lower in ("top", "front") and following.lower == "of" else ADV


def _in_or_out(context: Context, i: int, word: Word) -> int:
    if context.previous() in (DET, POSS) or (context.previous() == ADP and context.next_word(i).lower == "of"):
        return ADJ if context.next_word(i).nominal else NOUN
    return ADP


def _light(context: Context, i: int, word: Word) -> int:
    following = context.next_word(i)
    if context.phrase == NAMED:  # "a traffic light close to it"
        return NOUN if word.lower == "light" else ADJ
    if following.lower in words.COLORS or (following.readings & ADJECTIVE and following.lower in words.ADJECTIVES):
        return ADJ
    if context.previous() == PART:
        return VERB
    if word.lower == "dark":
        return ADJ if context.leads_to_noun(i) or context.previous() in (AUX, ADV) else NOUN
    return NOUN


def _possessive(context: Context, i: int, word: Word) -> int:
    if context.previous() == PRON:
        return PART if context.next_word(i).nominal and context.words[i - 1].lower == "it" else AUX
    following = context.next_word(i)
    if (following.readings & GERUND and following.lower not in words.ING_NOUNS) or following.tag in (DET, ADP):
        return AUX if following.lower not in words.GERUND_HEADS else PART
    return PART


def _well(context: Context, i: int, word: Word) -> int:
    return NOUN if context.phrase == OPENED else ADV if context.next_word(i).readings & PAST else ADVERBIAL


def _can(context: Context, i: int, word: Word) -> int:
    return NOUN if context.phrase == OPENED or context.next_word(i).tag in (ADP, PUNCT) else AUX


def _like(context: Context, i: int, word: Word) -> int:
    return VERB if context.previous() == PART else ADP


def _as(context: Context, i: int, word: Word) -> int:
    following, after = context.next_word(i), context.next_word(i, 2)
    return SCONJ if following.tag in (DET, POSS, PRON, OPEN) and after.tag != PUNCT else ADP


def _past(context: Context, i: int, word: Word) -> int:
    return ADJ if context.phrase == OPENED and context.next_word(i).nominal else ADP


def _getting(context: Context, i: int, word: Word) -> int:
    return AUX if context.next_word(i).readings & PAST else VERB


_Rule = Callable[[Context, int, Word], int]
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
