"""evaluate: AP on base, novel and all categories: zero-shot and finetuned, CLIP beside RegionCLIP."""

from __future__ import annotations

from typing import Any

from regionclip_core.config import Config
from stages.base import JobStage, StageContext

_INITS = {"clip": "teacher", "regionclip": "pretrain"}


class EvaluateStage(JobStage):
    """Writes `metrics.json` and, for each finetuned detector, `detections-<name>.json` in COCO's result format."""

    name = "evaluate"
    version = 1
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes and proposals, both inits, the detectors."""
        return ("data", "teacher", "proposals", "pretrain", "finetune")

    def settings(self, config: Config) -> dict[str, Any]:
        """Also what shapes the classifier and the crops."""
        section = config.evaluate.model_dump(mode="json")
        teacher = {"prompts": config.teacher.prompts, "normalize_prompts": config.teacher.normalize_prompts}
        return {"evaluate": section, "teacher": teacher, "labels": {"context": config.labels.context}}

    def raw_inputs(self, config: Config) -> list[str]:
        """A file of prompts counts by its content."""
        from regionclip_core.prompts import prompt_files

        return prompt_files(config.teacher.prompts)

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Measure every model on the same images and proposals."""
        import torch

        from regionclip_core.clip import load_clip
        from regionclip_core.detector import load_detector
        from regionclip_core.evaluating import EvaluationData, finetuned, zero_shot

        torch.set_num_threads(ctx.threads)
        config = ctx.config
        evaluation = EvaluationData.read(config, ctx.inputs["data"], ctx.inputs["proposals"])
        detectors = [n for n in ("clip", "regionclip", "oracle") if ctx.inputs["finetune"].exists(f"{n}.json")]
        ticks = _Ticks(ctx, len(evaluation.rows) * (len(_INITS) + len(detectors)))
        metrics: dict[str, Any] = {"zero_shot_gt": {}, "zero_shot_rpn": {}, "finetuned": {}}
        clips = {name: load_clip(ctx.inputs[stage]) for name, stage in _INITS.items()}
        for clip in clips.values():
            clip.model.to(ctx.device, memory_format=torch.channels_last)
        metrics["teacher"] = self._teacher(ctx, clips["clip"], evaluation)
        for name, clip in clips.items():
            found = zero_shot(clip, config, evaluation, ctx.device, ticks.add)
            for kind, collected in found.items():
                metrics[f"zero_shot_{kind}"][name] = collected.scores(evaluation)
        for name in detectors:
            clip = clips["clip" if name == "clip" else "regionclip"]
            detector = load_detector(ctx.inputs["finetune"], stem=name)
            collected = finetuned(detector, clip, config, evaluation, ctx.device, ticks.add)
            metrics["finetuned"][name] = collected.scores(evaluation)
            ctx.out.write_json(f"detections-{name}.json", coco_results(collected.detections))
        metrics["images"] = len(evaluation.rows)
        ctx.out.write_json("metrics.json", metrics, indent=2)
        return {"images": len(evaluation.rows), **_headline(metrics)}

    def _teacher(self, ctx: StageContext, clip: Any, evaluation: Any) -> dict[str, Any]:
        from regionclip_core.teacher_accuracy import crop_top1, whole_image_top1

        split = ctx.config.evaluate.whole_image_split
        result = {"crop_top1": crop_top1(clip, ctx.config, evaluation)}
        if split is not None:
            result["whole_image_top1"] = whole_image_top1(clip, ctx.config, ctx.inputs["data"], split)
        return result


class _Ticks:
    """Counts images over several passes for the progress line."""

    def __init__(self, ctx: StageContext, total: int) -> None:
        self.ctx, self.total, self.done = ctx, total, 0

    def add(self, images: int) -> None:
        self.done += images
        self.ctx.progress(self.done, self.total, "images")


def coco_results(detections: list[Any]) -> list[dict[str, Any]]:
    """COCO's result rows: xywh pixels; `category_id` is the row in the data stage's vocabulary."""
    rows = []
    for image in detections:
        for (x0, y0, x1, y1), score, label in zip(image.boxes, image.scores, image.labels, strict=True):
            box = [round(float(v), 2) for v in (x0, y0, x1 - x0, y1 - y0)]
            rows.append(
                {
                    "image_id": image.image_id,
                    "category_id": int(label),
                    "bbox": box,
                    "score": round(float(score), 5),
                }
            )
    return rows


def _headline(metrics: dict[str, Any]) -> dict[str, Any]:
    """The numbers that the summary line shows: AP50 by setting, model and group."""
    return {
        setting: {
            model: {group: scores[group]["ap50"] for group in ("base", "novel", "all")}
            for model, scores in metrics[setting].items()
        }
        for setting in ("zero_shot_gt", "zero_shot_rpn", "finetuned")
    }


STAGE = EvaluateStage()
