"""Parts of speech for captions, by word readings and left context; one pass, linear in the words.

What decides, in this order: closed classes; an open noun phrase (after a determiner or an adjective a noun must
come); number agreement ("people on camels walk up"); a verb after an animate noun ("woman stands", never a "woman
stand"); the word after the next; and last the reading that captions prefer (`caption_words`).
"""

from __future__ import annotations

from regionclip_core.concepts.rules import words
from regionclip_core.concepts.rules.lexicon import (
    ADJ,
    ADJECTIVE,
    ADP,
    ADV,
    ADVERB,
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
    OUTSIDE,
    PART,
    PAST,
    PLURAL,
    POSS,
    PRON,
    PUNCT,
    SCONJ,
    SINGULAR,
    SPECIAL,
    THIRD,
    VERB,
    VERBAL,
    Word,
)
from regionclip_core.concepts.rules.special import PARTICLE_FIRSTS, particle, special


class Tagger:
    """Tags one caption; `tags` runs over its words from left to right."""

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

    def tags(self) -> list[int]:
        """One part of speech a word (constants of `caption_lemmas`)."""
        for i, word in enumerate(self.words):
            tag = word.tag
            if tag == ADP and i and self.words[i - 1].lower in PARTICLE_FIRSTS:
                tag = particle(self, i, word)
            elif tag == SPECIAL:
                tag = special(self, i, word)
            if tag == OPEN:
                tag = self._open(i, word)
            self.tagged.append(tag)
            self._advance(i, word, tag)
        return self.tagged

    # -------------------------------------------------------- state

    def next_word(self, i: int, steps: int = 1) -> Word:
        j = i + steps
        return self.words[j] if j < len(self.words) else END

    def previous(self) -> int:
        return self.tagged[-1] if self.tagged else PUNCT

    def _advance(self, i: int, word: Word, tag: int) -> None:
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

    # -------------------------------------------------------- open classes

    def _open(self, i: int, word: Word) -> int:
        readings, following = word.readings, self.next_word(i)
        particle = words.PARTICLE_COMPOUNDS.get((word.lower, following.lower))
        if particle and self.next_word(i, 2).lower in particle and self.previous() != PRON:
            return NOUN if word.lower != "see" else ADJ
        unlikely = readings & GERUND or (word.lower in words.ADJECTIVES and self.phrase != OPENED)
        if following.lower == "of" and readings & NOMINAL and not unlikely:
            return NOUN
        if readings & GERUND:
            return self._gerund(i, word, following)
        if readings & NOMINAL and readings & (BASE | THIRD):
            if self._is_verb(i, word, following):
                return VERB
            if readings & (PAST | ADJECTIVE) and not readings & PLURAL:
                return self._participle(i, word, following)
            return NOUN
        if readings & PAST:
            return self._participle(i, word, following)
        if readings & (BASE | THIRD):
            if readings & ADJECTIVE and (self.phrase == OPENED or following.nominal):
                return ADJ
            return VERB
        if readings & ADJECTIVE:
            return self._adjective(i, word, following)
        if readings & ADVERB and not readings & NOMINAL:
            return ADV
        return NOUN

    def _adjective(self, i: int, word: Word, following: Word) -> int:
        if self.leads_to_noun(i):
            return ADJ
        if not word.readings & SINGULAR and not word.readings & PLURAL:
            if word.readings & ADVERB and self.phrase != OPENED:
                return ADV
            return NOUN if self.previous() == DET and following.tag != CCONJ else ADJ
        if word.lower == "orange" and self.previous() in (DET, ADJ, NUM, POSS):
            return NOUN
        if word.lower in words.COLORS:
            return NOUN if self.previous() in (ADP, DET) and following.tag != CCONJ else ADJ
        if self.previous() in (AUX, ADV) or (self.phrase == NAMED and word.lower in words.ADJECTIVES):
            return ADJ
        return NOUN

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

    def _gerund(self, i: int, word: Word, following: Word) -> int:
        lower, previous = word.lower, self.previous()
        if following.lower in words.GERUND_HEADS.get(lower, ()) or following.noun in words.GERUND_HEADS.get(lower, ()):
            return NOUN
        if lower in words.ING_NOUNS:
            acts = following.tag in (DET, POSS) and previous in (AUX, NOUN, PRON)
            subject = self.phrase == NAMED and self.animate and following.tag in (ADP, DET, POSS)
            return VERB if acts or subject else NOUN
        if previous == AUX:
            return VERB
        if self.phrase == OPENED:
            if following.nominal or self.leads_to_noun(i):
                return ADJ
            return NOUN if following.tag not in (DET, POSS) else VERB
        if self.phrase == NAMED:
            if lower in words.MAYBE_ING_NOUNS and not self.animate and not following.nominal and following.tag != DET:
                return NOUN
            return VERB
        if previous == ADP and lower in words.MAYBE_ING_NOUNS and not following.nominal and following.tag != DET:
            return NOUN
        return ADJ if following.nominal and lower in words.ING_ADJECTIVES else VERB

    def _participle(self, i: int, word: Word, following: Word) -> int:
        previous = self.previous()
        if previous == AUX and not word.readings & ADJECTIVE:
            return VERB
        if word.readings & ADJECTIVE and previous == AUX:
            have = self.words[i - 1].lower in words.HAVE_FORMS
            return ADJ if (have and following.nominal) or not word.readings & PAST else VERB
        leads = following.nominal or self.leads_to_noun(i)
        if self.phrase == OPENED:
            if leads:
                return ADJ
            return NOUN if word.readings & NOMINAL else (VERB if word.readings & PAST else ADJ)
        if self.phrase == NAMED:
            if leads and not self.animate and not self.plural:
                return ADJ
            if word.readings & PAST:
                return VERB
            return NOUN if word.readings & SINGULAR and not leads else ADJ
        if leads:
            return ADJ
        if not word.readings & PAST:
            return self._adjective(i, word, following)
        return VERB

    # -------------------------------------------------------- noun or verb

    def _is_verb(self, i: int, word: Word, following: Word) -> bool:
        previous = self.previous()
        if previous == PART and self.words[i - 1].lower == "to":
            return bool(word.readings & BASE)
        if previous == AUX:
            return bool(word.readings & BASE) and self.words[i - 1].lower in words.MODALS
        if previous == PRON:
            return word.strong_verb or following.tag in (DET, POSS, ADP)
        if self.phrase == OPENED:
            return False
        if self.phrase == NAMED:
            return self._agrees(word, following)
        if previous in (ADV, ADVERBIAL):
            adverb = self.words[i - 1]
            subject = len(self.tagged) > 1 and self.tagged[-2] in (NOUN, PRON)
            return word.strong_verb and (subject or adverb.lower.endswith("ly")) and following.tag != OPEN
        if previous == CCONJ:
            same_form = bool(self.verb_form & word.readings & VERBAL)
            governs = following.tag in (DET, POSS, ADP, ADV, ADVERBIAL, PRON, SPECIAL)
            return same_form and word.strong_verb and governs
        if previous == PUNCT and i == 0:
            return bool(word.readings & BASE) and following.tag in (DET, POSS) and word.strong_verb
        if previous == PUNCT:
            return (
                bool(self.verb_form & word.readings & THIRD) and word.strong_verb and following.tag in (DET, POSS, ADP)
            )
        return False

    def _agrees(self, word: Word, following: Word) -> bool:
        """A verb of the noun before it, by number and by what follows."""
        takes_object = following.tag in (DET, POSS, PRON)
        takes_phrase = takes_object or following.tag in (ADP, ADV, ADVERBIAL, NUM, SPECIAL, PART)
        if word.readings & THIRD:
            if self.singular_determiner and not self.plural:
                return word.strong_verb or takes_phrase
            if self.wanted_plural and not self.plural:
                return False
            if self.plural and not self.animate:
                return word.strong_verb and takes_phrase
            return word.strong_verb or (self.animate and takes_phrase)
        if word.animate and not word.strong_verb:
            return False
        together = self.plural or self.last_noun.lower in words.COLLECTIVES
        if self.compound_subject:
            return word.strong_verb and (takes_phrase or self.animate)
        if not together:  # "a bird stand on": agreement errors are common with these
            return self.animate and word.lower in ("stand", "walk") and following.tag == ADP and not self._hot_dog()
        if self.plural and self.last_noun.lower in words.PLURAL_MODIFIERS and not takes_object:
            return word.strong_verb and self.animate
        if not self.plural:
            return word.strong_verb and takes_phrase
        return word.strong_verb or self.animate or takes_object

    def _hot_dog(self) -> bool:
        n = len(self.tagged)
        return n > 1 and self.words[n - 2].lower == "hot"
