"""What a tagger knows between two words of a caption: the tags so far, and the noun phrase that is open."""

from __future__ import annotations

from typing import Literal

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.readings import (
    ADJECTIVE,
    END,
    GERUND,
    NOMINAL,
    PAST,
    PLURAL,
    THIRD,
    VERBAL,
    Tag,
    Word,
)


class Context:
    """The words of a caption, the tags up to one of them, and the state that those tags leave."""

    def __init__(self, caption: list[Word]) -> None:
        self.words = caption
        self.tagged: list[Tag] = []
        self.phrase: Literal["outside", "opened", "named"] = "outside"
        """Outside a noun phrase; after its first words ("a red"), where a noun must come; after a noun of it."""
        self.last_noun: Word = END
        self.plural = False
        """The last noun is a plural."""
        self.animate = False
        """The last noun is a person or an animal, which does things."""
        self.singular_determiner = False
        """The noun phrase began with a word like "a", so that its verb has an -s."""
        self.wanted_plural = False
        """The noun phrase began with a word like "two", so that its noun is a plural."""
        self.compound_subject = False
        """The noun phrase is joined to another ("a man and a dog"), so that its verb has no -s."""
        self.verb_form = 0
        """Readings of the clause's last verb, which others joined to it share ("sits and eats"); 0 without one."""

    def next_word(self, i: int, steps: int = 1) -> Word:
        """Return the word `steps` after word `i`; END behind the last."""
        j = i + steps
        return self.words[j] if j < len(self.words) else END

    def previous(self, steps: int = 1) -> Tag:
        """Return the tag of the word `steps` before; PUNCT before the first word."""
        return self.tagged[-steps] if len(self.tagged) >= steps else "PUNCT"

    def advance(self, word: Word, tag: Tag) -> None:
        """Take the next word and its tag into the state."""
        self.tagged.append(tag)
        before = self.previous(2)
        if tag == "NOUN":
            self.phrase, self.last_noun = "named", word
            self.plural = bool(word.readings & PLURAL)
            self.animate = word.animate
            if len(self.tagged) > 1 and before in ("CCONJ", "PUNCT", "ADP", "VERB", "AUX", "SCONJ", "PRON"):
                self.compound_subject = before == "CCONJ"  # a noun phrase of this noun alone: "a man and dogs walk"
                self.singular_determiner = self.wanted_plural = False
        elif tag in ("DET", "POSS"):
            self.compound_subject = before == "CCONJ"
            self.phrase = "opened"
            self.singular_determiner = word.lower in words.SINGULAR_DETERMINERS
            self.wanted_plural = False
        elif tag == "NUM":
            if self.phrase != "opened":  # "two dogs", not "the two dogs"
                self.singular_determiner = False
                self.compound_subject = before == "CCONJ"
            self.phrase, self.wanted_plural = "opened", word.lower not in ("one", "1")
        elif tag == "ADJ":
            if self.phrase == "outside":
                self.singular_determiner = self.wanted_plural = False
            if word.lower in ("few", "several", "many"):  # "a few hot air balloons"
                self.singular_determiner, self.wanted_plural = False, True
                self.compound_subject = before == "CCONJ"
            self.phrase = "opened" if self.phrase != "named" else "named"
        elif tag == "PART":
            if word.lower in ("'s", "'", "’s"):  # "the boy's ..." goes on to the kite
                self.phrase = "opened"
                self.singular_determiner = False
        elif tag == "ADV" and self.phrase == "opened":
            return  # "a very old" is still open
        elif tag == "CCONJ" and self.phrase == "opened" and before == "ADJ":
            return  # "a black and white cat" is still open
        else:
            self.phrase = "outside"
            if tag in ("VERB", "AUX"):
                self.verb_form = word.readings & VERBAL or THIRD
            elif tag in ("SCONJ", "PUNCT") and word.lower not in (",", '"', "'", "-"):  # a new clause
                self.verb_form = 0
            if tag != "CCONJ":
                self.singular_determiner = self.wanted_plural = False

    def leads_to_noun(self, i: int) -> bool:
        """Return whether a noun follows word `i`, with nothing but adjectives and what joins them between."""
        j, named = i + 1, False
        while j < len(self.words) and j < i + 6:
            word = self.words[j]
            if word.tag == "CCONJ" or word.lower == ",":  # "red and white flags", not "red and a flag"
                after = self.next_word(j)
                describes = after.readings & ADJECTIVE or after.lower in words.COLORS
                if not describes or after.lower in words.NOUNS or j != i + 1:
                    return False
                j += 1
                continue
            if not word.nominal:  # "old rusted cars": a participle before a noun describes it
                described = word.readings & (PAST | GERUND) and word.tag == "OPEN" and self.next_word(j).nominal
                return named or bool(described)
            if word.readings & NOMINAL and not (word.readings & ADJECTIVE and word.lower in words.ADJECTIVES):
                # "a woman in red rides a bike": a verb after a colour that is a thing
                clause = word.strong_verb and word.readings & THIRD and self.next_word(j).tag in ("DET", "POSS", "ADP")
                return not (clause and self.words[i].lower in words.COLORS and self.phrase == "outside")
            named = bool(word.readings & NOMINAL)
            j += 1
        return named
