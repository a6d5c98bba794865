"""Reads the captions marked by hand (tests/golden/captions_gold.txt explains the marks) and scores a parser on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regionclip_core.concepts.parser import CaptionParser

Chunk = tuple[int, int, int]
"""First word, word after the last, head: numbers of words separated by spaces."""


@dataclass
class GoldCaption:
    section: str
    words: list[str]
    chunks: set[Chunk] = field(default_factory=set)
    entities: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        return re.sub(r" (?=[.,;:!?]|'s\b)", "", " ".join(self.words))


@dataclass
class Scores:
    chunk: list[int] = field(default_factory=lambda: [0, 0, 0])
    """Right, found, marked."""
    head: list[int] = field(default_factory=lambda: [0, 0, 0])
    entity: list[int] = field(default_factory=lambda: [0, 0, 0])
    captions: int = 0
    mistakes: list[str] = field(default_factory=list)

    def f1(self, what: str) -> float:
        """F1 in percent of `chunk`, `head` or `entity`."""
        right, found, marked = getattr(self, what)
        return 200.0 * right / (found + marked)

    def summary(self) -> str:
        parts = [f"{what} F1 {self.f1(what):.2f}" for what in ("head", "chunk", "entity")]
        return f"{self.captions} captions: " + ", ".join(parts)


def read_gold(path: str | Path) -> list[GoldCaption]:
    """All captions of a gold file."""
    section, found = "", []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        elif line.strip() and not line.startswith("#"):
            found.append(_caption(section, line))
    return found


def _caption(section: str, line: str) -> GoldCaption:
    caption = GoldCaption(section, [])
    start = head = -1
    for mark in line.split():
        if mark.startswith("["):
            mark, start, head = mark[1:], len(caption.words), -1
        closes = mark.endswith("]")
        mark = mark.rstrip("]") if closes else mark
        if mark.startswith("*"):
            mark, head = mark[1:], len(caption.words)
        word, _, lemma = mark.partition("/")
        owner, word = word.startswith("^"), word.lstrip("^")
        parts = word.split("_")
        caption.words += [part.lstrip("~") for part in parts]
        if owner:
            caption.entities.add(lemma or word.lower())
        if closes:
            head = head if head >= 0 else len(caption.words) - 1
            caption.chunks.add((start, len(caption.words), head))
            if "~" not in word:
                caption.entities |= _entities([part.lower() for part in parts], lemma)
    return caption


def _entities(parts: list[str], lemma: str) -> set[str]:
    whole = lemma.lstrip("=").replace("_", " ") or " ".join(parts)
    if len(parts) > 1 and " " not in whole:
        whole = " ".join([*parts[:-1], whole])
    return {whole} if lemma.startswith("=") else {whole, whole.split()[-1]}


def evaluate(parser: CaptionParser, gold: Sequence[GoldCaption]) -> Scores:
    """Chunks and heads against the marks, pronoun chunks left out; entities against the phrases that are kept."""
    scores = Scores(captions=len(gold))
    phrases = parser.parse(caption.text for caption in gold)
    for caption, mentions in zip(gold, phrases, strict=True):
        chunks = _chunks(parser, caption)
        entities = {phrase.text for phrase in mentions if phrase.drop_reason is None}
        _add(scores.chunk, {c[:2] for c in chunks}, {c[:2] for c in caption.chunks})
        _add(scores.head, {c[2] for c in chunks}, {c[2] for c in caption.chunks})
        _add(scores.entity, entities, caption.entities)
        if chunks != caption.chunks or entities != caption.entities:
            show = [" ".join(caption.words[a:b]) for a, b, _ in sorted(chunks - caption.chunks)]
            miss = [" ".join(caption.words[a:b]) for a, b, _ in sorted(caption.chunks - chunks)]
            scores.mistakes.append(
                f"{caption.text}\n    chunks: extra {show} missing {miss}; entities: extra "
                f"{sorted(entities - caption.entities)} missing {sorted(caption.entities - entities)}"
            )
    return scores


def _add(totals: list[int], found: set[object] | set[str], marked: set[object] | set[str]) -> None:
    for i, value in enumerate((len(found & marked), len(found), len(marked))):  # type: ignore[operator]
        totals[i] += value


def _chunks(parser: CaptionParser, caption: GoldCaption) -> set[Chunk]:
    """The parser's chunks in numbers of the marked words, by character offsets."""
    doc = parser.nlp(caption.text)
    offsets, position = {}, 0
    for number, word in enumerate(caption.words):
        position = caption.text.index(word, position)
        for k in range(len(word)):
            offsets[position + k] = number
        position += len(word)
    found = set()
    for chunk in doc.noun_chunks:
        root = doc[chunk.end - 1]
        if root.pos_ != "PRON":
            found.add((offsets[chunk.start_char], offsets[chunk.end_char - 1] + 1, offsets[root.idx]))
    return found
