"""What a tagger knows between two words of a caption: the tags so far, and the noun phrase that is open."""

from __future__ import annotations

from regionclip_core.concepts.rules import words
from regionclip_core.concepts.rules.lexicon import (
    ADJ,
    ADJECTIVE,
    ADP,
    ADV,
    AUX,
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
    OUTSIDE,
    PART,
    PAST,
    PLURAL,
    POSS,
    PRON,
    PUNCT,
    SCONJ,
    THIRD,
    VERB,
    VERBAL,
    Word,
)


class Context:
    """The words of a caption, the tags up to one of them, and the state that those tags leave."""

    __slots__ = (
        "animate",
        "compound_subject",
        "last_noun",
        "phrase",
        "plural",
        "singular_determiner",
        "tagged",
        "verb_form",
        "wanted_plural",
        "words",
    )

    def __init__(self, caption: list[Word]) -> None:
        self.words = caption
        self.tagged: list[int] = []
        self.phrase = OUTSIDE
        self.last_noun: Word = END
        self.plural = False
        self.animate = False
        self.singular_determiner = False
        self.wanted_plural = False
        self.compound_subject = False
        self.verb_form = 0  # readings of the last verb: 0 none yet

    def next_word(self, i: int, steps: int = 1) -> Word:
        """The word `steps` after word `i`; END behind the last."""
        j = i + steps
        return self.words[j] if j < len(self.words) else END

    def previous(self) -> int:
        """The tag of the word before; PUNCT before the first."""
        return self.tagged[-1] if self.tagged else PUNCT

    def advance(self, i: int, word: Word, tag: int) -> None:
        """Take word `i`, tagged `tag`, into the state."""
        if tag == NOUN:
            self.phrase, self.last_noun = NAMED, word
            self.plural = bool(word.readings & PLURAL)
            self.animate = word.animate
        elif tag in (DET, POSS):
            self.compound_subject = self._previous_but_one() == CCONJ
            self.phrase = OPENED
            self.singular_determiner = word.lower in words.SINGULAR_DETERMINERS
            self.wanted_plural = False
        elif tag == NUM:
            if self.phrase != OPENED:
                self.singular_determiner = False
                self.compound_subject = self._previous_but_one() == CCONJ
            self.phrase, self.wanted_plural = OPENED, word.lower not in ("one", "1")
        elif tag == ADJ:
            if self.phrase == OUTSIDE:
                self.singular_determiner = self.wanted_plural = False
            if word.lower in ("few", "several", "many"):  # "a few hot air balloons"
                self.singular_determiner, self.wanted_plural = False, True
                self.compound_subject = self._previous_but_one() == CCONJ
            self.phrase = OPENED if self.phrase != NAMED else NAMED
        elif tag == PART:
            if word.lower in ("'s", "'", "’s"):
                self.phrase = OPENED
                self.singular_determiner = False
        elif tag == ADV and self.phrase == OPENED:
            return
        elif tag == CCONJ and self.phrase == OPENED and self._previous_but_one() == ADJ:
            return  # "a black and white cat" is still open
        else:
            self.phrase = OUTSIDE
            if tag in (VERB, AUX):
                self.verb_form = word.readings & VERBAL or THIRD
            elif tag in (SCONJ, PUNCT) and word.lower not in (",", '"', "'", "-"):
                self.verb_form = 0
            if tag not in (CCONJ,):
                self.singular_determiner = self.wanted_plural = False
        if tag == NOUN and len(self.tagged) > 1 and self.tagged[-2] in (CCONJ, PUNCT, ADP, VERB, AUX, SCONJ, PRON):
            self.compound_subject = self.tagged[-2] == CCONJ
            self.singular_determiner = self.wanted_plural = False

    def _previous_but_one(self) -> int:
        return self.tagged[-2] if len(self.tagged) > 1 else PUNCT

    def leads_to_noun(self, i: int) -> bool:
        """A noun follows, with nothing but adjectives (and their commas and conjunctions) between."""
        j, named = i + 1, False
        while j < len(self.words) and j < i + 6:
            word = self.words[j]
            if word.tag == CCONJ or word.lower == ",":
                after = self.next_word(j)
                describes = after.readings & ADJECTIVE or after.lower in words.COLORS
                if not describes or after.lower in words.NOUNS or j != i + 1:
                    return False
                j += 1
                continue
            if not word.nominal:
                described = word.readings & (PAST | GERUND) and word.tag == OPEN and self.next_word(j).nominal
                return named or bool(described)
            if word.readings & NOMINAL and not (word.readings & ADJECTIVE and word.lower in words.ADJECTIVES):
                clause = word.strong_verb and word.readings & THIRD and self.next_word(j).tag in (DET, POSS, ADP)
                return not (clause and self.words[i].lower in words.COLORS and self.phrase == OUTSIDE)
            named = bool(word.readings & NOMINAL)
            j += 1
        return named
