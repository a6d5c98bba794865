"""All benchmarks side by side, in one run: writes docs/BENCHMARKS.md and its picture.

    python benchmarks [part ...] [--quick] [--rounds 3] [--out docs]

About 25 minutes on two cores; with `--quick` toy sizes, in under a minute. Prints each part as it is done. Without
`--out`, a run of some parts or of toy sizes only prints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from regionclip_core.threads import set_threads

set_threads(1)  # before torch and numpy are loaded

import detection  # noqa: E402
import growth  # noqa: E402
import page  # noqa: E402
import pretraining  # noqa: E402
import regions  # noqa: E402
import throughput  # noqa: E402
from made_inputs import TOY, Scale  # noqa: E402
from measuring import load, machine  # noqa: E402

PARTS: dict[str, Callable[[Scale, page.Results], object]] = {
    "regions": lambda scale, to: to.compared.extend(regions.compare_regions(scale)),
    "pretraining": lambda scale, to: to.compared.extend(pretraining.compare_pretraining(scale)),
    "detection": lambda scale, to: to.compared.extend(detection.compare_detection(scale)),
    "nms": lambda scale, to: to.compared.extend(detection.compare_nms(scale)),
    "evaluation": lambda scale, to: to.compared.extend(detection.compare_evaluation(scale)),
    "labels": lambda scale, to: to.figures.extend(throughput.measure_labels(scale)),
    "loader": lambda scale, to: to.texts.update({"Loader": throughput.loader_text(scale)}),
    "captions": lambda scale, to: to.texts.update({"Captions": throughput.captions_text(scale)}),
    "startup": lambda scale, to: to.texts.update({"Start-up": throughput.startup_text(scale)}),
    "growth-regions": lambda scale, to: to.growths.append(growth.grow_regions(scale)),
    "growth-concepts": lambda scale, to: to.growths.append(growth.grow_concepts(scale)),
    "growth-images": lambda scale, to: to.growths.extend(growth.grow_images(scale)),
}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--rounds", type=int, help="of each comparison  [default: 3]")
    parser.add_argument("--out", type=Path, help="folder of the page")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    scale = TOY if options.quick else Scale()
    scale = replace(scale, rounds=options.rounds or scale.rounds)
    results = page.Results(machine(), scale.toy, load())
    begun = time.perf_counter()
    for name in options.parts or PARTS:
        start, part = time.perf_counter(), page.Results(results.machine, scale.toy, results.load_first)
        PARTS[name](scale, part)
        print(f"{page.body(part)}\n({name}: {time.perf_counter() - start:.0f} s)\n", flush=True)
        results.add(part)
    results.load_last, results.minutes = load(), (time.perf_counter() - begun) / 60
    if options.out is None and not options.quick and not options.parts:
        options.out = Path(__file__).resolve().parents[1] / "docs"
    if options.out is not None:
        page.write(results, options.out)


if __name__ == "__main__":
    main()
