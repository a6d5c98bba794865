"""The paper's three claims, judged by the numbers of one run (RegionCLIP, Zhong et al. 2022).

A verdict is arithmetic on `metrics.json`, in percentage points; it knows nothing of what one hopes for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Score = float | None
Metrics = Mapping[str, Any]
Verdict = Literal["holds here", "holds in part", "does not hold here", "not measured"]

MARGIN = 1.0
"""Percentage points that a difference must reach to count: smaller ones are within the noise of a small run."""


@dataclass(frozen=True)
class Claim:
    """One claim of the paper with the run's own numbers."""

    number: int
    title: str
    verdict: Verdict
    evidence: str


def judge(metrics: Metrics) -> list[Claim]:
    """The three claims, in the paper's order."""
    return [_domain_shift(metrics), _pretraining(metrics), _transfer(metrics)]


def verdict(differences: Sequence[Score]) -> Verdict:
    """`holds here` when every measured difference reaches MARGIN, `holds in part` when some do.

    Differences are oriented so that the claim expects them to be positive; None was not measured.
    """
    measured = [d for d in differences if d is not None]
    if not measured:
        return "not measured"
    reached = sum(d >= MARGIN for d in measured)
    if reached == len(measured):
        return "holds here"
    return "holds in part" if reached else "does not hold here"


def _domain_shift(metrics: Metrics) -> Claim:
    """Same teacher, same boxes: crops against features pooled from the whole image."""
    whole = _at(metrics, "teacher", "whole_image_top1", "all")
    crops = _at(metrics, "teacher", "crop_top1", "all")
    features = _at(metrics, "zero_shot_gt", "clip", "all", "top1")
    seen = [
        text
        for text, value in (
            (f"whole images at {_show(whole)} %", whole),
            (f"crops of objects at {_show(crops)} %", crops),
            (f"region features of the same objects at {_show(features)} %", features),
        )
        if value is not None
    ]
    evidence = f"Top-1 accuracy of the teacher: {', '.join(seen)}." if seen else "No accuracy of the teacher."
    differences = [_minus(crops, features), _minus(whole, features)]
    return Claim(1, "CLIP knows whole images and crops better than regions of an image", verdict(differences), evidence)


def _pretraining(metrics: Metrics) -> Claim:
    paths = [("zero_shot_gt", "novel", "top1"), ("zero_shot_gt", "base", "top1"), ("zero_shot_rpn", "novel", "ap50")]
    pairs = [tuple(_at(metrics, s, model, group, key) for model in ("clip", "regionclip")) for s, group, key in paths]
    names = ("top-1 of given boxes, novel", "base", "AP50 with proposals, novel")
    shown = [f"{name} {_change(*pair)}" for name, pair in zip(names, pairs, strict=True) if None not in pair]
    evidence = f"Zero-shot, CLIP to RegionCLIP: {'; '.join(shown)}." if shown else "No zero-shot numbers of both."
    evidence += _gap_closed(metrics)
    differences = [_minus(ours, theirs) for theirs, ours in pairs]
    return Claim(
        2, "Region-text pretraining without box labels closes the gap, also for novel", verdict(differences), evidence
    )


def _gap_closed(metrics: Metrics) -> str:
    crops = _at(metrics, "teacher", "crop_top1", "all")
    before, after = (_at(metrics, "zero_shot_gt", model, "all", "top1") for model in ("clip", "regionclip"))
    if crops is None or before is None or after is None or crops - before < MARGIN:
        return ""
    return f" That is {100 * (after - before) / (crops - before):.0f} % of the way from region features to crops."


def _transfer(metrics: Metrics) -> Claim:
    theirs, ours = (_at(metrics, "finetuned", model, "novel", "ap50") for model in ("clip", "regionclip"))
    oracle = _at(metrics, "finetuned", "oracle", "novel", "ap50")
    evidence = "No finetuned detectors with novel ground truth."
    if theirs is not None and ours is not None:
        evidence = f"Novel AP50 after finetuning on base boxes alone: {_change(theirs, ours)}, CLIP to RegionCLIP init"
        evidence += "." if oracle is None else f"; {_show(oracle)} when novel boxes are shown as well."
    return Claim(
        3, "A detector finetuned on base boxes finds novel objects better", verdict([_minus(ours, theirs)]), evidence
    )


def _at(metrics: Metrics, *path: str) -> Score:
    """The number at a path, None where any part of it is missing."""
    value: Any = metrics
    for key in path:
        if not isinstance(value, Mapping) or value.get(key) is None:
            return None
        value = value[key]
    return float(value)


def _minus(a: Score, b: Score) -> Score:
    return None if a is None or b is None else a - b


def _show(value: Score) -> str:
    return "-" if value is None else f"{value:.1f}"


def _change(theirs: Score, ours: Score) -> str:
    assert theirs is not None
    assert ours is not None
    return f"{theirs:.1f} -> {ours:.1f} ({ours - theirs:+.1f})"
