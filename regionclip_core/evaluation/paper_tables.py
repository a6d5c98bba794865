"""The paper's tables from the content of `metrics.json`. A model card needs them, and nothing that evaluates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regionclip_core.evaluation.average_precision import Protocol, Score


def _columns(path: str, names: Sequence[str], end: str = "") -> dict[str, str]:
    return {name: f"{path}.{name}{end}" for name in names}


_COCO, _LVIS = ("novel", "base", "all"), ("APr", "APc", "APf", "AP")
PAPER_TABLES: Mapping[Protocol, Mapping[str, Mapping[str, str]]] = {
    "coco": {
        "open-vocabulary detection (table 1), AP50": {
            "novel (17)": "finetuned_novel_only.{}.novel.ap50",
            "base (48)": "finetuned_base_only.{}.base.ap50",
            "generalised novel": "finetuned.{}.novel.ap50",
            "generalised base": "finetuned.{}.base.ap50",
            "generalised all": "finetuned.{}.all.ap50",
        },
        "zero-shot, ground-truth boxes, AP50": _columns("zero_shot_gt.{}", _COCO, ".ap50"),
        "zero-shot, RPN boxes, AP50": _columns("zero_shot_rpn.{}", _COCO, ".ap50"),
    },
    "lvis": {
        "open-vocabulary detection (table 2), mask AP": _columns("finetuned.{}.segm.lvis", _LVIS),
        "open-vocabulary detection (table 2), box AP": _columns("finetuned.{}.lvis", _LVIS),
        "zero-shot, ground-truth boxes, AP": _columns("zero_shot_gt.{}.lvis", _LVIS),
        "zero-shot, RPN boxes, AP": _columns("zero_shot_rpn.{}.lvis", _LVIS),
    },
}
"""Columns of the paper's tables by protocol: dotted paths, `{}` for the model or detector."""


def paper_numbers(metrics: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Score]]]:
    """Return the paper's tables from the content of `metrics.json`: table -> model or detector -> column -> percent.

    Models without any of a table's numbers are left out of it, as is a table without any model.
    """
    tables: dict[str, dict[str, dict[str, Score]]] = {}
    for title, columns in PAPER_TABLES[metrics["protocol"]].items():
        for model in ("clip", "regionclip", "oracle"):
            values: dict[str, Score] = {}
            for name, path in columns.items():
                at: Any = metrics
                for key in path.format(model).split("."):
                    at = (at or {}).get(key)
                values[name] = at
            if any(value is not None for value in values.values()):
                tables.setdefault(title, {})[model] = values
    return tables
