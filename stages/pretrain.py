"""pretrain: the student learns regions from the teacher's pseudo labels (paper section 3.3)."""

from __future__ import annotations

from typing import Any

from regionclip_core.config import Config
from stages.base import JobStage, StageContext


class PretrainStage(JobStage):
    """Writes the student as a CLIP model, `clip.safetensors` and `clip.json`: the teacher with new eyes."""

    name = "pretrain"
    version = 1
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """The pairs, the pool's embeddings (kept with the labels) and the weights to start from."""
        return ("teacher", "labels", "pairs")

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Train, then save the student."""
        import torch

        from regionclip_core.clip import load_clip, save_clip
        from regionclip_core.pretraining import make_student, pretrain_student

        torch.set_num_threads(ctx.threads)
        config = ctx.config
        clip = load_clip(ctx.inputs["teacher"])
        student = make_student(clip, config.pretrain)
        result, samples = pretrain_student(
            student,
            clip,
            ctx.inputs["labels"],
            ctx.inputs["pairs"],
            config,
            device=ctx.device,
            checkpoints=ctx.out.child("checkpoints"),
            progress=ctx.progress,
            rank=ctx.rank,
            world_size=ctx.world_size,
        )
        if ctx.rank == 0:
            clip.model.visual.load_state_dict(student.state_dict())
            save_clip(clip, ctx.out)
            ctx.out.write_json("history.json", result.history)
        return {"samples": samples, "steps": result.steps, "loss": result.history[-1]["loss"]}


STAGE = PretrainStage()
