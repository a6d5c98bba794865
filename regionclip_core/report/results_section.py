"""The results: verdicts on the paper's claims, the table of APs, the domain shift, single categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.report.claims import MARGIN, Claim, judge
from regionclip_core.report.markup import details, escape, grid, section, table
from regionclip_core.report.results_table import (
    MASKS,
    RESTRICTED,
    ResultRow,
    ShiftRow,
    groups_of,
    metrics_in,
    number,
    result_rows,
    shift_rows,
)

_STYLE_OF = {
    "holds here": "good",
    "holds in part": "middling",
    "does not hold here": "bad",
    "not measured": "unknown",
}


def results_section(metrics: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """Everything that `metrics.json` says."""
    rows, groups = result_rows(metrics), groups_of(metrics)
    images = metrics.get("images")
    count = f" over {images:,} images" if isinstance(images, int) else ""
    return section(
        "results",
        "Results",
        grid((_card(claim) for claim in judge(metrics)), "cards"),
        f"<p class='note'>A verdict compares the run's own numbers: a difference counts from {MARGIN:g} percentage "
        "point. One run is one seed; small differences need several.</p>",
        f"<h3>Average precision and accuracy{count}, percent</h3>",
        _results_table(rows, groups) if rows else "<p>Nothing was measured.</p>",
        f"<p class='note'>{_explanation(rows, metrics)}</p>",
        _shift(shift_rows(metrics), groups),
        details(f"{_rules(metrics)}'s own numbers", _standard(metrics)),
        details("AP50 of each category", _categories(metrics, vocabulary)),
    )


def _rules(metrics: Mapping[str, Any]) -> str:
    return "LVIS" if metrics.get("protocol") == "lvis" else "COCO"


def _explanation(rows: list[ResultRow], metrics: Mapping[str, Any]) -> str:
    parts = [
        f"AP50 at IoU 0.5, AP over 0.50 to 0.95, by {_rules(metrics)}'s rules. <b>Given boxes</b>: the annotated boxes "
        "are classified; top-1 is the share named rightly. <b>Proposals</b>: the boxes of the proposals stage are. "
        "<b>Zero-shot</b>: no box label has trained the classifier."
    ]
    settings = {row.setting for row in rows}
    if settings & {name for _, name in RESTRICTED}:
        parts.append(
            "<b>Novel names, base names</b>: the same detector is asked for the names of one group only, on the images "
            "that hold an object of it; elsewhere it is asked for all names."
        )
    if any(setting.endswith(MASKS) for setting in settings):
        parts.append("<b>Masks</b>: overlaps are those of masks, not of boxes.")
    parts.append(
        "<b>Finetuned on all boxes</b>: the only row whose detector saw boxes of novel categories; it marks what could "
        "be had."
    )
    return " ".join(parts)


def _standard(metrics: Mapping[str, Any]) -> str:
    """The protocol's numbers (12 of COCO, 13 of LVIS) of everything that was measured with all names."""
    key = _rules(metrics).lower()
    titles = (("zero_shot_gt", "given boxes"), ("zero_shot_rpn", "proposals"), ("finetuned", "finetuned"))
    heads: list[str] = []
    rows = []
    for setting, title in titles:
        for model, scores in metrics.get(setting, {}).items():
            for kind, part in (("boxes", scores), ("masks", scores.get("segm", {}))):
                if key in part:
                    heads = heads or list(part[key])
                    rows.append([title, model, kind, *(number(part[key][name]) for name in heads)])
    return table(["setting", "model", "of", *heads], rows, texts=3) if rows else "<p>Nothing was measured.</p>"


def _card(claim: Claim) -> str:
    style = _STYLE_OF[claim.verdict]
    return (
        f'<article class="card {style}"><span class="verdict">{escape(claim.verdict)}</span>'
        f"<h3>{claim.number}. {escape(claim.title)}</h3>"
        f"<p>{escape(claim.evidence).replace('-&gt;', '→')}</p></article>"
    )


def _results_table(rows: list[ResultRow], groups: Sequence[str]) -> str:
    shown = metrics_in(rows)
    top = "".join(f'<th class="group" colspan="{len(groups)}">{escape(name)}</th>' for _, name in shown)
    heads = "".join(f'<th class="number{_edge(g, groups)}">{g}</th>' for _ in shown for g in groups)
    body = []
    before = ""
    for row in rows:
        new = row.setting != before
        before = row.setting
        label = "RegionCLIP − CLIP" if row.is_difference else row.model
        cells = "".join(_cell(row, key, group, groups) for key, _ in shown for group in groups)
        kind = " ".join(k for k, on in (("first", new), ("difference", row.is_difference)) if on)
        body.append(
            f'<tr class="{kind}"><td class="text">{escape(row.setting) if new else ""}</td>'
            f'<td class="text">{escape(label)}</td>{cells}</tr>'
        )
    return (
        f'<div class="wide"><table><thead><tr><th colspan="2"></th>{top}</tr>'
        f'<tr><th class="text">setting</th><th class="text">visual encoder</th>{heads}</tr></thead>\n'
        f"<tbody>\n{chr(10).join(body)}\n</tbody></table></div>"
    )


def _cell(row: ResultRow, key: str, group: str, groups: Sequence[str]) -> str:
    value = row.values[key, group]
    style = f"number{_edge(group, groups)}"
    if row.is_difference and value is not None and abs(value) >= MARGIN:
        style += " up" if value > 0 else " down"
    return f'<td class="{style}">{number(value, row.is_difference).replace("-", "−")}</td>'


def _edge(group: str, groups: Sequence[str]) -> str:
    return " edge" if group == groups[0] else ""


def _shift(rows: list[ShiftRow], groups: Sequence[str]) -> str:
    if not rows:
        return ""
    body = "\n".join(
        f'<tr><td class="text">{escape(row.name)}</td>' + "".join(_bar(row.top1[group]) for group in groups) + "</tr>"
        for row in rows
    )
    heads = "".join(f'<th class="text">{group}</th>' for group in groups)
    return (
        "<h3>Domain shift: top-1 accuracy, percent</h3>\n"
        f'<div class="wide"><table class="bars"><thead><tr><th></th>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        "<p class='note'>The same categories each time. Crops and region features see the same boxes of the same "
        "images: a crop goes through the encoder alone, region features are pooled (RoIAlign) from the feature map of "
        "the whole image, as a detector does. Whole images are other ones, with one object each.</p>"
    )


def _bar(value: float | None) -> str:
    if value is None:
        return '<td class="bar">−</td>'
    return f'<td class="bar"><span style="width:{max(0.0, min(value, 100.0)):.1f}%"></span><b>{number(value)}</b></td>'


def _categories(metrics: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    """AP50 by category, novel ones first, each kind by what RegionCLIP gains; its frequency where one is known."""
    found = {name: scores.get("per_category", {}) for name, scores in metrics.get("finetuned", {}).items()}
    columns = [name for name in ("clip", "regionclip", "oracle") if name in found]
    titles = {"clip": "CLIP", "regionclip": "RegionCLIP", "oracle": "all boxes"}
    base = set(vocabulary.base)
    frequency = {name: group for group, names in vocabulary.groups for name in names}

    def gain(name: str) -> float | None:
        values = [found.get(model, {}).get(name) for model in ("clip", "regionclip")]
        return None if None in values else values[1] - values[0]

    def place(name: str) -> tuple[bool, float, str]:
        difference = gain(name)
        return name in base, 1000.0 if difference is None else -difference, name

    rows = [
        [
            name,
            frequency.get(name, "base" if name in base else "novel"),
            *(number(found[model].get(name)) for model in columns),
            number(gain(name), signed=True),
        ]
        for name in sorted(vocabulary.names, key=place)
    ]
    return table(["category", "kind", *(f"finetuned {titles[c]}" for c in columns), "difference"], rows, texts=2)
