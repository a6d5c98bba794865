"""The tables of an ablation, against plain sums and integrals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from test_report import METRICS

from regionclip_core.report.ablation import (
    MEASURES,
    OVERVIEW,
    Ablation,
    Cell,
    build_ablation_page,
    difference,
    format_ablation,
    format_ablation_markdown,
    measured,
    over_seeds,
    t_quantile,
)

GAIN, NOVEL = "RegionCLIP, region features: top-1", "novel"
LABELS = {"kept": 7, "truth_shares": {"all": {"clean": 0.25}, "base": {"clean": 0.5}, "novel": {"clean": 0.125}}}


def ablation(values: dict[str, dict[int, float]], **more: Any) -> Ablation:
    """One measure of one group, by variant and seed."""
    found = Ablation("a", "pipeline.yaml", [0, 1, 2], {}, {name: {} for name in values}, **more)
    found.cells = [
        Cell(name, seed, "done", values={GAIN: {NOVEL: per_seed[seed]}}) if seed in per_seed else Cell(name, seed)
        for seed in found.seeds
        for name, per_seed in values.items()
    ]
    return found


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 11, 20, 100])
def test_the_quantile_leaves_a_fortieth_above_it(degrees: int) -> None:
    """The density of Student's t, summed up from 0 to the quantile."""
    x = np.linspace(0, t_quantile(degrees), 400_001)
    log = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2) - math.log(degrees * math.pi) / 2
    density = np.exp(log - (degrees + 1) / 2 * np.log1p(x * x / degrees))
    assert np.trapezoid(density, x) == pytest.approx(0.475, abs=6e-6)


def test_differences_are_paired_by_seed() -> None:
    base, other = {0: 10.0, 1: 20.0, 2: 60.0}, {0: 11.0, 1: 24.0, 2: 62.0}
    [plain, row, less] = ablation({"paper": base, "other": other}).rows()
    assert (plain.variant, row.variant, less.variant) == ("paper", "other", "other") and less.is_difference
    assert plain.estimates[NOVEL].mean == 30 and (plain.estimates[NOVEL].low, plain.estimates[NOVEL].high) == (10, 60)
    each = np.array([1.0, 4.0, 2.0])
    half = 4.3027 * each.std(ddof=1) / math.sqrt(3)
    found = less.estimates[NOVEL]
    assert (found.low, found.mean, found.high) == pytest.approx((each.mean() - half, each.mean(), each.mean() + half))
    assert less.cell(NOVEL) == "+2.3 [-1.5, +6.1]" and plain.cell(NOVEL) == "30.0 (10.0 to 60.0)"
    assert less.direction(NOVEL) == "" and row.direction(NOVEL) == ""


def test_a_seed_that_one_of_them_lacks_is_in_no_pair() -> None:
    [plain, other, less] = ablation({"paper": {0: 10.0, 1: 20.0}, "other": {1: 25.0, 2: 90.0}}).rows()
    assert (plain.n, other.n, less.n) == (2, 2, 1)
    assert less.cell(NOVEL) == "+5.0", "one pair has no interval"


def test_an_interval_without_zero_has_a_direction() -> None:
    [_, _, up, _, down] = ablation({"a": {0: 1.0, 1: 2.0}, "b": {0: 5.0, 1: 6.1}, "c": {0: 0.0, 1: 1.01}}).rows()
    assert (up.direction(NOVEL), down.direction(NOVEL), up.direction("base")) == ("up", "down", "")


def test_one_value_has_no_deviation() -> None:
    assert over_seeds([3.0]).deviation is None and difference([3.0]).low is None


def test_a_cell_takes_what_was_measured() -> None:
    found = measured(METRICS, LABELS, {"all": 10.0, "own": None})
    assert found["zero-shot gain"] == {"novel": 11, "base": 10, "all": 10}
    assert found["RegionCLIP, region features: top-1"] == {"novel": 60, "base": 60, "all": 60}
    assert found["kept labels that are clean, percent"] == {"novel": 12.5, "base": 50, "all": 25}
    assert found["kept labels"] == {"all": 7} and found["seconds, all stages"] == {"all": 10}
    assert {title for _, title, _ in OVERVIEW} <= {measure.title for measure in MEASURES}
    missing = {measure.title for measure in MEASURES} - found.keys()
    fused = {measure.title for measure in MEASURES if "_fused." in measure.path}
    assert missing - fused == {"RegionCLIP, whole images: top-1", "seconds, stages that the baseline doesn't share"}
    more = {"finetuned_fused": {"regionclip": {group: {"ap50": 70.0} for group in ("novel", "base", "all")}}}
    assert measured({**METRICS, **more}, LABELS, {})["finetuned, RegionCLIP init, fused: AP50"]["novel"] == 70
    student = {**METRICS, "student": {"whole_image_top1": {"novel": 1.0, "base": None}}}
    assert measured(student, {}, {})["RegionCLIP, whole images: top-1"] == {"novel": 1}


def test_text_markdown_and_page_have_the_same_cells() -> None:
    found = ablation({"paper": {0: 10.0, 1: 20.0}, "<b>": {0: 11.0, 1: 24.0}})
    found.cells[-1].state, found.cells[-1].reason = "failed", "pretrain: the loss is no number"
    text, markdown, page = (form(found) for form in (format_ablation, format_ablation_markdown, build_ablation_page))
    for cell in ("15.0 (10.0 to 20.0)", "17.5 (11.0 to 24.0)", "pretrain: the loss is no number"):
        assert cell in text and cell in markdown and cell in page
    assert "+2.5 [-16.6, +21.6]" in text and "+2.5 [−16.6, +21.6]" in page
    assert '<td class="text">&lt;b&gt;</td>' in page and "<b></td>" not in page
    rows = [line.split("|")[1:-1] for line in markdown.splitlines() if line.startswith("|")]
    assert [len(row) for row in rows] == [2] * 4 + [4] * 5 and rows[6][1:3] == [" paper ", " 2 "]


def test_the_overview_has_a_line_per_variant() -> None:
    found = ablation({"paper": {0: 10.0, 1: 20.0}, "other": {0: 11.0, 1: 24.0}, "late": {}})
    expected = [["", "region top-1, novel"], ["paper", "15.0"], ["other", "17.5 (+2.5)"], ["late", ""]]
    assert found.overview() == expected
    assert format_ablation(found).startswith("       region top-1, novel\npaper  15.0\nother  17.5 (+2.5)\nlate\n\n")
    assert "| other | 17.5 (+2.5) |" in format_ablation_markdown(found) and "17.5 (+2.5)" in build_ablation_page(found)
    assert ablation({"paper": {0: 1.0}}).overview() == []


def test_one_variant_needs_no_column_for_it() -> None:
    markdown = format_ablation_markdown(ablation({"paper": {0: 10.0}}))
    assert markdown.splitlines()[2] == f"| {GAIN} | 1 | 10.0 (10.0 to 10.0) |"


def test_nothing_finished() -> None:
    found = ablation({"paper": {}})
    assert format_ablation(found).startswith("no cell is finished") and "No cell is finished" in build_ablation_page(
        found
    )
