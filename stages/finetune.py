"""finetune: open-vocabulary detectors from base boxes, one from each init, and an oracle that sees every box."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config
from stages.base import JobStage, StageContext


class FinetuneStage(JobStage):
    """Writes `clip.*`, `regionclip.*` and, where asked, `oracle.*`: weights and description of each detector.

    Where `finetune.weights` names a published detector, that is written as `regionclip.*`, and nothing is trained.
    """

    name = "finetune"
    version = 2
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes, proposals and both inits; nothing for a given detector."""
        return ("data", "teacher", "proposals", "pretrain") if config.finetune.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """Also what shapes the embeddings of names; for a given detector only its place."""
        if config.finetune.weights != "train":
            return {"finetune": {"weights": config.finetune.weights}}
        from regionclip_core.storage.given_files import text_settings

        section = config.finetune.model_dump(mode="json", exclude={"checkpoint_every"})
        return {"finetune": section, "teacher": text_settings(config.teacher), "seed": config.seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of prompts and of published embeddings, or of a given detector, count by their content."""
        from regionclip_core.storage.given_files import detector_files, text_files

        weights = config.finetune.weights
        return text_files(config.teacher) if weights == "train" else detector_files(weights)

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Finetune detectors with the same data, seed and settings, only the init differs; or take the given one."""
        if ctx.config.finetune.weights != "train":
            return {"detectors": {"regionclip": self._take(ctx)}}
        import torch

        torch.set_num_threads(ctx.threads)
        runs = [("clip", "teacher", False), ("regionclip", "pretrain", False)]
        if ctx.config.finetune.oracle:
            runs.append(("oracle", "pretrain", True))
        done = {
            name: self._finetune(ctx, name, init, everything, (number, len(runs)))
            for number, (name, init, everything) in enumerate(runs)
        }
        return {"detectors": done}

    def _finetune(
        self, ctx: StageContext, name: str, init: str, everything: bool, place: tuple[int, int]
    ) -> dict[str, Any]:
        from regionclip_core.detection.detector import save_detector
        from regionclip_core.detection.finetuning import build_detector, finetune_data, finetune_detector
        from regionclip_core.models.clip import load_clip

        config = ctx.config
        training = finetune_data(config, ctx.inputs["data"], ctx.inputs["proposals"], everything)
        clip = load_clip(ctx.inputs[init])
        detector = build_detector(clip, training.names, config)
        done, of = place
        result = finetune_detector(
            detector,
            clip,
            training,
            ctx.inputs["data"],
            config,
            device=ctx.device,
            checkpoints=ctx.out.child("checkpoints").child(name),
            progress=lambda step, steps, note: ctx.progress(done * steps + step, of * steps, f"{name}: {note}"),
            rank=ctx.rank,
            world_size=ctx.world_size,
        )
        if ctx.rank == 0:
            save_detector(detector, ctx.out, clip.architecture, stem=name)
            ctx.out.write_json(f"history-{name}.json", result.history)
        for status, number in training.unreadable.counts().items():  # the detectors learn from one split: not a sum
            ctx.counts[status] = max(number, ctx.counts.get(status, 0))
        summary = {"images": len(training.images), "steps": result.steps, "loss": result.history[-1]["loss"]}
        return {**summary, **training.unreadable.summary()}

    def _take(self, ctx: StageContext) -> dict[str, Any]:
        from regionclip_core.detection.detector import save_detector
        from regionclip_core.detection.model_folder import load_model
        from regionclip_core.storage.records import Folder

        weights = ctx.config.finetune.weights
        model = load_model(Folder(weights))
        if ctx.rank == 0:
            save_detector(model.detector, ctx.out, model.clip_architecture, stem="regionclip")
        return {"weights": weights, "names": len(model.detector.names)}


STAGE = FinetuneStage()
