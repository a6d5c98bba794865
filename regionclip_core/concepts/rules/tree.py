"""From parts of speech to noun phrases and a shallow dependency tree.

The tree says what `doc.noun_chunks` and dependency users of captions need: each noun phrase under its head (det, amod,
nummod, compound, poss), each head under its preposition or verb (pobj, dobj, attr, nsubj) or its first conjunct (conj).
The rest is under the root, which is outside every noun phrase where the caption has such a word; a root inside would
make one chunk of all that comes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from regionclip_core.concepts.rules.readings import Tag

_MODIFIERS = {
    "DET": "det", "POSS": "poss", "NUM": "nummod", "ADJ": "amod", "ADV": "advmod", "NOUN": "compound", "CCONJ": "cc",
    "PUNCT": "punct",
}  # fmt: skip
_LONGEST = 30  # words of a noun phrase; bounds the work on endless lists


def noun_phrases(tags: list[Tag]) -> list[tuple[int, int]]:
    """Return all noun phrases of a caption: (first word, head), in order, disjoint."""
    found: list[tuple[int, int]] = []
    i, n = 0, len(tags)
    while i < n:
        if tags[i] in ("DET", "POSS", "NUM", "ADJ", "NOUN", "ADV"):
            head = _head(tags, i)
            if head >= 0:
                found.append((i, head))
                i = head
        i += 1
    return found


def _head(tags: list[Tag], start: int) -> int:
    """Return the head of the noun phrase that begins at `start`; -1 if none does.

    Determiners, numbers, adverbs, adjectives (also "red, white and blue"), nouns, and possessors before "'s".
    """
    i, n, head = start, min(len(tags), start + _LONGEST), -1
    while i < n:
        tag = tags[i]
        if tag == "NOUN":
            head = i
        elif tag in ("DET", "POSS"):  # "all the dogs"; but "dogs the man", "two the"
            if head >= 0 or (i > start and tags[i - 1] not in ("DET", "ADJ", "ADV")):
                break
        elif tag == "PART":  # "the boy's kite"; but "a boy to kick"
            if head != i - 1 or i + 1 >= n or tags[i + 1] not in ("NOUN", "ADJ", "NUM", "ADV"):
                break
        elif tag == "NUM":  # "the two dogs"; but "a dog | two cats"
            if head >= 0 and tags[i - 1] == "NOUN":
                break
        elif tag == "ADV":  # "a very old dog"; but "a dog | very near"
            if i + 1 >= n or tags[i + 1] not in ("ADJ", "NUM", "ADV") or head >= 0:
                break
        elif tag == "ADJ":  # "a glass topped desk"; but "a dog | alone"
            if head >= 0 and next((after for after in tags[i : i + _LONGEST] if after != "ADJ"), "X") != "NOUN":
                break
        elif tag not in ("CCONJ", "PUNCT") or not _joins_adjectives(tags, i, start):
            break
        i += 1
    return head


def _joins_adjectives(tags: list[Tag], i: int, start: int) -> bool:
    """Return whether the comma or conjunction at `i` joins adjectives of one noun: "red, white and blue flags"."""
    if i == start or tags[i - 1] not in ("ADJ", "PUNCT", "NUM"):
        return False
    described = False
    for tag in tags[i + 1 : i + _LONGEST]:
        if tag == "NOUN":
            return described
        if tag in ("ADJ", "NUM"):
            described = True
        elif tag not in ("ADV", "CCONJ", "PUNCT"):
            return False
    return False


def modifiers(tags: Sequence[str], phrases: list[tuple[int, int]]) -> tuple[list[int], list[str]]:
    """Return the head and the label of each word before the head of a noun phrase; -1 and "dep" for all others."""
    heads, labels = [-1] * len(tags), ["dep"] * len(tags)
    for start, head in phrases:
        owner = start
        for i in range(start, head):
            if tags[i] == "PART":  # "the old man 's hat": everything before belongs to the man
                for j in range(owner, i - 1):
                    heads[j] = i - 1
                heads[i], labels[i] = i - 1, "case"
                labels[i - 1], owner = "poss", i + 1
            else:
                heads[i], labels[i] = head, _MODIFIERS.get(tags[i], "dep")
    return heads, labels


def dependencies(tags: Sequence[str], phrases: list[tuple[int, int]]) -> tuple[list[int], list[str]]:
    """Return the head and the label (spaCy's name of a dependency) of each word, given the caption's noun phrases."""
    n = len(tags)
    inside = [False] * n
    for start, head in phrases:
        inside[start : head + 1] = [True] * (head + 1 - start)
    verbs = (i for i in range(n) if not inside[i] and tags[i] in ("VERB", "AUX"))
    # Without a verb outside every noun phrase: the first word if it is outside, else the first noun phrase's head.
    root = next(verbs, phrases[0][1] if inside[0] else 0)
    heads, labels = modifiers(tags, phrases)
    heads = [head if head >= 0 else root for head in heads]
    conjunct, ended = -1, -1  # heads of the first and the last of the noun phrases joined so far
    noun_before = -1  # head of a noun phrase that ends right before this word
    i, k = 0, 0
    while i < n:
        if k < len(phrases) and phrases[k][0] == i:
            head = phrases[k][1]
            joined = conjunct >= 0 and i > ended + 1 and tags[i - 1] in ("CCONJ", "PUNCT")
            outside = i > 0 and not inside[i - 1]
            if joined:  # "a dog, a cat and a horse": on the first conjunct; a chain would make noun_chunks quadratic
                heads[head], labels[head] = conjunct, "conj"
                for j in range(ended + 1, i):
                    heads[j], labels[j] = conjunct, "cc" if tags[j] == "CCONJ" else "punct"
            elif outside and tags[i - 1] == "ADP":  # "on a mat"
                heads[head], labels[head] = i - 1, "pobj"
            elif outside and tags[i - 1] in ("VERB", "AUX"):  # "holds a cup", "are two cats"
                heads[head], labels[head] = i - 1, "dobj" if tags[i - 1] == "VERB" else "attr"
            elif head != root:  # "a man holds"
                heads[head], labels[head] = root, "nsubj"
            conjunct = conjunct if joined else head
            ended = noun_before = head
            i, k = head + 1, k + 1
            continue
        if tags[i] == "ADP" and noun_before == i - 1 and noun_before >= 0:  # "a cup of": on the cup
            heads[i], labels[i] = noun_before, "prep"
        elif tags[i] in ("PUNCT", "CCONJ"):
            labels[i] = "cc" if tags[i] == "CCONJ" else "punct"
        if tags[i] not in ("PUNCT", "CCONJ"):
            conjunct = -1
        i += 1
    heads[root], labels[root] = root, "ROOT"
    return heads, labels
