"""evaluate: average precision by COCO's or LVIS's rules: zero-shot and finetuned, CLIP beside RegionCLIP."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from regionclip_core.datasets.index import split_rows
from regionclip_core.detection.detector import load_detector
from regionclip_core.evaluation import passes
from regionclip_core.evaluation.average_precision import label_groups
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.metrics import measure, results_writer
from regionclip_core.evaluation.second_scores import SecondScores, crop_scores
from regionclip_core.evaluation.top1_accuracy import crop_top1, whole_image_top1
from regionclip_core.models.clip import load_clip
from regionclip_core.training.unreadable_images import UnreadableImages

from .base import JobWork, StageContext

_INITS = {"clip": "teacher", "regionclip": "pretrain"}


class EvaluateWork(JobWork):
    """Writes `metrics.json` and the detections that its numbers are of, in COCO's result format: per finetuned detector
    `detections-<detector>.json`, per model `detections-zero-shot-gt-<model>.json` (annotated boxes) and
    `detections-zero-shot-rpn-<model>.json` (proposals).

    Image ids and category ids are those of the split's annotation file (see `datasets.index.category_ids`), and
    `segmentation` is there where a detector makes masks. A detection takes 110 bytes, so 100 for each of COCO's 5,000
    validation images make 55 MB. What `metrics.json` holds is in `regionclip_core/evaluation/metrics.py`.
    """

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Measure every model on the same images and proposals.

        Raises:
            ErrorRateExceeded: too many images could not be read.
        """
        config, data = ctx.config, ctx.inputs["data"]
        evaluation = EvaluationData(config, data, ctx.inputs["proposals"], ctx.loader_workers)
        detectors = [n for n in ("clip", "regionclip", "oracle") if ctx.inputs["finetune"].exists(f"{n}.json")]
        fusion = config.evaluate.fusion
        uses_crops = fusion.source == "teacher_crops" or fusion.zero_shot > 0
        done, total = 0, evaluation.count * (len(_INITS) + len(detectors) + uses_crops)

        def count(images: int) -> None:
            """Count images over all passes for the progress line."""
            nonlocal done
            done += images
            ctx.progress(done, total, "images")

        metrics: dict[str, Any] = {"protocol": config.evaluate.protocol, "images": evaluation.count}
        clips = {name: load_clip(ctx.inputs[stage]) for name, stage in _INITS.items()}
        for clip in clips.values():
            clip.model.to(ctx.device, memory_format=torch.channels_last)
        for name in detectors:  # before the long passes
            clip = clips["clip" if name == "clip" else "regionclip"]
            passes.require_own_text(load_detector(ctx.inputs["finetune"], stem=name), clip, config.teacher, name)
        # The teacher on crops and whole images: the first look at the pixels, which notes what can't be read.
        crop = crop_top1(clips["clip"], config, evaluation)
        metrics["teacher"] = {"crop_top1": crop.scores(), "crop_mean_class_top1": crop.mean_class()}
        unreadable = {config.evaluate.split: evaluation.unreadable}
        if (split := config.evaluate.whole_image_split) is not None:
            if split not in unreadable:
                unreadable[split] = UnreadableImages(split_rows(data, (split,)), config.execution.max_error_rate)
            for model, name in (("teacher", "clip"), ("student", "regionclip")):
                whole = whole_image_top1(clips[name], config, data, split, unreadable[split])
                metrics.setdefault(model, {})["whole_image_top1"] = whole
        crops = crop_scores(clips["clip"], config, evaluation, count) if uses_crops else None
        second = crops if fusion.source == "teacher_crops" else None
        if fusion.source == "student":  # its zero-shot pass fills them
            second = SecondScores(len(evaluation.vocabulary))
        for name, clip in clips.items():
            keep = second if name == "regionclip" and fusion.source == "student" else None
            fused_with = crops if fusion.zero_shot else None
            results = passes.zero_shot(clip, config, evaluation, ctx.device, count, keep, fused_with)
            settings = [passes.GIVEN, passes.PROPOSED]
            settings += [passes.GIVEN_FUSED, passes.PROPOSED_FUSED] if fused_with is not None else []
            files = {setting: f"{setting.replace('_', '-')}-{name}" for setting in settings}
            settings += [passes.GIVEN_SYNONYMS, passes.PROPOSED_SYNONYMS] if evaluation.synonyms is not None else []
            _measure(ctx, metrics, name, results, evaluation, settings, files)
        settings = [passes.FINETUNED, *passes.restricted_labels(evaluation.vocabulary, config.evaluate.protocol)]
        settings += [passes.FINETUNED_SYNONYMS] if evaluation.synonyms is not None else []
        settings += [passes.FINETUNED_FUSED] if second is not None else []
        for name in detectors:
            clip = clips["clip" if name == "clip" else "regionclip"]
            detector = load_detector(ctx.inputs["finetune"], stem=name)
            results = passes.finetuned(detector, clip, config, evaluation, ctx.device, count, second)
            files = {passes.FINETUNED: name}
            files |= {passes.FINETUNED_FUSED: f"finetuned-fused-{name}"} if second is not None else {}
            _measure(ctx, metrics, name, results, evaluation, settings, files)
        ctx.out.write_json("metrics.json", metrics, indent=2)
        outside = {"boxes_outside_the_vocabulary": evaluation.outside} if evaluation.outside else {}
        summary: dict[str, Any] = {"images": evaluation.count, **outside, **_headline(metrics)}
        for split, one in unreadable.items():
            for status, number in one.counts().items():
                ctx.counts[status] = ctx.counts.get(status, 0) + number
                found = one.summary()
                summary.setdefault("unreadable", {})[split] = found["unreadable"]
                summary.setdefault("notes", []).extend(f"split {split!r}: {note}" for note in found["notes"])
        return summary


def _measure(
    ctx: StageContext,
    metrics: dict[str, Any],
    model: str,
    results: Iterable[passes.ImageResult],
    evaluation: EvaluationData,
    settings: Sequence[str],
    files: Mapping[str, str],
) -> None:
    """Put a model's scores into `metrics`, and write the detections of the settings in `files` into the files named."""
    with ExitStack() as stack:
        writers = {}
        for setting, name in files.items():
            file = stack.enter_context(ctx.out.write(f"detections-{name}.json"))
            writers[setting] = stack.enter_context(results_writer(file, evaluation.category_ids))
        scores = measure(results, evaluation.evaluator, settings, writers)
    for setting, values in scores.items():
        metrics.setdefault(setting, {})[model] = values
        if setting in passes.SYNONYMS:  # the drop is the number
            for group in label_groups(evaluation.vocabulary):
                was, now = scores[passes.SYNONYMS[setting]][group]["ap50"], values[group]["ap50"]
                values[group]["ap50_drop"] = None if was is None or now is None else was - now


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of the summary line, by setting and model: AP50 by group, or LVIS's averages."""
    shown = {}
    for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned"):
        models = metrics.get(setting, {}).items()
        if metrics["protocol"] == "lvis":
            shown[setting] = {m: {n: scores["lvis"][n] for n in ("APr", "APc", "APf", "AP")} for m, scores in models}
        else:
            shown[setting] = {m: {g: scores[g]["ap50"] for g in ("base", "novel", "all")} for m, scores in models}
    return shown


WORK = EvaluateWork()
