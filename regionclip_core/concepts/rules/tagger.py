"""Parts of speech for captions, by word readings and left context; one pass, linear in the words.

What decides, in this order: closed classes; an open noun phrase (after a determiner or an adjective a noun must
come); number agreement ("people on camels walk up"); a verb after an animate noun ("woman stands", never a "woman
stand"); the words that follow; and last the reading that captions prefer (readings.py).
"""

from __future__ import annotations

from regionclip_core.concepts.rules import word_lists as words
from regionclip_core.concepts.rules.ambiguous_words import PARTICLE_FIRSTS, particle, special
from regionclip_core.concepts.rules.context import Context
from regionclip_core.concepts.rules.readings import (
    ADJECTIVE,
    ADVERB,
    BASE,
    GERUND,
    NOMINAL,
    PAST,
    PLURAL,
    SINGULAR,
    THIRD,
    VERBAL,
    Tag,
    Word,
)


class Tagger(Context):
    """Tags one caption; `tags` runs over its words from left to right."""

    def tags(self) -> list[Tag]:
        """Return the part of speech of each word."""
        for i, word in enumerate(self.words):
            tag = word.tag
            if tag == "ADP" and i and self.words[i - 1].lower in PARTICLE_FIRSTS:
                tag = particle(self, i, word)
            elif tag == "SPECIAL":
                tag = special(self, i, word)
            if tag == "OPEN":
                tag = self._open(i, word)
            self.advance(word, tag)
        return self.tagged

    def _open(self, i: int, word: Word) -> Tag:
        readings, following = word.readings, self.next_word(i)
        particle = words.PARTICLE_COMPOUNDS.get((word.lower, following.lower))
        if particle and self.next_word(i, 2).lower in particle and self.previous() != "PRON":  # "a pick up truck"
            return "NOUN" if word.lower != "see" else "ADJ"
        # "a herd of cattle", "a touch of humor"; but "full of people", "eating of"
        unlikely = readings & GERUND or (word.lower in words.ADJECTIVES and self.phrase != "opened")
        if following.lower == "of" and readings & NOMINAL and not unlikely:
            return "NOUN"
        if readings & GERUND:
            return self._gerund(i, word, following)
        if readings & NOMINAL and readings & (BASE | THIRD):  # "walk", "watches"
            if self._is_verb(i, word, following):
                return "VERB"
            if readings & (PAST | ADJECTIVE) and not readings & PLURAL:  # "a cut cake"
                return self._participle(i, word, following)
            return "NOUN"
        if readings & PAST:
            return self._participle(i, word, following)
        if readings & (BASE | THIRD):  # "holds"; but "a muddy field", which one can also muddy
            if readings & ADJECTIVE and (self.phrase == "opened" or following.nominal):
                return "ADJ"
            return "VERB"
        if readings & ADJECTIVE:
            return self._adjective(i, word, following)
        return "ADV" if readings & ADVERB and not readings & NOMINAL else "NOUN"

    def _adjective(self, i: int, word: Word, following: Word) -> Tag:
        compound = self.phrase == "named" and self.previous() == "NOUN" and not self.plural and not self.animate
        if compound and word.lower in words.COLOR_THINGS:  # "ice cream and cake"; but "a bus orange and white"
            return "NOUN" if self.next_word(i, 2).lower not in words.COLORS else "ADJ"
        if self.leads_to_noun(i):  # "a steep slope"; but "a steam locomotive museum"
            noun = word.readings & SINGULAR and not word.lower.endswith(("al", "an", "ent", "ic", "ly"))
            listed = word.lower in words.ADJECTIVES or word.lower in words.COLORS
            return "NOUN" if compound and noun and not listed else "ADJ"
        if not word.readings & NOMINAL:
            if word.readings & ADVERB and self.phrase != "opened":  # "a cat looking upward"
                return "ADV"
            # "the homeless" are people, but "the floor is shiny"
            return "NOUN" if self.previous() == "DET" and following.tag != "CCONJ" else "ADJ"
        if word.lower in words.COLOR_THINGS and (i == 0 or self.previous() in ("DET", "ADJ", "NUM", "POSS")):
            return "NOUN"  # "a peeled orange"
        if word.lower in words.COLORS:  # "a woman in red"; but "the bus is red", "in red and white"
            return "NOUN" if self.previous() in ("ADP", "DET") and following.tag != "CCONJ" else "ADJ"
        # "the pool is oval", "a window square in shape"; but "an adult", "a customer"
        if self.previous() in ("AUX", "ADV") or (self.phrase == "named" and word.lower in words.ADJECTIVES):
            return "ADJ"
        return "NOUN"

    def _gerund(self, i: int, word: Word, following: Word) -> Tag:
        lower, previous = word.lower, self.previous()
        heads = words.GERUND_HEADS.get(lower, ())
        if following.lower in heads or following.noun in heads:  # "a cutting board"
            return "NOUN"
        if lower in words.ING_NOUNS:  # "the building"; but "is painting a wall", "a man painting on glass"
            acts = following.tag in ("DET", "POSS") and previous in ("AUX", "NOUN", "PRON")
            subject = self.phrase == "named" and self.animate and following.tag in ("ADP", "DET", "POSS")
            return "VERB" if acts or subject else "NOUN"
        if previous == "AUX":  # "is looking"
            return "VERB"
        if self.phrase == "opened":
            if following.nominal or self.leads_to_noun(i):  # "a smiling couple"
                return "ADJ"
            return "NOUN" if following.tag not in ("DET", "POSS") else "VERB"  # "a drawing"; "a young riding a bike"
        maybe_noun = lower in words.MAYBE_ING_NOUNS and not following.nominal and following.tag != "DET"
        if self.phrase == "named":  # "a kitchen setting"; but "a man crossing", "a bridge crossing the river"
            return "NOUN" if maybe_noun and not self.animate else "VERB"
        if previous == "ADP" and maybe_noun:  # "a cake with writing"
            return "NOUN"
        return "ADJ" if following.nominal and lower in words.ING_ADJECTIVES else "VERB"  # "smiling girls"

    def _participle(self, i: int, word: Word, following: Word) -> Tag:
        previous = self.previous()
        if previous == "AUX":
            if not word.readings & ADJECTIVE:  # "is parked"
                return "VERB"
            # "is broken"; but "has closed doors", "is clean"
            have = self.words[i - 1].lower in words.HAVE_FORMS
            return "ADJ" if (have and following.nominal) or not word.readings & PAST else "VERB"
        leads = following.nominal or self.leads_to_noun(i)
        if self.phrase == "opened":
            if leads:  # "a dented pole"
                return "ADJ"
            if word.readings & NOMINAL:  # "a small moped"
                return "NOUN"
            return "VERB" if word.readings & PAST else "ADJ"  # "a group of five gathered around"
        if self.phrase == "named":
            subject = self.animate or self.plural
            if word.readings & SINGULAR and not word.readings & PAST and not (leads and subject):
                return "NOUN"  # "a brick arch bridge", "a center piece"; but "a dog sound asleep"
            if leads and not subject:  # "a glass topped desk", not "a man dressed warmly"
                return "ADJ"
            if word.readings & PAST:  # "birds perched on a branch"; but "a tea set"
                return "NOUN" if f"{self.words[i - 1].lower} {word.lower}" in words.LEXICAL_HEADS else "VERB"
            return "ADJ"
        if leads:  # "used cars"
            return "ADJ"
        return "VERB" if word.readings & PAST else self._adjective(i, word, following)

    def _is_verb(self, i: int, word: Word, following: Word) -> bool:
        """Return whether a word that can be a noun or a verb is a verb."""
        previous, before = self.previous(), self.words[i - 1].lower if i else ""
        if previous == "PART" and before == "to":  # "about to kick"
            return bool(word.readings & BASE)
        if previous == "AUX":  # "can spot"; but "has mirrors"
            return bool(word.readings & BASE) and before in words.MODALS
        if previous == "PRON":  # "while they stand", "a door that opens up"
            return word.strong_verb or following.tag in ("DET", "POSS", "ADP")
        if self.phrase == "opened":  # "a watch", "two walks"
            return False
        if self.phrase == "named":  # "the cutting boards"; but "the building blocks the view"
            compound = word.noun in words.GERUND_HEADS.get(before, ()) and following.tag not in ("DET", "POSS")
            return not compound and self._agrees(word, following)
        if previous in ("ADV", "ADVERBIAL"):  # "a man quickly turns to", "a boy now stands on"; but "very counter top"
            subject = self.previous(2) in ("NOUN", "PRON")
            return word.strong_verb and (subject or before.endswith("ly")) and following.tag != "OPEN"
        if previous == "CCONJ":  # "a man sits and reads a book"; but "a man holds bats and balls"
            same_form = bool(self.verb_form & word.readings & VERBAL)
            governs = following.tag in ("DET", "POSS", "ADP", "ADV", "ADVERBIAL", "PRON", "SPECIAL")
            return same_form and word.strong_verb and governs
        if i == 0:  # "hold the door", as on a sign
            return bool(word.readings & BASE) and following.tag in ("DET", "POSS") and word.strong_verb
        if previous == "PUNCT":  # "a man sits, reads a book"
            governs = following.tag in ("DET", "POSS", "ADP")
            return bool(self.verb_form & word.readings & THIRD) and word.strong_verb and governs
        return False

    def _agrees(self, word: Word, following: Word) -> bool:
        """Return whether the word is the verb of the noun before it, by its number and by what follows."""
        takes_object = following.tag in ("DET", "POSS", "PRON")
        takes_phrase = takes_object or following.tag in ("ADP", "ADV", "ADVERBIAL", "NUM", "SPECIAL", "PART")
        if word.readings & THIRD:  # with -s: the verb of a singular, or a plural noun
            if self.singular_determiner and not self.plural:  # "a soldier salutes the flag", "a man bikes along"
                return word.strong_verb or takes_phrase
            if self.wanted_plural and not self.plural:  # "two metal sinks"
                return False
            if self.plural and not self.animate:  # "a woman in jeans plays on"; but "jeans pockets"
                return word.strong_verb and takes_phrase
            return word.strong_verb or (self.animate and takes_phrase)  # "the mother feeds", "the dog noses in"
        # without -s: the verb of a plural, or a noun
        if word.animate and not word.strong_verb:  # "a police officer", "a kitty cat"
            return False
        if self.compound_subject:  # "a dog and a cat sleep on"; but "a tub and shower curtain"
            return word.strong_verb and (takes_phrase or self.animate)
        if not self.plural:
            if self.last_noun.lower in words.COLLECTIVES:  # "a couple walk along"
                return word.strong_verb and takes_phrase
            # "a soccer ball"; but "a bird stand on": errors of agreement are common with these
            hot_dog = self.words[max(len(self.tagged) - 2, 0)].lower == "hot"  # "a hot dog stand"
            return self.animate and word.lower in ("stand", "walk") and following.tag == "ADP" and not hot_dog
        if self.last_noun.lower in words.PLURAL_MODIFIERS and not takes_object:  # "a sports watch"; "women walk"
            return word.strong_verb and self.animate
        return word.strong_verb or self.animate or takes_object  # "people ride", "trucks line the street"
