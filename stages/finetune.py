"""finetune: open-vocabulary detectors from base boxes, one from each init, and an oracle that sees every box."""

from __future__ import annotations

from typing import Any

from regionclip_core.config import Config
from stages.base import JobStage, StageContext


class FinetuneStage(JobStage):
    """Writes `clip.*`, `regionclip.*` and, where asked, `oracle.*`: weights and description of each detector."""

    name = "finetune"
    version = 1
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Boxes, proposals and both inits."""
        return ("data", "teacher", "proposals", "pretrain")

    def settings(self, config: Config) -> dict[str, Any]:
        """The prompts count here: they shape the classifier."""
        prompts = {"prompts": config.teacher.prompts, "normalize_prompts": config.teacher.normalize_prompts}
        return {"finetune": config.finetune.model_dump(mode="json"), "teacher": prompts, "seed": config.seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """A file of prompts counts by its content."""
        from regionclip_core.prompts import prompt_files

        return prompt_files(config.teacher.prompts)

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Finetune each detector with the same data, seed and settings; only the init differs."""
        import torch

        torch.set_num_threads(ctx.threads)
        runs = [("clip", "teacher", False), ("regionclip", "pretrain", False)]
        if ctx.config.finetune.oracle:
            runs.append(("oracle", "pretrain", True))
        return {
            "detectors": {
                name: self._finetune(ctx, name, init, everything, (number, len(runs)))
                for number, (name, init, everything) in enumerate(runs)
            }
        }

    def _finetune(
        self, ctx: StageContext, name: str, init: str, everything: bool, place: tuple[int, int]
    ) -> dict[str, Any]:
        from regionclip_core.clip import load_clip
        from regionclip_core.detector import save_detector
        from regionclip_core.finetuning import build_detector, finetune_data, finetune_detector

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
        return {"images": len(training.images), "steps": result.steps, "loss": result.history[-1]["loss"]}


STAGE = FinetuneStage()
