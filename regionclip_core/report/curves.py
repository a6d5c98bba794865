"""Training curves as inline SVG: one small chart a quantity, one line a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from regionclip_core.report.markup import escape, figure, grid

Rows = Sequence[Mapping[str, float]]
Points = list[tuple[float, float]]

MAX_POINTS = 300
"""Points a line; longer histories are averaged in bins."""
_SIZE = (330.0, 190.0)
_MARGINS = (46.0, 16.0, 10.0, 26.0)  # left, right, top, bottom


def curve_grid(histories: Mapping[str, Rows]) -> str:
    """Charts of every loss and of the learning rate, from history rows {step, lr, loss, <named losses>}.

    Args:
        histories: rows by the name of the run; runs share the charts of the quantities that they have in common.
    """
    quantities = [
        name
        for name in dict.fromkeys(key for rows in histories.values() for row in rows for key in row)
        if name not in ("step", "lr")
    ]
    named = [name for name in quantities if name != "loss"]
    if len(named) == 1:
        quantities = ["loss"]  # a single named loss is the total
    charts = []
    for quantity in [*sorted(quantities, key=lambda name: (name != "loss", name)), "lr"]:
        lines = {
            run: thin([(row["step"], row[quantity]) for row in rows if quantity in row])
            for run, rows in histories.items()
        }
        lines = {run: points for run, points in lines.items() if points}
        if lines:
            charts.append(figure(chart(lines, quantity), escape(_title(quantity))))
    return grid(charts, "charts") if charts else ""


def legend(runs: Sequence[str]) -> str:
    """Names of the lines in the order of their colours."""
    items = "".join(f'<span><i class="key line-{i % 4}"></i>{escape(run)}</span>' for i, run in enumerate(runs))
    return f'<p class="legend">{items}</p>'


def chart(lines: Mapping[str, Points], title: str) -> str:
    """Lines over a common pair of axes, both linear; the vertical one is fitted to the values."""
    width, height = _SIZE
    left, right, top, bottom = _MARGINS
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    ticks_x, ticks_y = ticks(0, max(xs), 4), ticks(min(ys), max(ys), 4)
    low_x, high_x = 0.0, max(xs) or 1.0
    low_y, high_y = ticks_y[0], ticks_y[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x)
        up = (y - low_y) / (high_y - low_y)
        return left + across * (width - left - right), height - bottom - up * (height - top - bottom)

    parts = []
    for y in ticks_y:
        at = place(0, y)[1]
        parts.append(f'<line class="rule" x1="{left}" x2="{width - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="end" x="{left - 5}" y="{at + 3.5:.1f}">{_tick(y, high_y)}</text>')
    for x in ticks_x:
        if x <= high_x:
            parts.append(
                f'<text class="middle" x="{place(x, low_y)[0]:.1f}" y="{height - 9}">{_tick(x, high_x)}</text>'
            )
    for i, (run, points) in enumerate(lines.items()):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline class="line line-{i % 4}" points="{path}"><title>{escape(run)}</title></polyline>')
    view = f"0 0 {width:g} {height:g}"
    return f'<svg class="chart" viewBox="{view}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round values at equal distance, at least two, that enclose low..high; roughly `about` of them.

    Raises:
        ValueError: a bound is not finite.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"ticks wants finite bounds, got {low} and {high}")
    if high - low < 1e-12 * max(abs(high), 1.0):
        pad = abs(high) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10, 20) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [n * step for n in range(first, last + 1)]


def thin(points: Points, most: int = MAX_POINTS) -> Points:
    """The points themselves, or the means of `most` bins of nearly equal length."""
    if len(points) <= most:
        return points
    edges = [len(points) * i // most for i in range(most + 1)]
    bins = [points[a:b] for a, b in pairwise(edges)]
    return [(sum(x for x, _ in b) / len(b), sum(y for _, y in b) / len(b)) for b in bins]


def _title(quantity: str) -> str:
    names = {"loss": "loss, all together", "lr": "learning rate"}
    return names.get(quantity, quantity.removeprefix("loss_").replace("_", " "))


def _tick(value: float, largest: float) -> str:
    """A short number, in the style that the largest one of the axis calls for."""
    if value == 0:
        return "0"
    if largest < 0.01:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value / 1000:g}k" if largest >= 10_000 else f"{value:.4g}"
