"""The spaCy component `caption_rules`: POS, LEMMA, HEAD and DEP for English captions, without a trained model.

The tree is shallow on purpose. It says what `doc.noun_chunks` and dependency users of captions need: each noun
phrase under its head (det, amod, nummod, compound, poss), each head under its preposition or verb (pobj, dobj, attr,
nsubj) or its first conjunct (conj). The rest hangs on the root, which lies outside every noun phrase where the caption
has such a word; a root inside would make one chunk of all that precedes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from spacy import symbols
from spacy.attrs import DEP, HEAD, LEMMA, ORTH, POS
from spacy.language import Language
from spacy.strings import get_string_id
from spacy.tokens import Doc

from regionclip_core.concepts.rules import words
from regionclip_core.concepts.rules.lexicon import (
    ADJ,
    ADP,
    ADV,
    ADVERBIAL,
    AUX,
    CCONJ,
    DET,
    NOUN,
    NUM,
    OTHER,
    PART,
    POSS,
    PRON,
    PUNCT,
    SCONJ,
    VERB,
    Lexicon,
    Word,
    lexicon,
)
from regionclip_core.concepts.rules.tagger import Tagger

_UNIVERSAL = {
    NOUN: symbols.NOUN, VERB: symbols.VERB, ADJ: symbols.ADJ, ADV: symbols.ADV, ADP: symbols.ADP, DET: symbols.DET,
    NUM: symbols.NUM, PRON: symbols.PRON, AUX: symbols.AUX, PART: symbols.PART, CCONJ: symbols.CCONJ,
    SCONJ: symbols.SCONJ, PUNCT: symbols.PUNCT, POSS: symbols.PRON, OTHER: symbols.X, ADVERBIAL: symbols.ADV,
}  # fmt: skip
_LABELS = (
    "ROOT", "nsubj", "dobj", "attr", "pobj", "prep", "conj", "cc", "punct", "case", "poss", "dep",
    "det", "nummod", "amod", "advmod", "compound",
)  # fmt: skip
_ROOT, _NSUBJ, _DOBJ, _ATTR, _POBJ, _PREP, _CONJ, _CC, _PUNCT, _CASE, _POSS, _DEP = map(get_string_id, _LABELS[:12])
_DET, _NUMMOD, _AMOD, _ADVMOD, _COMPOUND = map(get_string_id, _LABELS[12:])
_MODIFIERS = {
    DET: _DET, POSS: _POSS, NUM: _NUMMOD, ADJ: _AMOD, ADV: _ADVMOD, NOUN: _COMPOUND, CCONJ: _CC, PUNCT: _PUNCT
}  # fmt: skip


_LONGEST = 30  # words of a noun phrase; bounds the work on endless lists


def _phrase(tags: list[int], start: int) -> tuple[int, int] | None:
    """(first word, head) of the noun phrase that begins at `start`, or None.

    determiners, numbers, adverbs, adjectives (also "red , white and blue"), nouns, and possessors before "'s".
    """
    i, n, head = start, min(len(tags), start + _LONGEST), -1
    while i < n:
        tag = tags[i]
        if tag == NOUN:
            head = i
        elif tag in (DET, POSS):
            if head >= 0 or (i > start and tags[i - 1] not in (DET, ADJ, ADV)):
                break
        elif tag == PART:
            if head != i - 1 or i + 1 >= n or tags[i + 1] not in (NOUN, ADJ, NUM, ADV):
                break
        elif tag == NUM:
            if head >= 0 and tags[i - 1] == NOUN:
                break
        elif tag == ADV:
            if i + 1 >= n or tags[i + 1] not in (ADJ, NUM, ADV) or head >= 0:
                break
        elif tag == ADJ:
            if head >= 0 and not _noun_follows(tags, i):
                break
        elif tag in (CCONJ, PUNCT):
            if not _joins_adjectives(tags, i, start):
                break
        else:
            break
        i += 1
    return (start, head) if head >= 0 else None


def _noun_follows(tags: list[int], i: int) -> bool:
    """Adjectives from `i` on end in a noun."""
    for tag in tags[i : i + _LONGEST]:
        if tag != ADJ:
            return tag == NOUN
    return False


def _joins_adjectives(tags: list[int], i: int, start: int) -> bool:
    """The comma or conjunction at `i` joins adjectives of one noun: "red , white and blue flags"."""
    if i == start or tags[i - 1] not in (ADJ, PUNCT, NUM):
        return False
    described = False
    for tag in tags[i + 1 : i + _LONGEST]:
        if tag == NOUN:
            return described
        if tag in (ADJ, NUM):
            described = True
        elif tag not in (ADV, CCONJ, PUNCT):
            return False
    return False


def phrases(tags: list[int]) -> list[tuple[int, int]]:
    """All noun phrases of a caption: (first word, head), in order, disjoint."""
    found: list[tuple[int, int]] = []
    i, n = 0, len(tags)
    while i < n:
        if tags[i] in (DET, POSS, NUM, ADJ, NOUN, ADV):
            phrase = _phrase(tags, i)
            if phrase is not None:
                found.append(phrase)
                i = phrase[1] + 1
                continue
        i += 1
    return found


def _inside(tags: list[int], start: int, head: int, heads: list[int], labels: list[int]) -> None:
    """Attach the words of one noun phrase to its head; a possessor takes the words before it."""
    owner = start
    for i in range(start, head):
        if tags[i] == PART:  # "the old man 's hat": everything before belongs to the man
            for j in range(owner, i - 1):
                heads[j] = i - 1
            heads[i], labels[i] = i - 1, _CASE
            labels[i - 1], owner = _POSS, i + 1
        else:
            labels[i] = _MODIFIERS.get(tags[i], _DEP)
        heads[i] = head if tags[i] != PART else i - 1


def _tree(tags: list[int], spans: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """(head of each word, label of each word)."""
    n = len(tags)
    inside = [False] * n
    for start, head in spans:
        inside[start : head + 1] = [True] * (head + 1 - start)
    root = _root(tags, inside, spans)
    heads, labels = [root] * n, [_DEP] * n
    for start, head in spans:
        _inside(tags, start, head, heads, labels)
    conjunct, ended = -1, -1  # heads of the first and the last of the noun phrases joined so far
    noun_before = -1  # head of a noun phrase that ends right before this word
    i, k = 0, 0
    while i < n:
        if k < len(spans) and spans[k][0] == i:
            head = spans[k][1]
            joined = conjunct >= 0 and i > ended + 1 and tags[i - 1] in (CCONJ, PUNCT)
            if joined:  # on the first conjunct: a chain would make noun_chunks quadratic
                heads[head], labels[head] = conjunct, _CONJ
                for j in range(ended + 1, i):
                    heads[j], labels[j] = conjunct, _CC if tags[j] == CCONJ else _PUNCT
            elif i and tags[i - 1] == ADP and not inside[i - 1]:
                heads[head], labels[head] = i - 1, _POBJ
            else:
                _argument(tags, i, head, root, heads, labels, inside)
            conjunct = conjunct if joined else head
            ended = noun_before = head
            i, k = head + 1, k + 1
            continue
        if tags[i] == ADP and noun_before == i - 1 and noun_before >= 0:
            heads[i], labels[i] = noun_before, _PREP
        elif tags[i] in (PUNCT, CCONJ):
            labels[i] = _CC if tags[i] == CCONJ else _PUNCT
        if tags[i] not in (PUNCT, CCONJ):
            conjunct = -1
        i += 1
    heads[root], labels[root] = root, _ROOT
    return heads, labels


def _argument(
    tags: list[int], start: int, head: int, root: int, heads: list[int], labels: list[int], inside: list[bool]
) -> None:
    """A noun phrase after no preposition: object of the verb before it, else subject (or root)."""
    before = start - 1
    if before >= 0 and tags[before] in (VERB, AUX) and not inside[before]:
        heads[head], labels[head] = before, _DOBJ if tags[before] == VERB else _ATTR
    elif head != root:
        heads[head], labels[head] = root, _NSUBJ


def _root(tags: list[int], inside: list[bool], spans: list[tuple[int, int]]) -> int:
    """A verb outside every noun phrase, else the first noun phrase's head if nothing stands before it, else any word
    outside."""
    first = spans[0][1] if spans else 0
    fallback = -1
    for i, tag in enumerate(tags):
        if not inside[i]:
            if tag in (VERB, AUX):
                return i
            if fallback < 0:
                fallback = i
    if (spans and spans[0][0] == 0) or fallback < 0:
        return first
    return fallback


class CaptionRules:
    """The component: words to readings, readings to tags, tags to phrases, phrases to a tree."""

    def __init__(self, table: Lexicon) -> None:
        self.lexicon = table
        self._words: dict[int, Word] = {}  # by spaCy's hash of the text
        self._hashes: dict[str, int] = {}  # spaCy's hash of a lemma

    def __call__(self, doc: Doc) -> Doc:
        n = len(doc)
        if n == 0:
            return doc
        known = self._words
        caption = []
        for orth in doc.to_array(ORTH).tolist():
            word = known.get(orth)
            if word is None:
                word = self.lexicon.word(doc.vocab.strings[orth])
                if len(known) < _CACHED:
                    known[orth] = word
            caption.append(word)
        tags = Tagger(caption).tags()
        heads, labels = _tree(tags, phrases(tags))
        hashes, add = self._hashes, doc.vocab.strings.add
        flat: list[int] = []
        for i, (word, tag) in enumerate(zip(caption, tags, strict=True)):
            lemma = word.lower
            if tag == NOUN:
                lemma = word.noun if lemma != "glasses" else _glasses(caption, tags, i)
            elif tag in (VERB, AUX):
                lemma = word.verb
            key = hashes.get(lemma)
            if key is None:
                key = add(lemma)
                if len(hashes) < _CACHED:
                    hashes[lemma] = key
            flat += (_UNIVERSAL[tag], key, (heads[i] - i) & _MASK, labels[i])
        annotations: Any = np.array(flat, dtype=np.uint64).reshape(n, 4)  # spaCy's stubs know int arrays only
        doc.from_array(_ATTRIBUTES, annotations)
        return doc

    def to_disk(self, path: object, exclude: object = ()) -> None:
        """Nothing to save: the rules are code, the tables a package."""

    def from_disk(self, path: object, exclude: object = ()) -> CaptionRules:
        """Nothing to load."""
        return self


def _glasses(caption: list[Word], tags: list[int], i: int) -> str:
    """ "wine glasses" and "glasses of milk" are glasses; bare "glasses" is eyewear."""
    before = caption[i - 1].lower if i else ""
    after = caption[i + 1].lower if i + 1 < len(caption) else ""
    drinks = before in words.DRINKS or after == "of" or (i > 0 and tags[i - 1] == NUM)
    return "glass" if drinks else "glasses"


@Language.factory(
    "caption_rules", assigns=["token.pos", "token.lemma", "token.dep", "token.head", "doc.noun_chunks", "doc.sents"]
)
def _make_caption_rules(nlp: Language, name: str) -> CaptionRules:
    for label in _LABELS:
        nlp.vocab.strings.add(label)
    return CaptionRules(lexicon())


def blank_pipeline() -> Language:
    """`spacy.blank("en")` with the component, and a tokenizer that keeps "t-shirt" in one piece.

    Raises:
        ValueError: spacy-lookups-data is not installed.
    """
    import spacy
    from spacy.util import compile_infix_regex

    nlp = spacy.blank("en")
    infixes = [rule for rule in nlp.Defaults.infixes or () if isinstance(rule, str) and "(?:-|" not in rule]
    infixes.append("(?<=[A-Za-z0-9])(?:–|—|--|---|——|~)(?=[A-Za-z0-9])")
    tokenizer: Any = nlp.tokenizer
    tokenizer.infix_finditer = compile_infix_regex(infixes).finditer
    nlp.add_pipe("caption_rules")
    return nlp


_CACHED = 500_000  # a bound for corpora full of one-off strings
_MASK = (1 << 64) - 1  # HEAD is a signed offset in an unsigned column
_ATTRIBUTES = [POS, LEMMA, HEAD, DEP]
