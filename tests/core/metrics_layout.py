"""The keys that `metrics.json` has to have, written down apart from the code that fills it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation.average_precision import Protocol, label_groups
from regionclip_core.evaluation.passes import (
    FINETUNED,
    FINETUNED_FUSED,
    GIVEN,
    GIVEN_FUSED,
    PROPOSED,
    PROPOSED_FUSED,
    RESTRICTED,
    restricted_labels,
)

COCO_NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LVIS_NUMBERS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("AR@300", "ARs@300", "ARm@300", "ARl@300"),
)


def metric_keys(
    vocabulary: Vocabulary,
    protocol: Protocol,
    models: Sequence[str] = ("clip", "regionclip"),
    detectors: Sequence[str] = ("clip", "regionclip", "oracle"),
    *,
    masks: bool = False,
    whole_image: bool = False,
    fused: bool = False,
    given_masks: bool = False,
) -> set[tuple[str, ...]]:
    """Return the paths of all numbers in the `metrics.json` of such a run, without those below `per_category`.

    `masks`: the detectors make masks and the split has them; `whole_image`: `evaluate.whole_image_split` is set;
    `fused`: so are `evaluate.fusion.source` and `zero_shot`; `given_masks`: so is `evaluate.masks`.
    """
    groups = list(label_groups(vocabulary))
    restricted = restricted_labels(vocabulary, protocol)
    keys: set[tuple[str, ...]] = {("protocol",), ("images",)}
    for name in ("crop_top1", "crop_mean_class_top1"):
        keys |= {("teacher", name, group) for group in groups}
    for model in ("teacher", "student") if whole_image else ():
        keys |= {(model, "whole_image_top1", group) for group in groups}
    for model in models:
        for given in (GIVEN, GIVEN_FUSED) if fused else (GIVEN,):
            keys |= {(given, model, *path) for path in _score_keys(groups, protocol)}
            keys |= {(given, model, group, name) for group in groups for name in ("top1", "mean_class_top1")}
        for name in ("mask_top1", "mask_mean_class_top1") if given_masks else ():
            keys |= {(GIVEN, model, group, name) for group in groups}
        for proposed in (PROPOSED, PROPOSED_FUSED) if fused else (PROPOSED,):
            keys |= {(proposed, model, *path) for path in _score_keys(groups, protocol)}
    for detector in detectors:
        scores = _score_keys(groups, protocol)
        scores |= {("segm", *path) for path in scores} if masks else set()
        for setting in (FINETUNED, FINETUNED_FUSED) if fused else (FINETUNED,):
            keys |= {(setting, detector, *path) for path in scores}
        for setting in restricted:
            keys |= {(setting, detector, *path) for path in _score_keys([RESTRICTED[setting]], protocol)}
    return keys


def _score_keys(groups: Sequence[str], protocol: Protocol) -> set[tuple[str, ...]]:
    numbers = COCO_NUMBERS if protocol == "coco" else LVIS_NUMBERS
    by_group = {(group, name) for group in groups for name in ("ap50", "ap", "categories", "boxes")}
    return by_group | {(protocol, name) for name in numbers} | {("per_category",)}


def paths_of(metrics: Mapping[str, Any], before: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the paths in actual metrics, as `metric_keys` names them."""
    found: set[tuple[str, ...]] = set()
    for key, value in metrics.items():
        path = (*before, key)
        found |= paths_of(value, path) if isinstance(value, Mapping) and key != "per_category" else {path}
    return found
