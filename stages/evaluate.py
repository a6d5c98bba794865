"""evaluate: average precision by COCO's or LVIS's rules: zero-shot and finetuned, CLIP beside RegionCLIP."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from regionclip_core.datasets.index import split_rows
from regionclip_core.detection.detector import load_detector
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.measuring import ResultsWriter, make_evaluator, measure
from regionclip_core.evaluation.passes import (
    FINETUNED,
    GIVEN,
    PROPOSED,
    finetuned,
    restricted_labels,
    zero_shot,
)
from regionclip_core.evaluation.teacher_accuracy import crop_top1, whole_image_top1
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.training.image_tally import ImageTally
from stages.base import JobWork, StageContext

_INITS = {"clip": "teacher", "regionclip": "pretrain"}


class EvaluateWork(JobWork):
    """Writes `metrics.json` and, for each finetuned detector, `detections-<name>.json` in COCO's result format.

    In the latter `category_id` is the row in the data stage's vocabulary, and `segmentation` is there where the
    detector makes masks. What `metrics.json` holds is in `regionclip_core/evaluation/metrics.py`.
    """

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Measure every model on the same images and proposals."""
        config = ctx.config
        evaluation = EvaluationData.read(
            config, ctx.inputs["data"], ctx.inputs["proposals"], annotated_only=config.evaluate.annotated_only
        )
        detectors = [n for n in ("clip", "regionclip", "oracle") if ctx.inputs["finetune"].exists(f"{n}.json")]
        done, total = 0, evaluation.count * (len(_INITS) + len(detectors))

        def count(images: int) -> None:
            """Count images over all passes for the progress line."""
            nonlocal done
            done += images
            ctx.progress(done, total, "images")

        metrics: dict[str, Any] = {"protocol": config.evaluate.protocol, "images": evaluation.count}
        clips = {name: load_clip(ctx.inputs[stage]) for name, stage in _INITS.items()}
        for clip in clips.values():
            clip.model.to(ctx.device, memory_format=torch.channels_last)
        metrics["teacher"], tallies = self._teacher(ctx, clips["clip"], evaluation)
        with tempfile.TemporaryDirectory(prefix="regionclip-evaluate-") as folder:
            evaluator = make_evaluator(config, evaluation, Path(folder))
            for name, clip in clips.items():
                results = zero_shot(clip, config, evaluation, ctx.device, count, config.evaluate.given_score_threshold)
                _put(metrics, name, measure(results, evaluator, (GIVEN, PROPOSED)))
            settings = (FINETUNED, *restricted_labels(evaluation.vocabulary, config.evaluate.protocol))
            for name in detectors:
                clip = clips["clip" if name == "clip" else "regionclip"]
                detector = load_detector(ctx.inputs["finetune"], stem=name)
                results = finetuned(detector, clip, config, evaluation, ctx.device, count)
                with ctx.out.write(f"detections-{name}.json") as file, ResultsWriter(file) as writer:
                    _put(metrics, name, measure(results, evaluator, settings, {FINETUNED: writer}))
        ctx.out.write_json("metrics.json", metrics, indent=2)
        unreadable = []
        for split, tally in tallies.items():
            for status, number in tally.counts().items():
                ctx.counts[status] = ctx.counts.get(status, 0) + number
            unreadable += [{"split": split, **image} for image in tally.unreadable()]
        found = {"unreadable": unreadable} if unreadable else {}
        return {"images": evaluation.count, **_headline(metrics), **found}

    def _teacher(
        self, ctx: StageContext, clip: ClipModel, evaluation: EvaluationData
    ) -> tuple[dict[str, Any], dict[str, ImageTally]]:
        """Return the teacher's accuracies, and by split which images could be read: the first look at the pixels.

        Raises:
            ErrorRateExceeded: too many could not be read.
        """
        settings, data, cpu = ctx.config.evaluate, ctx.inputs["data"], torch.device("cpu")
        result = {"crop_top1": crop_top1(clip, ctx.config, evaluation)}
        evaluation.tally.check(cpu, final=True)
        tallies = {settings.split: evaluation.tally}
        if (split := settings.whole_image_split) is not None:
            tally = ImageTally(split_rows(data, (split,)), ctx.config.execution.max_error_rate)
            result["whole_image_top1"] = whole_image_top1(clip, ctx.config, data, split, tally)
            tally.check(cpu, final=True)
            tallies.setdefault(split, tally)  # images of the same split are counted once
        return result, tallies


def _put(metrics: dict[str, Any], model: str, scores: dict[str, dict[str, Any]]) -> None:
    for setting, values in scores.items():
        metrics.setdefault(setting, {})[model] = values


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
