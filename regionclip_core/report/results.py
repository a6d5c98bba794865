"""What `metrics.json` says: rows of the results tables and verdicts on the paper's claims, also as plain text.

All numbers are percent; None was not measured and is shown as a dash. Imports nothing heavy, because the command line
prints these tables.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Score = float | None
Metrics = Mapping[str, Any]
Verdict = Literal["holds here", "holds in part", "does not hold here", "not measured"]

GROUPS = ("novel", "base", "all")
LVIS_GROUPS = ("rare", "common", "frequent", "all")
METRICS = (("ap50", "AP50"), ("ap", "AP"), ("top1", "top-1"), ("mean_class_top1", "mean class top-1"))
MODELS = (("clip", "CLIP"), ("regionclip", "RegionCLIP"))
DIFFERENCE = "difference"
ONE_GROUP = ("finetuned, novel names", "finetuned, base names")
"""Settings in which the detector is given the names of one group only."""
SETTINGS = (
    ("zero_shot_gt", "zero-shot, given boxes", MODELS),
    ("zero_shot_gt_fused", "zero-shot, given boxes, fused", MODELS),
    ("zero_shot_rpn", "zero-shot, proposals", MODELS),
    ("zero_shot_rpn_fused", "zero-shot, proposals, fused", MODELS),
    ("finetuned", "finetuned on base boxes", MODELS),
    ("finetuned_fused", "finetuned on base boxes, fused", MODELS),
    ("zero_shot_rpn_synonyms", "zero-shot, proposals, synonyms", MODELS),
    ("finetuned_synonyms", "finetuned, synonyms", MODELS),
    ("finetuned_novel_only", ONE_GROUP[0], MODELS),
    ("finetuned_base_only", ONE_GROUP[1], MODELS),
    ("finetuned", "finetuned on all boxes", (("oracle", "RegionCLIP"),)),
    ("finetuned_fused", "finetuned on all boxes, fused", (("oracle", "RegionCLIP"),)),
)
"""Key in metrics.json, title, and the models compared, in the order of the tables."""
MASKS = ", masks"
MARGIN = 1.0
"""Percentage points that a difference must reach to count: smaller ones are within the noise of a small run."""
WIDTH = 100
"""Longest line of the plain text, characters."""


# ---------------------------------------------------------------- rows


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


def groups_of(metrics: Metrics) -> tuple[str, ...]:
    """Groups of categories that the tables show: LVIS's frequencies under its protocol, else novel, base and all."""
    return LVIS_GROUPS if metrics.get("protocol") == "lvis" else GROUPS


def result_rows(metrics: Metrics) -> list[ResultRow]:
    """Return CLIP, RegionCLIP and their difference for each setting that was measured, the oracle last.

    Mask AP has rows of its own below those of the boxes.
    """
    keys = [(key, group) for key, _ in METRICS for group in groups_of(metrics)]
    rows = []
    for setting, title, models in SETTINGS:
        measured = metrics.get(setting, {})
        masks = {model: scores["segm"] for model, scores in measured.items() if "segm" in scores}
        for name, found in ((title, measured), (title + MASKS, masks)):
            compared = [
                ResultRow(name, label, {(key, group): found[model].get(group, {}).get(key) for key, group in keys})
                for model, label in models
                if found.get(model)
            ]
            if len(compared) == 2:
                clip, ours = (row.values for row in compared)
                compared.append(ResultRow(name, DIFFERENCE, {key: minus(ours[key], clip[key]) for key in keys}))
            rows += compared
    return rows


def shift_rows(metrics: Metrics) -> dict[str, list[Score]]:
    """Return the domain shift: top-1 accuracies by group, from whole images to region features, as far as measured."""
    teacher, given, groups = metrics.get("teacher", {}), metrics.get("zero_shot_gt", {}), groups_of(metrics)
    rows = {
        "CLIP, whole images": teacher.get("whole_image_top1"),
        "RegionCLIP, whole images": metrics.get("student", {}).get("whole_image_top1"),
        "CLIP, crops of given boxes": teacher.get("crop_top1"),
    }
    for model, name in MODELS:
        for key, what in (("top1", "region features"), ("mask_top1", "region features within masks")):
            scores = {group: given.get(model, {}).get(group, {}).get(key) for group in groups}
            rows[f"{name}, {what}"] = scores if any(score is not None for score in scores.values()) else None
    return {name: [top1.get(group) for group in groups] for name, top1 in rows.items() if top1}


def metrics_in(rows: Iterable[ResultRow]) -> list[tuple[str, str]]:
    """Return the METRICS that at least one row has."""
    seen = {key for row in rows for (key, _), value in row.values.items() if value is not None}
    return [(key, name) for key, name in METRICS if key in seen]


def number(value: Score, signed: bool = False, digits: int = 1) -> str:
    """Return so many decimals, or a dash for what was not measured; with `signed` a plus where it belongs."""
    if value is None:
        return "-"
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    return text[1:] if float(text) == 0 and text[0] in "+-" else text


def minus(a: Score, b: Score) -> Score:
    """Return a - b, None where one of them was not measured."""
    return None if a is None or b is None else a - b


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Claim:
    """One claim of the paper (RegionCLIP, Zhong et al. 2022), judged by the run's own numbers."""

    number: int
    title: str
    verdict: Verdict
    evidence: str


def judge(metrics: Metrics) -> list[Claim]:
    """Return the paper's three claims in its order. A verdict follows from the numbers alone."""

    def at(*path: str) -> Score:
        value: Any = metrics
        for key in path:
            if not isinstance(value, Mapping) or value.get(key) is None:
                return None
            value = value[key]
        return float(value)

    # Domain shift. Crops and region features are of the same boxes, by the same teacher: any difference between them
    # comes from pooling features of the whole image.
    whole, crops = at("teacher", "whole_image_top1", "all"), at("teacher", "crop_top1", "all")
    before, after = (at("zero_shot_gt", model, "all", "top1") for model, _ in MODELS)
    seen = [
        f"{name} at {value:.1f} %"
        for name, value in (
            ("whole images", whole),
            ("crops of objects", crops),
            ("region features of the same objects", before),
        )
        if value is not None
    ]
    shift = Claim(
        1,
        "CLIP knows whole images and crops better than regions of an image",
        verdict([minus(crops, before), minus(whole, before)]),
        f"Top-1 accuracy of the teacher: {', '.join(seen)}." if seen else "There is no accuracy of the teacher.",
    )

    # Pretraining: the same region features from the student, compared with the teacher's.
    differences, shown = [], []
    for name, setting, group, metric in (
        ("top-1 of given boxes, novel", "zero_shot_gt", "novel", "top1"),
        ("base", "zero_shot_gt", "base", "top1"),
        ("AP50 with proposals, novel", "zero_shot_rpn", "novel", "ap50"),
    ):
        theirs, ours = (at(setting, model, group, metric) for model, _ in MODELS)
        differences.append(minus(ours, theirs))
        if theirs is not None and ours is not None:
            shown.append(f"{name} {_change(theirs, ours)}")
    evidence = (
        f"Zero-shot, CLIP to RegionCLIP: {'; '.join(shown)}."
        if shown
        else "There are no zero-shot numbers of both models."
    )
    if crops is not None and before is not None and after is not None:
        evidence += (
            f" Top-1 over all categories: the teacher's region features {before:.1f} %, the student's {after:.1f} %, "
            f"the teacher's crops, one pass of CLIP per box, {crops:.1f} %."
        )
    pretraining = Claim(
        2,
        "Region-text pretraining without box labels closes the gap, also for novel categories",
        verdict(differences),
        evidence,
    )

    # Transfer: detectors that differ only in the weights they start from.
    theirs, ours = (at("finetuned", model, "novel", "ap50") for model, _ in MODELS)
    oracle = at("finetuned", "oracle", "novel", "ap50")
    evidence = "No two finetuned detectors were measured on novel categories."
    if theirs is not None and ours is not None:
        evidence = f"Novel AP50 after finetuning on base boxes only, CLIP to RegionCLIP init: {_change(theirs, ours)}."
        if oracle is not None:
            evidence += f" Finetuned on novel boxes as well: {oracle:.1f}."
    title = "A detector finetuned on base boxes finds novel objects better"
    return [shift, pretraining, Claim(3, title, verdict([minus(ours, theirs)]), evidence)]


def verdict(differences: Sequence[Score]) -> Verdict:
    """Return `holds here` when every measured difference reaches MARGIN, `holds in part` when some do.

    Differences are oriented so that the claim expects them to be positive; None was not measured.
    """
    measured = [d for d in differences if d is not None]
    if not measured:
        return "not measured"
    reached = sum(d >= MARGIN for d in measured)
    if reached == len(measured):
        return "holds here"
    return "holds in part" if reached else "does not hold here"


def _change(theirs: float, ours: float) -> str:
    return f"{theirs:.1f} -> {ours:.1f} ({ours - theirs:+.1f})"


# ---------------------------------------------------------------- text


def format_results(metrics: Metrics) -> str:
    """Return the tables and the three claims as plain text, lines of at most `WIDTH` characters."""
    groups = groups_of(metrics)
    cell = max(8, *(len(group) + 1 for group in groups))
    parts = []
    # The rows with one group's names are on the page and in the Markdown.
    if rows := [row for row in result_rows(metrics) if row.setting.removesuffix(MASKS) not in ONE_GROUP]:
        # Four groups leave no room for the top-1 accuracies; the table below this one has them too.
        shown = (METRICS[1],) if groups == LVIS_GROUPS else (METRICS[0], METRICS[2])
        left = max(25, *(len(row.setting) + 2 for row in rows)) + 12
        lines = [
            (" " * left + "".join(name.rjust(cell * len(groups)) for _, name in shown)).rstrip(),
            "percent".ljust(left) + "".join(group.rjust(cell) for _ in shown for group in groups),
            "-" * (left + cell * len(groups) * len(shown)),
        ]
        before = ""
        for row in rows:
            label = row.setting if row.setting != before else ""
            before = row.setting
            cells = [number(row.values[key, g], row.is_difference).rjust(cell) for key, _ in shown for g in groups]
            lines.append((label.ljust(left - 12) + row.model.ljust(12) + "".join(cells)).rstrip())
        parts.append("\n".join(lines))
    if shift := shift_rows(metrics):
        head = "top-1 accuracy, percent".ljust(37) + "".join(group.rjust(cell) for group in groups)
        body = [name.ljust(37) + "".join(number(value).rjust(cell) for value in row) for name, row in shift.items()]
        parts.append("\n".join([head, "-" * len(head), *body]))
    lines = []
    for claim in judge(metrics):
        text = f"{claim.number}. {claim.title}: {claim.verdict.upper()}. {claim.evidence}"
        lines += textwrap.wrap(text, WIDTH, subsequent_indent="   ", break_long_words=False)
    return "\n\n".join([*parts, "\n".join(lines)]) + "\n"
