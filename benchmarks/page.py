"""docs/BENCHMARKS.md and its picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure as Picture
from measuring import Compared, Figure, Growth, spread

PICTURE = "benchmarks.png"
HEADER = """# Benchmarks

Written by `make bench`: change benchmarks/, not this page. {what}

Machine: {machine}. One thread of torch per process. Load of the machine (processes that run or wait, this one among
them) {first:.1f} at the start, {last:.1f} at the end; {minutes:.0f} minutes. Numbers are medians over n runs, with the
least and the most in brackets. Seconds are CPU seconds, so that other work on the machine counts little; ratios are of
two runs that follow each other, and hold across machines best. Weights are random, and no time depends on them.
"""
FULL = "RN50 and one image of 800 x 1216 pixels in float32, unless a row says more."
TOY = "**These are toy sizes: they show that everything runs, and no number means anything.**"


@dataclass
class Results:
    """What was measured, and when the machine was how busy."""

    machine: str
    toy: bool
    load_first: float
    load_last: float = 0.0
    minutes: float = 0.0
    compared: list[Compared] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    """Printed by other benchmarks, by title."""

    def add(self, part: Results) -> None:
        """Take in what a part has measured."""
        self.compared += part.compared
        self.figures += part.figures
        self.growths += part.growths
        self.texts |= part.texts


def markdown(results: Results) -> str:
    """Return the page."""
    header = HEADER.format(
        what=TOY if results.toy else FULL,
        machine=results.machine,
        first=results.load_first,
        last=results.load_last,
        minutes=results.minutes,
    )
    return f"{header}\n{body(results)}"


def body(results: Results) -> str:
    """Return the page without what is said of the machine."""
    texts = (f"## {title}\n\n```\n{text.strip()}\n```\n" for title, text in results.texts.items())
    parts = (_compared(results.compared), _figures(results.figures), _growth(results.growths), *texts)
    return "\n".join(part for part in parts if part)


def _compared(rows: Sequence[Compared]) -> str:
    if not rows:
        return ""
    lines = [
        "## Against a plain reference\n",
        f"![Ratios and growth]({PICTURE})\n",
        "The reference is benchmarks/plain_reference.py, which computes as the official code does; for average "
        "precision it is pycocotools. Memory is what the call takes above models and inputs. The difference is the "
        "largest of the results, relative to the largest value; for detection, that of the networks or of what both "
        "ways choose from the output of our networks (chosen from each's own, near ties let soft-NMS make 1e-3 of "
        "1e-6).\n",
        "| work | reference, s | ours, s | **ratio** | n | memory, reference, MiB | memory, ours, MiB | difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        plain, ours = ([cost.seconds for cost in costs] for costs in (row.plain, row.ours))
        memory = (f"{max(cost.memory for cost in costs):,.0f}" for costs in (row.plain, row.ours))
        cells = (
            row.work, spread(plain, 3), spread(ours, 3), f"**{spread(row.ratios)}**", len(plain), *memory,
            f"{row.difference:.0e}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _figures(rows: Sequence[Figure]) -> str:
    if not rows:
        return ""
    lines = ["## Throughput\n", "| what | value | unit | n | memory, MiB |", "|---|---|---|---|---|"]
    for row in rows:
        memory = "" if row.memory is None else f"{row.memory:,.0f}"
        lines.append(f"| {row.what} | {spread(row.values)} | {row.unit} | {len(row.values)} | {memory} |")
    return "\n".join(lines) + "\n"


def _growth(rows: Sequence[Growth]) -> str:
    if not rows:
        return ""
    lines = [
        "## Growth\n",
        "One run each. Stages run over tiny images of the embedded world, with seconds of the clock and the process's "
        "own memory, start included.\n",
        "| what | sizes | seconds | MiB | size grows by | seconds by | memory by |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        sizes, seconds, memory = row.sizes, [c.seconds for c in row.costs], [c.memory for c in row.costs]
        cells = (
            row.what,
            ", ".join(f"{size:,}" for size in sizes),
            ", ".join(f"{value:.2f}" for value in seconds),
            ", ".join(f"{value:,.0f}" for value in memory),
            *(f"{values[-1] / max(values[0], 1e-3):,.1f}" for values in (sizes, seconds, memory)),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: Results, path: Path) -> None:
    """Draw the ratios as bars, and the growth of time with size."""
    picture = Picture(figsize=(10, 4), layout="constrained")
    left, right = picture.subplots(1, 2)
    rows = results.compared[::-1]
    middles = [statistics.median(row.ratios) for row in rows]
    ends = [
        [middle - min(row.ratios) for middle, row in zip(middles, rows, strict=True)],
        [max(row.ratios) - middle for middle, row in zip(middles, rows, strict=True)],
    ]
    left.barh([row.work for row in rows], middles, xerr=ends, color="#4878a8")
    left.axvline(1, color="black", linewidth=0.8)
    left.set(xscale="log", title="CPU time of the reference / ours")
    left.tick_params(axis="y", labelsize=7)
    for row in results.growths:
        sizes, seconds = row.sizes, [max(cost.seconds, 1e-3) for cost in row.costs]
        right.plot([n / sizes[0] for n in sizes], [n / seconds[0] for n in seconds], "o-", label=row.what)
    right.axline((1, 1), slope=1, color="black", linewidth=0.8, linestyle=":")
    right.set(xscale="log", yscale="log", title="growth of time with size (dotted: linear)")
    right.legend(fontsize=6)
    picture.savefig(path, dpi=100)


def write(results: Results, folder: Path) -> None:
    """Write the page and the picture into a folder."""
    (folder / "BENCHMARKS.md").write_text(markdown(results), encoding="utf-8")
    draw(results, folder / PICTURE)
