"""Words whose part of speech depends on their neighbours: "to", "that", "next", "light", "'s", ...

Each rule gets the state before the word, the word's number and its readings, and returns a tag.
"""

from __future__ import annotations

from collections.abc import Callable

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.context import Context
from regionclip_core.concepts.rules.readings import (
    ADJECTIVE,
    BASE,
    END,
    GERUND,
    NOMINAL,
    PAST,
    PLURAL,
    THIRD,
    Tag,
    Word,
)

PARTICLE_FIRSTS = frozenset(first for first, _ in words.PARTICLE_COMPOUNDS) | {"close"}


def special(context: Context, i: int, word: Word) -> Tag:
    """Return the tag of word `i`, which is of class SPECIAL; words without a rule of their own are quantities."""
    return _RULES.get(word.lower, _quantifier)(context, i, word)


def particle(context: Context, i: int, word: Word) -> Tag:
    """Return the tag of the second word of "pick up truck" and of "close up"; ADP anywhere else ("walk up a dune")."""
    before, previous = context.words[i - 1].lower, context.previous()
    heads = words.PARTICLE_COMPOUNDS.get((before, word.lower), ())
    if context.next_word(i).lower in heads and previous in ("NOUN", "ADJ"):
        return previous
    return "NOUN" if before == "close" and word.lower == "up" and previous == "NOUN" else "ADP"


def _quantifier(context: Context, i: int, word: Word) -> Tag:
    following, after = context.next_word(i), context.next_word(i, 2)
    if following.tag in ("DET", "POSS") and word.lower in ("all", "both", "half"):  # "all the dogs"
        return "DET"
    leads = (
        following.nominal  # "some dogs"
        or (following.tag in ("NUM", "ADV") and after.nominal)  # "another two dogs"
        or (following.readings & (PAST | GERUND) and after.nominal)  # "some parked cars"
        or context.leads_to_noun(i)
    )
    if word.lower == "one":  # "one mug"; but "one of them", "one next to another"
        return "NUM" if leads and following.lower != "another" else "PRON"
    # "spoons are all over", "one cat and another sits on"
    if not leads or (following.strong_verb and following.readings & THIRD and not following.readings & PLURAL):
        return "PRON"
    if word.lower in ("other", "several", "many", "few", "more", "most", "much", "enough", "less", "fewer", "half"):
        return "ADJ"  # may follow a determiner: "the other dog", "a few people"
    return "DET"


def _that(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    if context.previous() == "NOUN" or following.tag in ("AUX", "DET", "POSS", "PRON"):  # "a kitchen that has"
        return "PRON"
    return "DET" if following.nominal and not following.strong_verb else "PRON"  # "that dog"; but "shows that"


def _this(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    leads = following.nominal or following.tag == "NUM" or following.readings & (PAST | GERUND)
    # "this restaurant", "these two"; but "this shows", "this is"
    return "DET" if leads and not (following.strong_verb and following.readings & THIRD) else "PRON"


def _to(context: Context, i: int, word: Word) -> Tag:
    """PART before a verb ("about to kick"), ADP before a noun phrase ("to the left")."""
    following, after = context.next_word(i), context.next_word(i, 2)
    verb_like = following.tag in ("OPEN", "AUX") or following.lower in ("light", "top")
    if not following.readings & BASE or not verb_like:
        return "PART" if following.lower in ("be", "have", "do", "get") else "ADP"
    before = context.words[i - 1].lower if i else ""
    # "connected to jet", "next to bike"; but "bends down to look"
    if before in words.BEFORE_TO and not (before in words.PARTICLES and following.strong_verb):
        return "ADP"
    if following.lower in words.VERBS_ONLY:  # "tries to see"
        return "PART"
    if following.readings & NOMINAL:
        if following.lower in words.LIKELY_TO_NOUNS:  # "walks to school"
            return "ADP"
        if not following.strong_verb and (after.tag in ("PUNCT", "CCONJ") or after is END):  # "from bus to truck."
            return "ADP"
    return "PART"


def _her(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    owns = following.nominal or following.readings & (PAST | GERUND) or following.tag == "NUM"
    return "POSS" if owns else "PRON"  # "her dog", "her parked car", "her two dogs"; but "beside her"


def _next_or_close(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    if following.lower == "to":  # "next to a cup"
        return "ADV"
    if word.lower == "close" and following.lower in ("up", "ups") and context.phrase != "named":  # "a close up"
        return "NOUN"
    return "ADJ" if context.phrase == "opened" or following.nominal else "ADV"  # "the next bus"; but "sits close"


def _place(context: Context, i: int, word: Word) -> Tag:
    """front, back, top, left, right: noun, adjective or adverb."""
    following, previous = context.next_word(i), context.previous()
    if context.phrase == "named" and word.lower in ("top", "front", "back") and not following.nominal:
        if word.lower == "top":  # "a table top"
            return "NOUN"
        # "a store front"; but "a dog back on", "a train back."
        follows_verb = context.animate or (following.tag in ("ADP", "PUNCT") and word.lower == "back")
        return "ADV" if follows_verb else "NOUN"
    if following.nominal and (context.phrase == "opened" or previous == "ADP") and following.lower != "of":
        # "the left side", "on top shelves"; but "its front shows a clock", where "rear" and "corner" are no verbs
        verb = following.strong_verb and following.readings & (THIRD | BASE) and not following.lower.endswith("r")
        return "NOUN" if verb and following.lower not in words.NOUNS else "ADJ"
    if context.phrase == "opened" or previous == "ADP":  # "on top of", "the left"
        return "NOUN"
    if word.lower == "left" and (previous == "AUX" or context.phrase == "named"):  # "is left", "a bag left on"
        return "VERB"
    if following.nominal and previous in ("PUNCT", "VERB", "CCONJ") and word.lower not in ("back", "left"):
        return "ADJ"  # "front view of a bus"
    return "NOUN" if word.lower in ("top", "front") and following.lower == "of" else "ADV"  # "top of"; "turns right"


def _in_or_out(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    if context.previous() in ("DET", "POSS") or (context.previous() == "ADP" and following.lower == "of"):
        return "ADJ" if following.nominal else "NOUN"  # "an outside wall"; "the inside of"
    return "ADP"  # "outside a cafe"


def _light_or_dark(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    if context.phrase == "named":  # "a traffic light close to it"
        return "NOUN" if word.lower == "light" else "ADJ"
    if following.lower in words.COLORS or (following.readings & ADJECTIVE and following.lower in words.ADJECTIVES):
        return "ADJ"  # "dark green"
    if context.previous() == "PART":  # "to light a candle"
        return "VERB"
    if word.lower == "dark":  # "a dark room", "is dark"; but "in the dark"
        return "ADJ" if context.leads_to_noun(i) or context.previous() in ("AUX", "ADV") else "NOUN"
    return "NOUN"


def _possessive(context: Context, i: int, word: Word) -> Tag:
    following = context.next_word(i)
    if context.previous() == "PRON":  # "it's window"; but "it's a dog"
        return "PART" if following.nominal and context.words[i - 1].lower == "it" else "AUX"
    # "a man's holding a kite", "the dog's on"; but "the boy's kite", "the man's fishing rod"
    is_verb = following.readings & GERUND and following.lower not in words.ING_NOUNS
    if is_verb or following.tag in ("DET", "ADP"):
        return "AUX" if following.lower not in words.GERUND_HEADS else "PART"
    return "PART"


def _well(context: Context, i: int, word: Word) -> Tag:
    if context.phrase == "opened":  # "a well"
        return "NOUN"
    return "ADV" if context.next_word(i).readings & PAST else "ADVERBIAL"  # "well lit room"; "as well"


def _can(context: Context, i: int, word: Word) -> Tag:
    return "NOUN" if context.phrase == "opened" or context.next_word(i).tag in ("ADP", "PUNCT") else "AUX"  # "a can of"


def _like(context: Context, i: int, word: Word) -> Tag:
    return "VERB" if context.previous() == "PART" else "ADP"  # "looks like a bird"


def _as(context: Context, i: int, word: Word) -> Tag:
    following, after = context.next_word(i), context.next_word(i, 2)
    clause = following.tag in ("DET", "POSS", "PRON", "OPEN") and after.tag != "PUNCT"
    return "SCONJ" if clause else "ADP"  # "as the sun sets"; but "as well"


def _past_or_opposite(context: Context, i: int, word: Word) -> Tag:
    # "the opposite wall"; but "walks past a row of cars"
    return "ADJ" if context.phrase == "opened" and context.next_word(i).nominal else "ADP"


def _getting(context: Context, i: int, word: Word) -> Tag:
    return "AUX" if context.next_word(i).readings & PAST else "VERB"  # "getting washed"; but "getting ready"


_RULES: dict[str, Callable[[Context, int, Word], Tag]] = {
    "that": _that,
    "to": _to,
    "her": _her,
    "'s": _possessive,
    "can": _can,
    "well": _well,
    "like": _like,
    "as": _as,
    "getting": _getting,
    **dict.fromkeys(("this", "these", "those"), _this),
    **dict.fromkeys(("next", "close"), _next_or_close),
    **dict.fromkeys(("front", "back", "top", "left", "right"), _place),
    **dict.fromkeys(("inside", "outside"), _in_or_out),
    **dict.fromkeys(("light", "dark"), _light_or_dark),
    **dict.fromkeys(("past", "opposite"), _past_or_opposite),
}
