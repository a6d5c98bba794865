"""The tables of an ablation: variants of one recipe, each run with several seeds, compared with the first of them.

Means and their range over the seeds; differences paired by seed, with Student's 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, fmean, stdev
from typing import Any

from regionclip_core.report.page import TEMPLATES
from regionclip_core.report.results import groups_of, number


@dataclass(frozen=True)
class Measure:
    """One block of the tables. To show more, add one to MEASURES."""

    title: str
    path: str
    """Dotted keys in a cell's numbers (see `measured`); `*` is the group. Without `*` the number is shown as `all`."""
    less: str | None = None
    """Path of what is subtracted."""
    factor: float = 1
    digits: int = 1
    more_is_better: bool = True
    """False: the page gives no colour to a difference."""


MEASURES = (
    Measure("CLIP, whole images: top-1", "teacher.whole_image_top1.*"),
    Measure("RegionCLIP, whole images: top-1", "student.whole_image_top1.*"),
    Measure("CLIP, crops: top-1", "teacher.crop_top1.*"),
    Measure("CLIP, region features: top-1", "zero_shot_gt.clip.*.top1"),
    Measure("RegionCLIP, region features: top-1", "zero_shot_gt.regionclip.*.top1"),
    Measure("RegionCLIP's regions with CLIP's crops: top-1", "zero_shot_gt_fused.regionclip.*.top1"),
    Measure("zero-shot, proposals, CLIP: AP50", "zero_shot_rpn.clip.*.ap50"),
    Measure("zero-shot, proposals, RegionCLIP: AP50", "zero_shot_rpn.regionclip.*.ap50"),
    Measure("zero-shot, proposals, RegionCLIP with CLIP's crops: AP50", "zero_shot_rpn_fused.regionclip.*.ap50"),
    Measure("zero-shot gain", "zero_shot_rpn.regionclip.*.ap50", less="zero_shot_rpn.clip.*.ap50"),
    Measure("finetuned on base boxes, CLIP init: AP50", "finetuned.clip.*.ap50"),
    Measure("finetuned on base boxes, RegionCLIP init: AP50", "finetuned.regionclip.*.ap50"),
    Measure("finetuned, RegionCLIP init, fused: AP50", "finetuned_fused.regionclip.*.ap50"),
    Measure("finetuned gain", "finetuned.regionclip.*.ap50", less="finetuned.clip.*.ap50"),
    Measure("oracle, finetuned on all boxes: AP50", "finetuned.oracle.*.ap50"),
    Measure("kept labels that are clean, percent", "labels.truth_shares.*.clean", factor=100),
    Measure("kept labels", "labels.kept", digits=0, more_is_better=False),
    Measure("seconds, all stages", "seconds.all", digits=0, more_is_better=False),
    Measure("seconds, stages that the baseline doesn't share", "seconds.own", digits=0, more_is_better=False),
)

OVERVIEW = (
    ("region top-1", "RegionCLIP, region features: top-1", ("novel", "rare")),
    ("zero-shot AP50", "zero-shot, proposals, RegionCLIP: AP50", ("novel", "rare")),
    ("finetuned AP50", "finetuned on base boxes, RegionCLIP init: AP50", ("novel", "rare")),
    ("finetuned, fused, AP50", "finetuned, RegionCLIP init, fused: AP50", ("novel", "rare")),
    ("whole images top-1", "RegionCLIP, whole images: top-1", ("all",)),
    ("clean labels", "kept labels that are clean, percent", ("all",)),
)
"""Columns of the overview: name, title in MEASURES, groups (of these, those that are there)."""

_T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Quantile 0.975 of Student's t for 1 to 10 degrees of freedom."""


@dataclass
class Cell:
    """One variant with one seed."""

    variant: str
    seed: int
    state: str = "not run"
    """done | failed | not run"""
    reason: str = ""
    """Why it failed."""
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """By title of the measure, then by group; what was not measured is not there."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds."""

    n: int
    mean: float
    deviation: float | None
    """Standard deviation over the seeds; None for one seed."""
    low: float | None
    """Of a variant, its lowest value; of a difference, the lower end of its interval, None for one seed."""
    high: float | None

    def text(self, digits: int, is_difference: bool) -> str:
        """Return `mean (low to high)`, or for a difference `+mean [low, high]`."""
        low, mean, high = (number(value, is_difference, digits) for value in (self.low, self.mean, self.high))
        if self.low is None:
            return mean
        return f"{mean} [{low}, {high}]" if is_difference else f"{mean} ({low} to {high})"


@dataclass(frozen=True)
class Row:
    """One line of a table: a variant, or its difference to the baseline."""

    measure: Measure
    variant: str
    is_difference: bool
    estimates: Mapping[str, Estimate]
    """By group."""

    @property
    def n(self) -> int:
        """Seeds that it is the mean of; the most, where groups differ."""
        return max(one.n for one in self.estimates.values())

    def cell(self, group: str) -> str:
        """Return what the table shows for a group."""
        found = self.estimates.get(group)
        return "" if found is None else found.text(self.measure.digits, self.is_difference)

    def direction(self, group: str) -> str:
        """Return `up` or `down` where the interval of a difference has no zero, for measures where more is better."""
        found = self.estimates.get(group)
        if found is None or not self.is_difference or not self.measure.more_is_better or found.low is None:
            return ""
        return "up" if found.low > 0 else "down" if found.high is not None and found.high < 0 else ""


@dataclass
class Ablation:
    """An ablation as it is shown: finished or not."""

    name: str
    config: str
    """File or preset that all variants start from."""
    seeds: Sequence[int]
    settings: Mapping[str, Any]
    """Given to all variants."""
    variants: Mapping[str, Mapping[str, Any]]
    """Settings by variant; the first is the baseline."""
    cells: Sequence[Cell] = ()

    @property
    def baseline(self) -> str:
        """Name of the first variant."""
        return next(iter(self.variants))

    @property
    def failed(self) -> list[Cell]:
        """Return the cells that failed."""
        return [cell for cell in self.cells if cell.state == "failed"]

    def rows(self) -> list[Row]:
        """Return the lines of all tables: per measure each variant, then its difference to the baseline."""
        found = []
        for measure in MEASURES:
            for variant in self.variants:
                own, base = self._by_group(measure, variant), self._by_group(measure, self.baseline)
                if not own:
                    continue
                found.append(Row(measure, variant, False, {g: over_seeds(list(v.values())) for g, v in own.items()}))
                pairs = {g: [v[s] - base[g][s] for s in v if s in base[g]] for g, v in own.items() if g in base}
                differences = {group: difference(pair) for group, pair in pairs.items() if pair}
                if variant != self.baseline and differences:
                    found.append(Row(measure, variant, True, differences))
        return found

    def overview(self) -> list[list[str]]:
        """Return a table with one line per variant, header first: means, and in brackets the differences' means.

        Empty for one variant, or before anything is finished.
        """
        found = {(row.measure.title, row.variant, row.is_difference): row.estimates for row in self.rows()}
        columns = []
        for name, title, groups in OVERVIEW:
            for group in groups:
                column = [f"{name}, {group}"]
                for variant in self.variants:
                    mean, less = (found.get((title, variant, kind), {}).get(group) for kind in (False, True))
                    cell = number(mean.mean) if mean else ""
                    column.append(cell + (f" ({number(less.mean, True)})" if less else ""))
                if any(column[1:]):
                    columns.append(column)
        if not columns or len(self.variants) == 1:
            return []
        return [list(line) for line in zip(["", *self.variants], *columns, strict=True)]

    def groups(self) -> list[str]:
        """Return the columns: groups of categories that at least one finished cell has."""
        seen = dict.fromkeys(group for cell in self.cells for found in cell.values.values() for group in found)
        return sorted(seen, key=lambda group: (group == "all", list(seen).index(group)))

    def _by_group(self, measure: Measure, variant: str) -> dict[str, dict[int, float]]:
        """Return one measure of one variant, by group and seed."""
        found: dict[str, dict[int, float]] = {}
        for cell in self.cells:
            if cell.variant == variant:
                for group, value in cell.values.get(measure.title, {}).items():
                    found.setdefault(group, {})[cell.seed] = value
        return found


def measured(metrics: Mapping[str, Any], labels: Mapping[str, Any], seconds: Mapping[str, float | None]) -> Any:
    """Return the values of a cell, as `Cell.values` has them.

    Args:
        metrics: `metrics.json` of `evaluate`.
        labels: summary of `labels`; empty if it didn't run.
        seconds: `all`: of every stage that the cell needs; `own`: of those whose artifacts the baseline doesn't share.
    """
    numbers = {**metrics, "labels": labels, "seconds": seconds}
    found: dict[str, dict[str, float]] = {}
    for measure in MEASURES:
        for group in groups_of(metrics) if "*" in measure.path else ("all",):
            value = _at(numbers, measure.path, group)
            less = 0.0 if measure.less is None else _at(numbers, measure.less, group)
            if value is not None and less is not None:
                found.setdefault(measure.title, {})[group] = measure.factor * (value - less)
    return found


def _at(numbers: Any, path: str, group: str) -> float | None:
    for key in path.split("."):
        numbers = numbers.get(group if key == "*" else key) if isinstance(numbers, Mapping) else None
    return None if numbers is None else float(numbers)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value, with the range."""
    return Estimate(len(values), fmean(values), stdev(values) if len(values) > 1 else None, min(values), max(values))


def difference(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one paired difference, with Student's 95 % interval from two on."""
    if len(values) == 1:
        return Estimate(1, values[0], None, None, None)
    mean, deviation = fmean(values), stdev(values)
    half = t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    return Estimate(len(values), mean, deviation, mean - half, mean + half)


def t_quantile(degrees: int) -> float:
    """Return the quantile 0.975 of Student's t, off by at most 1.2e-4.

    A table, then the series from the normal quantile (Abramowitz and Stegun, 26.7.5).
    """
    if degrees <= len(_T_975):
        return _T_975[degrees - 1]
    z, n = NormalDist().inv_cdf(0.975), degrees
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    return z + (z**3 + z) / (4 * n) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2) + third


# ---------------------------------------------------------------- as text, Markdown and a page


def format_ablation(ablation: Ablation) -> str:
    """Return the tables as plain text: the overview, one block per measure, and what failed."""
    groups, lines, parts = ablation.groups(), [], []
    if overview := ablation.overview():
        parts.append(aligned(overview))
    for title, rows in _blocks(ablation).items():
        lines.append([title])
        for row in rows:
            name = f"    less {ablation.baseline}" if row.is_difference else f"  {row.variant}"
            lines.append([name, str(row.n), *(row.cell(group) for group in groups)])
    parts.append(aligned([["", "n", *groups], *lines]) if lines else "no cell is finished")
    parts.append(EXPLANATION)
    if failed := ablation.failed:
        parts.append("\n".join(f"FAILED {cell.variant}, seed {cell.seed}: {cell.reason}" for cell in failed))
    return "\n\n".join(parts) + "\n"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their widest cell; a line of one cell is a title, as long as it likes."""
    widths = [max(map(len, column)) for column in zip(*(line for line in lines if len(line) > 1), strict=True)]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=False)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in cells)


EXPLANATION = """\
mean over n seeds (lowest to highest); difference to the baseline, the first variant, paired by seed, with the 95 %
interval of Student's t over the n seeds that both have. Accuracies and AP50 in percent. With many differences, one in
twenty intervals misses zero by chance."""


def _blocks(ablation: Ablation) -> dict[str, list[Row]]:
    """Return the rows by the title of their measure."""
    blocks: dict[str, list[Row]] = {}
    for row in ablation.rows():
        blocks.setdefault(row.measure.title, []).append(row)
    return blocks


def format_ablation_markdown(ablation: Ablation) -> str:
    """Return the tables as Markdown; with one variant, without the column that names it."""
    return _render("ablation.md", ablation)


def build_ablation_page(ablation: Ablation) -> str:
    """Return a page of one file, as the report's."""
    return _render("ablation.html", ablation)


def _render(template: str, ablation: Ablation) -> str:
    return TEMPLATES.get_template(template).render(
        ablation=ablation,
        overview=ablation.overview(),
        blocks=_blocks(ablation),
        groups=ablation.groups(),
        explanation=EXPLANATION,
    )
