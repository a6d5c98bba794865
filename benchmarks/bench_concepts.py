"""Captions per CPU-second of the built-in caption parser, and where the time goes.

    python benchmarks/bench_concepts.py [captions.txt]

The file has one caption per line; without a file, captions are put together from a few templates. Every figure is the
best of several rounds over the same captions, so that other work on the machine disturbs it least and all caches are
warm; a first pass over new captions is about a tenth slower. The ratios to spaCy's tokenizer alone hold across
machines.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.parser import make_parser
from regionclip_core.config.tree import ConceptsConfig

ROUNDS = 7
CAPTIONS = 2000


def template_captions() -> list[str]:
    """Captions of 8 to 14 words, like those of COCO."""
    who = ["A man", "Two women", "A group of people", "A small dog", "The baseball player", "Some children"]
    what = ["riding a brown horse", "standing next to a fire hydrant", "with a red umbrella", "looks at a large clock"]
    where = ["on a city street.", "in front of an old brick building.", "near the snow covered mountains.", "at night."]
    several = [" ".join(parts) for parts in itertools.product(who, what, where)]
    return list(itertools.islice(itertools.cycle(several), CAPTIONS))


def best(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest round."""
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Print one line per step."""
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if len(sys.argv) > 1 else template_captions()
    captions = lines[:CAPTIONS]
    parser = make_parser(ConceptsConfig(splits=("bench",), parser="rules"), ())
    rules = parser.nlp.get_pipe("caption_rules")
    docs = [rules(parser.nlp.make_doc(text)) for text in captions]
    steps: dict[str, Callable[[], object]] = {
        "tokenizer": lambda: [parser.nlp.make_doc(text) for text in captions],
        "tokenizer and rules": lambda: [parser.nlp(text) for text in captions],
        "noun_chunks alone": lambda: [list(doc.noun_chunks) for doc in docs],
        "phrases alone": lambda: [parser.extractor.extract(doc) for doc in docs],
        "parse": lambda: list(parser.parse(captions)),
        "parse and count": lambda: count_captions(parser, ([text] for text in captions)),
    }
    base = best(steps["tokenizer"])
    for name, work in steps.items():
        seconds = best(work)
        print(f"{name:20s} {len(captions) / seconds:9.0f} captions/CPU-s   {seconds / base:5.2f} x tokenizer")


if __name__ == "__main__":
    main()
