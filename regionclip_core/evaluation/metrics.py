"""What the evaluate stage writes: `metrics.json`, and each detector's detections.

Layout of `metrics.json`. All scores are percent, None where a group or category has no ground truth. Models are `clip`
(the teacher) and `regionclip` (the student), detectors those of the finetune stage: any of `clip`, `regionclip`,
`oracle`.

    protocol                    "coco" or "lvis"
    images                      images that were measured on
    teacher.crop_top1.<group>   top-1 accuracy; crop_mean_class_top1: the mean over categories, each counting alike
    teacher.whole_image_top1, student.whole_image_top1
                                by group, where a split for it is set
    zero_shot_gt.<model>        scores: annotated boxes classified; each group has top1 and mean_class_top1 too,
                                with `evaluate.masks` also mask_top1 and mask_mean_class_top1, with
                                `evaluate.colours` colour_top1
    zero_shot_rpn.<model>       scores: proposals classified
    finetuned.<detector>        scores: the detector with all names (generalised); with `segm` where it makes masks
    zero_shot_gt_fused.<model>, zero_shot_rpn_fused.<model>, finetuned_fused.<detector>
                                scores: the same with a second classifier in the scores (`evaluate.fusion`)
    zero_shot_gt_synonyms.<model>, zero_shot_rpn_synonyms.<model>, finetuned_synonyms.<detector>
                                scores: the same with `evaluate.synonyms` for the names; each group has ap50_drop too,
                                what AP50 loses by it
    finetuned_base_only.<detector>, finetuned_novel_only.<detector>
                                scores (COCO only): the detector knows the names of one group only, on the images
                                that hold an object of it; scores of that group only

    scores: <group>             ap50, ap (IoU 0.50 to 0.95), categories and boxes with ground truth
            per_category.<name> AP50
            coco                COCO's 12 numbers over all categories (of the group, in a restricted setting)
            lvis                the LVIS reference's 13 numbers; one of these two, by protocol
            lvis_fixed          LVIS's fixed AP (`evaluate.fixed_ap`)
            segm                scores of the masks

Groups are base, novel, all and the vocabulary's own, for LVIS rare, common and frequent.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from regionclip_core.evaluation.average_precision import Evaluator, Scores
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections, xywh
from regionclip_core.evaluation.passes import GIVEN, RESTRICTED, ImageResult
from regionclip_core.evaluation.top1_accuracy import Top1
from regionclip_core.ops.boxes import shortest

WriteResults = Callable[[ImageDetections, tuple[int, int]], None]
"""Writes one image's detections; the second argument is the image's (height, width)."""
_log = logging.getLogger(__name__)


def measure(
    results: Iterable[ImageResult],
    evaluator: Evaluator,
    settings: Sequence[str],
    writers: Mapping[str, WriteResults] | None = None,
) -> dict[str, Scores]:
    """Return one model's scores by setting.

    They include `top1` in each group where annotated boxes were classified, and `segm` where the model makes masks and
    the split has them. `writers` also write the detections of their settings.
    """
    detections = {setting: CategoryRows() for setting in settings}
    every = {setting: CategoryRows() for setting in settings if evaluator.fixed_ap}
    top1: dict[str, Top1] = {}
    colours, masks = Top1(evaluator.vocabulary), Top1(evaluator.vocabulary)
    has_colours = has_masks = False
    for result in results:
        row = result.image.row
        for setting, one in result.found.items():
            # What is measured is what the file has, so that others get these scores from it, to the last digit.
            boxes, scores = shortest(xywh(one.boxes.cpu().numpy())), shortest(one.scores.cpu().numpy())
            found = ImageDetections(row.image_id, boxes, scores, one.labels.cpu().numpy(), one.masks)
            evaluator.add(detections[setting], found)
            if setting in every:
                evaluator.add(every[setting], found, every=True)
            if writers and setting in writers:
                writers[setting](found, (row.height, row.width))
        if result.colour_right is not None:
            has_colours = True
            colours.count(result.colour_right.numpy(), result.image.labels.numpy())
        if result.given_masks is not None:
            has_masks = True
            masks.add(result.given_masks.numpy(), result.image.labels.numpy())
        for setting, ranked in result.given.items():
            top1.setdefault(setting, Top1(evaluator.vocabulary)).add(ranked.numpy(), result.image.labels.numpy())
    measured = {}
    for setting, rows in detections.items():
        only = RESTRICTED.get(setting)
        measured[setting] = evaluator.evaluate(rows, "bbox", only)
        if rows.has_masks and evaluator.has_masks:
            measured[setting]["segm"] = evaluator.evaluate(rows, "segm", only)
        elif rows.has_masks:
            _log.warning("no mask AP: the objects of the evaluated split have no masks; set `masks: true` on the split")
    for setting, rows in every.items():
        measured[setting]["lvis_fixed"] = evaluator.fixed(rows)
        if "segm" in measured[setting]:
            measured[setting]["segm"]["lvis_fixed"] = evaluator.fixed(rows, "segm")
    for group, value in colours.scores().items() if has_colours else ():
        measured[GIVEN][group]["colour_top1"] = value
    for group, value in masks.scores().items() if has_masks else ():
        measured[GIVEN][group] |= {"mask_top1": value, "mask_mean_class_top1": masks.mean_class()[group]}
    for setting, counts in top1.items():
        means = counts.mean_class()
        for group, value in counts.scores().items():
            measured[setting][group] |= {"top1": value, "mean_class_top1": means[group]}
    return measured


@contextmanager
def results_writer(file: BinaryIO, category_ids: Sequence[Any]) -> Iterator[WriteResults]:
    """Yield a function that writes detections as COCO's and LVIS's result rows: a JSON list, image by image.

    `bbox` is xywh in original pixels, `category_id` one of `category_ids` (by row of the vocabulary), `segmentation`
    (where there are masks) compressed run lengths. No number is rounded.
    """
    separator = "["

    def write(found: ImageDetections, size: tuple[int, int]) -> None:
        nonlocal separator
        columns = (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist())
        for i, (box, score, label) in enumerate(zip(*columns, strict=True)):
            row = {"image_id": found.image_id, "category_id": category_ids[label], "bbox": box, "score": score}
            if found.masks is not None:
                row["segmentation"] = {"size": list(size), "counts": found.masks[i].decode("ascii")}
            text = json.dumps(row, sort_keys=True, allow_nan=False, separators=(",", ":"))
            file.write((separator + text).encode())
            separator = ","

    yield write
    file.write(b"[]\n" if separator == "[" else b"]\n")
