"""Captions per CPU-second of the built-in caption parser, and where the time goes.

    python benchmarks/bench_concepts.py [captions.txt ...]

A file has one caption per line; without files, captions of the embedded world, and some put together from a few
templates. Every figure is the best of several rounds over the same captions, so that other work on the machine disturbs
it least and all caches are warm; "first pass" is the round before them. The ratios to spaCy's tokenizer alone hold
across machines.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.parser import make_parser
from regionclip_core.concepts.rules.component import parse_words, read_doc
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.datasets.world.sample import make_sample

ROUNDS = 7
CAPTIONS = 2000


def template_captions() -> list[str]:
    """Captions of 8 to 14 words, like those of COCO."""
    who = ["A man", "Two women", "A group of people", "A small dog", "The baseball player", "Some children"]
    what = ["riding a brown horse", "standing next to a fire hydrant", "with a red umbrella", "looks at a large clock"]
    where = ["on a city street.", "in front of an old brick building.", "near the snow covered mountains.", "at night."]
    several = [" ".join(parts) for parts in itertools.product(who, what, where)]
    return list(itertools.islice(itertools.cycle(several), CAPTIONS))


def world_captions() -> list[str]:
    """Captions of the embedded world's scenes."""
    samples = (make_sample("scene", 1, "bench", i, 96, (3, 6), (0.15, 0.3)) for i in itertools.count())
    return list(itertools.islice((caption for sample in samples for caption in sample.captions), CAPTIONS))


def best(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """CPU seconds of the fastest round."""
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def measure(name: str, captions: list[str]) -> None:
    """Print one line per step."""
    parser = make_parser(ConceptsConfig(splits=("bench",), parser="rules"), ())
    first = best(lambda: list(parser.parse(captions)), rounds=1)
    words = [[token.text for token in parser.nlp.make_doc(text)] for text in captions]
    parsed = [parse_words(texts) for texts in words]
    steps: dict[str, Callable[[], object]] = {
        "tokenizer": lambda: [parser.nlp.make_doc(text) for text in captions],
        "rules alone": lambda: [parse_words(texts) for texts in words],
        "phrases alone": lambda: [parser.extractor.extract(caption) for caption in parsed],
        "parse": lambda: list(parser.parse(captions)),
        "parse and count": lambda: count_captions(parser, ([text] for text in captions)),
        "parse by documents": lambda: [parser.extractor.extract(read_doc(parser.nlp(text))) for text in captions],
    }
    base = best(steps["tokenizer"])
    print(f"{name}: {len(captions)} captions, {len({word for texts in words for word in texts})} different words")
    for step, seconds in {"first pass": first, **{step: best(work) for step, work in steps.items()}}.items():
        print(f"  {step:20s} {len(captions) / seconds:9.0f} captions/CPU-s   {seconds / base:5.2f} x tokenizer")


def main() -> None:
    """Measure the captions of the files, or of the two generators."""
    if paths := sys.argv[1:]:
        for path in paths:
            measure(path, Path(path).read_text(encoding="utf-8").splitlines()[:CAPTIONS])
    else:
        measure("templates", template_captions())
        measure("world", world_captions())


if __name__ == "__main__":
    main()
