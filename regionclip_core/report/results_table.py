"""The numbers of `metrics.json` as rows, as text for a terminal and as Markdown.

All numbers are percent; a number that was not measured is None, shown as a dash. Nothing heavy is imported here: the
command line prints these tables.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regionclip_core.report.claims import judge

Score = float | None
Metrics = Mapping[str, Any]

GROUPS = ("novel", "base", "all")
LVIS_GROUPS = ("rare", "common", "frequent", "all")
METRICS = (("ap50", "AP50"), ("ap", "AP"), ("top1", "top-1"))
MODELS = (("clip", "CLIP"), ("regionclip", "RegionCLIP"))
SETTINGS = (
    ("zero_shot_gt", "zero-shot, given boxes"),
    ("zero_shot_rpn", "zero-shot, proposals"),
    ("finetuned", "finetuned on base boxes"),
)
RESTRICTED = (
    ("finetuned_novel_only", "finetuned, novel names"),
    ("finetuned_base_only", "finetuned, base names"),
)
"""Settings in which the detector knows the names of one group only."""
ORACLE = "finetuned on all boxes"
MASKS = ", masks"
DIFFERENCE = "difference"
WIDTH = 100
"""Longest line of the plain text, characters."""


@dataclass(frozen=True)
class ResultRow:
    """One line of the results table."""

    setting: str
    model: str
    """`CLIP`, `RegionCLIP`, or `difference` (RegionCLIP - CLIP, percentage points)."""
    values: Mapping[tuple[str, str], Score]
    """By (metric, group): metric of METRICS, group of `groups_of`."""

    @property
    def is_difference(self) -> bool:
        """Whether this line compares the two above it."""
        return self.model == DIFFERENCE


@dataclass(frozen=True)
class ShiftRow:
    """One line of the domain-shift table: how often the best category is the right one, by group."""

    name: str
    top1: Mapping[str, Score]


def groups_of(metrics: Metrics) -> tuple[str, ...]:
    """Groups of categories that the tables show: LVIS's frequencies under its protocol, else novel, base and all."""
    return LVIS_GROUPS if metrics.get("protocol") == "lvis" else GROUPS


def result_rows(metrics: Metrics) -> list[ResultRow]:
    """CLIP, RegionCLIP and their difference in each setting that was measured, then the oracle where there is one.

    Mask AP has rows of its own below those of the boxes.
    """
    groups = groups_of(metrics)
    rows = []
    for key, setting in (*SETTINGS, *RESTRICTED):
        measured = metrics.get(key, {})
        rows += _compared(setting, measured, groups)
        rows += _compared(setting + MASKS, _masks(measured), groups)
    oracle = {"oracle": metrics.get("finetuned", {}).get("oracle") or {}}
    for name, measured in ((ORACLE, oracle), (ORACLE + MASKS, _masks(oracle))):
        rows += [_row(name, "RegionCLIP", scores, groups) for scores in measured.values() if scores]
    return rows


def shift_rows(metrics: Metrics) -> list[ShiftRow]:
    """Top-1 accuracy from whole images to region features; rows that were not measured are left out."""
    teacher, given = metrics.get("teacher", {}), metrics.get("zero_shot_gt", {})
    groups = groups_of(metrics)
    rows = [
        ShiftRow(name, {group: teacher[key].get(group) for group in groups})
        for key, name in (("whole_image_top1", "CLIP, whole images"), ("crop_top1", "CLIP, crops of given boxes"))
        if teacher.get(key)
    ]
    for model, name in MODELS:
        if model in given:
            values = {group: given[model].get(group, {}).get("top1") for group in groups}
            rows.append(ShiftRow(f"{name}, region features", values))
    return rows


def format_results(metrics: Metrics) -> str:
    """The tables and the three claims as plain text, lines of at most `WIDTH` characters."""
    groups = groups_of(metrics)
    names = {name for _, name in RESTRICTED}
    rows = [row for row in result_rows(metrics) if row.setting not in names]  # those are for the page and Markdown
    parts = [_plain_results(rows, groups), _plain_shift(shift_rows(metrics), groups), _plain_claims(metrics)]
    return "\n\n".join(part for part in parts if part) + "\n"


def format_markdown(metrics: Metrics) -> str:
    """The same as Markdown, for a README."""
    rows = result_rows(metrics)
    groups = groups_of(metrics)
    shown = metrics_in(rows)
    heads = ["setting", "init", *(f"{name} {group}" for _, name in shown for group in groups)]
    body = []
    for row in rows:
        cells = [number(row.values[key, group], row.is_difference) for key, _ in shown for group in groups]
        label = "RegionCLIP - CLIP" if row.is_difference else row.model
        body.append([row.setting, label, *(f"**{c}**" if row.is_difference else c for c in cells)])
    tables = [_markdown(heads, body, left=2)]
    if shift := shift_rows(metrics):
        lines = [[row.name, *(number(row.top1[group]) for group in groups)] for row in shift]
        tables.append(_markdown(["top-1 accuracy", *groups], lines, left=1))
    claims = [f"{c.number}. {c.title}: **{c.verdict}**. {c.evidence}" for c in judge(metrics)]
    return "\n\n".join([*tables, "\n".join(claims)]) + "\n"


def number(value: Score, signed: bool = False) -> str:
    """One decimal, or a dash for what was not measured; differences carry their sign."""
    if value is None:
        return "-"
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    return text[1:] if float(text) == 0 and text[0] in "+-" else text


# ---------------------------------------------------------------- rows


def _compared(setting: str, measured: Metrics, groups: Sequence[str]) -> list[ResultRow]:
    pair = [_row(setting, name, measured[model], groups) for model, name in MODELS if model in measured]
    if len(pair) == len(MODELS):
        pair.append(ResultRow(setting, DIFFERENCE, _minus(pair[1].values, pair[0].values)))
    return pair


def _masks(measured: Metrics) -> dict[str, Any]:
    return {model: scores["segm"] for model, scores in measured.items() if "segm" in scores}


def _row(setting: str, model: str, scores: Metrics, groups: Sequence[str]) -> ResultRow:
    values = {(key, group): scores.get(group, {}).get(key) for key, _ in METRICS for group in groups}
    return ResultRow(setting, model, values)


def _minus(ours: Mapping[tuple[str, str], Score], theirs: Mapping[tuple[str, str], Score]) -> dict[Any, Score]:
    pairs = {key: (value, theirs[key]) for key, value in ours.items()}
    return {key: None if a is None or b is None else a - b for key, (a, b) in pairs.items()}


def metrics_in(rows: Iterable[ResultRow]) -> list[tuple[str, str]]:
    """The metrics that at least one row has."""
    seen = {key for row in rows for (key, _), value in row.values.items() if value is not None}
    return [(key, name) for key, name in METRICS if key in seen]


# ---------------------------------------------------------------- text


def _plain_results(rows: list[ResultRow], groups: Sequence[str]) -> str:
    if not rows:
        return ""
    # Four groups leave no room for the top-1 accuracies; the table below this one has them too.
    shown = (METRICS[1],) if groups == LVIS_GROUPS else (METRICS[0], METRICS[2])
    left, cell = max(25, *(len(row.setting) + 2 for row in rows)) + 12, _cell(groups)
    lines = [
        (" " * left + "".join(name.rjust(cell * len(groups)) for _, name in shown)).rstrip(),
        "percent".ljust(left) + "".join(group.rjust(cell) for _ in shown for group in groups),
    ]
    before = ""
    for row in rows:
        label = row.setting if row.setting != before else ""
        before = row.setting
        cells = [number(row.values[key, group], row.is_difference).rjust(cell) for key, _ in shown for group in groups]
        lines.append((label.ljust(left - 12) + row.model.ljust(12) + "".join(cells)).rstrip())
    return "\n".join([*lines[:2], "-" * (left + cell * len(groups) * len(shown)), *lines[2:]])


def _plain_shift(rows: list[ShiftRow], groups: Sequence[str]) -> str:
    if not rows:
        return ""
    cell = _cell(groups)
    head = "top-1 accuracy, percent".ljust(37) + "".join(group.rjust(cell) for group in groups)
    body = [row.name.ljust(37) + "".join(number(row.top1[group]).rjust(cell) for group in groups) for row in rows]
    return "\n".join([head, "-" * len(head), *body])


def _cell(groups: Sequence[str]) -> int:
    """Width of a column, characters."""
    return max(8, *(len(group) + 1 for group in groups))


def _plain_claims(metrics: Metrics) -> str:
    lines = []
    for claim in judge(metrics):
        text = f"{claim.number}. {claim.title}: {claim.verdict.upper()}. {claim.evidence}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="   ", break_long_words=False)
    return "\n".join(lines)


def _markdown(heads: list[str], rows: list[list[str]], left: int) -> str:
    rule = ["---" if i < left else "---:" for i in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])
