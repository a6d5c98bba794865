"""What `metrics.json` holds, and where in it the numbers of the paper's tables are.

All scores are percent, None where a group or category has no ground truth. Models are `clip` (the teacher) and
`regionclip` (the student), detectors those of the finetune stage: any of `clip`, `regionclip`, `oracle`.

    protocol                    "coco" or "lvis"
    images                      images that were measured on
    teacher.crop_top1.<group>   top-1 accuracy; also teacher.whole_image_top1 where a split for it is set
    zero_shot_gt.<model>        scores: annotated boxes classified; each group has top1 too
    zero_shot_rpn.<model>       scores: proposals classified
    finetuned.<detector>        scores: the detector with all names (generalised); with `segm` where it makes masks
    finetuned_base_only.<detector>, finetuned_novel_only.<detector>
                                scores (COCO only): the detector knows the names of one group only, on the images
                                that hold an object of it; the only group is that one

    scores: <group>             ap50, ap (IoU 0.50 to 0.95), categories and boxes with ground truth
            per_category.<name> AP50
            coco                COCO's 12 numbers over all categories (of the group, in a restricted setting)
            lvis                the LVIS reference's 13 numbers; one of these two, by protocol
            segm                scores of the masks

Groups are base, novel, all and the vocabulary's own, for LVIS rare, common and frequent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.evaluator import Protocol, label_groups
from regionclip_core.evaluation.passes import FINETUNED, GIVEN, PROPOSED, RESTRICTED, restricted_labels

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LVIS_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)
_FREQUENCY_COLUMNS = ("APr", "APc", "APf", "AP")

PAPER_TABLES: Mapping[Protocol, Mapping[str, Mapping[str, str]]] = {
    "coco": {
        "open-vocabulary detection (table 1), AP50": {
            "novel (17)": "finetuned_novel_only.{}.novel.ap50",
            "base (48)": "finetuned_base_only.{}.base.ap50",
            "generalised novel": "finetuned.{}.novel.ap50",
            "generalised base": "finetuned.{}.base.ap50",
            "generalised all": "finetuned.{}.all.ap50",
        },
        "zero-shot, ground-truth boxes, AP50": {g: f"{GIVEN}.{{}}.{g}.ap50" for g in ("novel", "base", "all")},
        "zero-shot, RPN boxes, AP50": {g: f"{PROPOSED}.{{}}.{g}.ap50" for g in ("novel", "base", "all")},
    },
    "lvis": {
        "open-vocabulary detection (table 2), mask AP": {
            name: f"{FINETUNED}.{{}}.segm.lvis.{name}" for name in _FREQUENCY_COLUMNS
        },
        "open-vocabulary detection (table 2), box AP": {
            name: f"{FINETUNED}.{{}}.lvis.{name}" for name in _FREQUENCY_COLUMNS
        },
        "zero-shot, ground-truth boxes, AP": {name: f"{GIVEN}.{{}}.lvis.{name}" for name in _FREQUENCY_COLUMNS},
        "zero-shot, RPN boxes, AP": {name: f"{PROPOSED}.{{}}.lvis.{name}" for name in _FREQUENCY_COLUMNS},
    },
}
"""Columns of the paper's tables by protocol: dotted paths, `{}` for the model or detector."""


def metric_keys(
    vocabulary: Vocabulary,
    protocol: Protocol,
    models: Sequence[str] = ("clip", "regionclip"),
    detectors: Sequence[str] = ("clip", "regionclip", "oracle"),
    *,
    masks: bool = False,
    whole_image: bool = False,
) -> set[tuple[str, ...]]:
    """The paths of all numbers that `metrics.json` of such a run holds, without those below `per_category`.

    `masks`: the detectors make masks and the split has them; `whole_image`: `evaluate.whole_image_split` is set.
    """
    groups = list(label_groups(vocabulary))
    restricted = restricted_labels(vocabulary, protocol)
    keys: set[tuple[str, ...]] = {("protocol",), ("images",)}
    for name in ("crop_top1", *(("whole_image_top1",) if whole_image else ())):
        keys |= {("teacher", name, group) for group in groups}
    for model in models:
        keys |= {(GIVEN, model, *path) for path in _score_keys(groups, protocol)}
        keys |= {(GIVEN, model, group, "top1") for group in groups}
        keys |= {(PROPOSED, model, *path) for path in _score_keys(groups, protocol)}
    for detector in detectors:
        scores = _score_keys(groups, protocol)
        scores |= {("segm", *path) for path in scores} if masks else set()
        keys |= {(FINETUNED, detector, *path) for path in scores}
        for setting in restricted:
            keys |= {(setting, detector, *path) for path in _score_keys([RESTRICTED[setting]], protocol)}
    return keys


def _score_keys(groups: Sequence[str], protocol: Protocol) -> set[tuple[str, ...]]:
    numbers = COCO_NUMBERS if protocol == "coco" else LVIS_NUMBERS
    by_group = {(group, name) for group in groups for name in ("ap50", "ap", "categories", "boxes")}
    return by_group | {(protocol, name) for name in numbers} | {("per_category",)}


def paths_of(metrics: Mapping[str, Any], before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """The paths that `metric_keys` speaks of, in actual metrics."""
    found: set[tuple[str, ...]] = set()
    for key, value in metrics.items():
        path = (*before, key)
        found |= paths_of(value, path) if isinstance(value, Mapping) and key != "per_category" else {path}
    return found


def paper_numbers(metrics: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float | None]]]:
    """The paper's tables from actual metrics: table -> model or detector -> column -> percent.

    Models without any of a table's numbers are left out of it, as is a table without any model.
    """
    tables: dict[str, dict[str, dict[str, float | None]]] = {}
    for title, columns in PAPER_TABLES[metrics["protocol"]].items():
        for model in ("clip", "regionclip", "oracle"):
            values = {name: _at(metrics, path.format(model)) for name, path in columns.items()}
            if any(value is not None for value in values.values()):
                tables.setdefault(title, {})[model] = values
    return tables


def _at(metrics: Mapping[str, Any], path: str) -> float | None:
    value: Any = metrics
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return None if value is None else float(value)
