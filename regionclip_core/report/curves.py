"""Small charts: training curves, one chart per quantity and one line per run, and lines or areas over other axes.

Geometry here, markup in templates/drawing.html.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

Rows = Sequence[Mapping[str, float]]
Points = list[tuple[float, float]]

MAX_POINTS = 300
"""Points per line; longer histories are averaged in bins."""
_TITLES = {"loss": "total loss", "lr": "learning rate"}


@dataclass(frozen=True)
class Chart:
    """Lines over a common pair of linear axes. Places are in SVG units, y downwards."""

    title: str
    x_ticks: list[tuple[float, str]]
    """Place and text of each mark of the step axis."""
    y_ticks: list[tuple[float, str]]
    lines: dict[str, Points]
    """By the name of the run."""
    filled: bool = False
    """Whether the lines are outlines of areas."""
    size: tuple[float, float] = (330.0, 190.0)
    left: float = 46.0
    """The plot's own sides; what is outside holds the texts."""
    right: float = 314.0
    top: float = 10.0
    bottom: float = 164.0


def charts(histories: Mapping[str, Rows]) -> list[Chart]:
    """Return a chart of every loss and of the learning rate.

    Args:
        histories: rows {step, lr, loss, <named losses>} by the name of the run; runs share the charts of the
            quantities that they have in common.
    """
    keys = dict.fromkeys(key for rows in histories.values() for row in rows for key in row)
    losses = sorted(key for key in keys if key not in ("step", "lr", "loss"))
    found = []
    for quantity in ("loss", *(losses if len(losses) != 1 else ()), "lr"):  # a single named loss is the total
        lines = {
            run: thin([(row["step"], row[quantity]) for row in rows if quantity in row])
            for run, rows in histories.items()
        }
        lines = {run: points for run, points in lines.items() if points}
        if lines:
            title = _TITLES.get(quantity, quantity.removeprefix("loss_").replace("_", " "))
            found.append(chart(lines, title))
    return found


def chart(
    lines: Mapping[str, Points],
    title: str,
    first: float = 0.0,
    top: float | None = None,
    filled: bool = False,
    powers: bool = False,
) -> Chart:
    """Return a chart from `first` to the last x; the vertical axis is fitted to the values, which are finite.

    Args:
        top: the vertical axis goes from 0 to this.
        filled: lines are outlines of areas.
        powers: the vertical axis has powers of ten; the values are positive.
    """
    frame = Chart(title, [], [], {})
    if powers:
        lines = {run: [(x, math.log10(y)) for x, y in points] for run, points in lines.items()}
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points] if top is None else [0.0, top]
    end = max(xs) if max(xs) > first else first + 1.0
    marks = [float(n) for n in range(math.ceil(max(*ys, 1.0)) + 1)] if powers else ticks(min(ys), max(ys), 4)
    low, high = marks[0], marks[-1]

    def across(x: float) -> float:
        return frame.left + (x - first) / (end - first) * (frame.right - frame.left)

    def down(y: float) -> float:
        return frame.bottom - (y - low) / (high - low) * (frame.bottom - frame.top)

    return Chart(
        title,
        [(across(x), tick(x)) for x in ticks(first, end, 4) if first <= x <= end],
        [(down(y), f"{10 ** int(y):,}" if powers else tick(y)) for y in marks],
        {run: [(across(x), down(y)) for x, y in points] for run, points in lines.items()},
        filled,
    )


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round values at equal distance, at least two, that enclose low..high; roughly `about` of them."""
    if high - low < 1e-12 * max(abs(high), 1.0):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def tick(value: float) -> str:
    """Return the text of a mark; short ones, which the margin has room for: 1.5e-4, 20k."""
    if abs(value) >= 10_000:
        return f"{value / 1000:g}k"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if 0 < abs(value) < 0.001 else f"{value:g}"


def thin(points: Points, most: int = MAX_POINTS) -> Points:
    """Return the points themselves, or the means of `most` bins of nearly equal length."""
    if len(points) <= most:
        return points
    edges = [len(points) * i // most for i in range(most + 1)]
    bins = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]
