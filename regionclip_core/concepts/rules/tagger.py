"""Parts of speech for captions, by word readings and left context; one pass, linear in the words.

What decides, in this order: closed classes; an open noun phrase (after a determiner or an adjective a noun must
come); number agreement ("people on camels walk up"); a verb after an animate noun ("woman stands", never a "woman
stand"); the word after the next; and last the reading that captions prefer (`caption_words`).
"""

from __future__ import annotations

from regionclip_core.concepts.rules import words
from regionclip_core.concepts.rules.context import Context
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
    SINGULAR,
    SPECIAL,
    THIRD,
    VERB,
    VERBAL,
    Word,
)
from regionclip_core.concepts.rules.special import PARTICLE_FIRSTS, particle, special


class Tagger(Context):
    """Tags one caption; `tags` runs over its words from left to right."""

    __slots__ = ()

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
            self.advance(i, word, tag)
        return self.tagged

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
