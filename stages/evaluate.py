"""evaluate: average precision by COCO's or LVIS's rules: zero-shot and finetuned, CLIP beside RegionCLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regionclip_core.config.tree import Config
from stages.base import JobStage, StageContext

if TYPE_CHECKING:
    from regionclip_core.evaluation.data import EvaluationData
    from regionclip_core.training.unreadable_images import UnreadableImages

_INITS = {"clip": "teacher", "regionclip": "pretrain"}


class EvaluateStage(JobStage):
    """Writes `metrics.json` and, for each finetuned detector, `detections-<name>.json` in COCO's result format.

    In the latter `category_id` is the row in the data stage's vocabulary, and `segmentation` is there where the
    detector makes masks. What `metrics.json` holds is in `regionclip_core/evaluation/metrics.py`.
    """

    name = "evaluate"
    version = 3
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes and proposals, both inits, the detectors."""
        return ("data", "teacher", "proposals", "pretrain", "finetune")

    def settings(self, config: Config) -> dict[str, Any]:
        """Also what shapes the zero-shot classifier and the teacher's crops."""
        from regionclip_core.storage.given_files import text_settings

        return {
            "evaluate": config.evaluate.model_dump(mode="json"),
            "teacher": text_settings(config.teacher),
            "labels": config.labels.model_dump(mode="json", include={"context", "batch_size"}),
            "finetune": config.finetune.model_dump(mode="json", include={"temperature"}),
        }

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of prompts and of published embeddings count by their content."""
        from regionclip_core.storage.given_files import text_files

        return text_files(config.teacher)

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Measure every model on the same images and proposals."""
        import torch

        from regionclip_core.detection.detector import load_detector
        from regionclip_core.evaluation.data import EvaluationData
        from regionclip_core.evaluation.metrics import ResultsWriter, measure
        from regionclip_core.evaluation.passes import (
            FINETUNED,
            GIVEN,
            PROPOSED,
            finetuned,
            restricted_labels,
            zero_shot,
        )
        from regionclip_core.models.clip import load_clip

        torch.set_num_threads(ctx.threads)
        config = ctx.config
        evaluation = EvaluationData(config, ctx.inputs["data"], ctx.inputs["proposals"])
        detectors = [n for n in ("clip", "regionclip", "oracle") if ctx.inputs["finetune"].exists(f"{n}.json")]
        ticks = _Ticks(ctx, evaluation.count * (len(_INITS) + len(detectors)))
        metrics: dict[str, Any] = {"protocol": config.evaluate.protocol, "images": evaluation.count}
        clips = {name: load_clip(ctx.inputs[stage]) for name, stage in _INITS.items()}
        for clip in clips.values():
            clip.model.to(ctx.device, memory_format=torch.channels_last)
        metrics["teacher"], unreadable = self._teacher(ctx, clips["clip"], evaluation)
        for name, clip in clips.items():
            results = zero_shot(clip, config, evaluation, ctx.device, ticks.add)
            _put(metrics, name, measure(results, evaluation.evaluator, (GIVEN, PROPOSED)))
        settings = (FINETUNED, *restricted_labels(evaluation.vocabulary, config.evaluate.protocol))
        for name in detectors:
            clip = clips["clip" if name == "clip" else "regionclip"]
            detector = load_detector(ctx.inputs["finetune"], stem=name)
            results = finetuned(detector, clip, config, evaluation, ctx.device, ticks.add)
            with ctx.out.write(f"detections-{name}.json") as file, ResultsWriter(file) as writer:
                _put(metrics, name, measure(results, evaluation.evaluator, settings, {FINETUNED: writer}))
        ctx.out.write_json("metrics.json", metrics, indent=2)
        summary: dict[str, Any] = {"images": evaluation.count, **_headline(metrics)}
        for split, one in unreadable.items():
            for status, number in one.counts().items():
                ctx.counts[status] = ctx.counts.get(status, 0) + number
                summary.setdefault("unreadable", {})[split] = one.summary()["unreadable"]
        return summary

    def _teacher(
        self, ctx: StageContext, clip: Any, evaluation: EvaluationData
    ) -> tuple[dict[str, Any], dict[str, UnreadableImages]]:
        """The first look at the pixels: its accuracies, and by split which images could not be read.

        Raises:
            ErrorRateExceeded: too many could not.
        """
        from regionclip_core.datasets.index import split_rows
        from regionclip_core.evaluation.top1_accuracy import crop_top1, whole_image_top1
        from regionclip_core.training.unreadable_images import UnreadableImages

        settings, data = ctx.config.evaluate, ctx.inputs["data"]
        result = {"crop_top1": crop_top1(clip, ctx.config, evaluation)}
        unreadable = {settings.split: evaluation.unreadable}
        if (split := settings.whole_image_split) is not None:
            if split not in unreadable:
                rows = split_rows(data, (split,))
                unreadable[split] = UnreadableImages(rows, ctx.config.execution.max_error_rate)
            result["whole_image_top1"] = whole_image_top1(clip, ctx.config, data, split, unreadable[split])
        return result, unreadable


class _Ticks:
    """Counts images over several passes for the progress line."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self.ctx, self.total, self.done = ctx, total, 0

    def add(self, images: int) -> None:
        self.done += images
        self.ctx.progress(self.done, self.total, "images")


def _put(metrics: dict[str, Any], model: str, scores: dict[str, dict[str, Any]]) -> None:
    for setting, values in scores.items():
        metrics.setdefault(setting, {})[model] = values


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the summary line shows, by setting and model: AP50 by group, or LVIS's averages."""
    shown = {}
    for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned"):
        models = metrics.get(setting, {}).items()
        if metrics["protocol"] == "lvis":
            shown[setting] = {m: {n: scores["lvis"][n] for n in ("APr", "APc", "APf", "AP")} for m, scores in models}
        else:
            shown[setting] = {m: {g: scores[g]["ap50"] for g in ("base", "novel", "all")} for m, scores in models}
    return shown


STAGE = EvaluateStage()
