"""teacher: the CLIP whose knowledge of whole images is carried to regions."""

from __future__ import annotations

from typing import Any

import torch

from regionclip_core.models.clip import create_clip, save_clip
from regionclip_core.pretraining.captioned_images import ClipBatches, captioned_images
from regionclip_core.pretraining.teacher import ClipTrainer, tokens_of_captions
from regionclip_core.training.fit import fit
from regionclip_core.training.unreadable_images import UnreadableImages

from .base import JobWork, StageContext


class TeacherWork(JobWork):
    """Writes `clip.safetensors` and `clip.json`; trains the model first where `teacher.weights` is `train`."""

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Build or train the model, then save it."""
        settings = ctx.config.teacher
        clip = create_clip(settings, ctx.config.seed)
        summary: dict[str, Any] = {"model": clip.name, "weights": settings.weights}
        if settings.weights == "train":
            training = settings.training
            assert training is not None  # the config refuses `train` without it
            pairs = captioned_images(ctx.inputs["data"], training.splits, max(1, ctx.loader_workers))
            unreadable = UnreadableImages(len(pairs), ctx.config.execution.max_error_rate)
            clip.model.to(ctx.device, memory_format=torch.channels_last)
            batches = ClipBatches(
                images=pairs,
                training=training,
                image_size=clip.image_size,
                mean=clip.mean,
                std=clip.std,
                seed=ctx.config.seed,
                rank=ctx.rank,
                world_size=ctx.world_size,
                unreadable=unreadable,
            )
            with tokens_of_captions(clip, (pairs[n].captions for n in range(len(pairs)))) as trained:
                result = fit(
                    ClipTrainer(trained).train(),
                    batches,
                    optim=training.optim,
                    steps=training.steps,
                    seed=ctx.config.seed,
                    checkpoints=ctx.out.child("checkpoints"),
                    checkpoint_every=training.checkpoint_every,
                    progress=ctx.progress,
                    batch_size=training.batch_size,
                    rank=ctx.rank,
                    world_size=ctx.world_size,
                    loader_workers=ctx.loader_workers,
                    unreadable=unreadable,
                )
            clip.model.eval().cpu()
            if ctx.rank == 0:
                ctx.out.write_json("history.json", result.history)
            summary |= {"pairs": len(pairs), "steps": result.steps, "loss": result.history[-1]["loss"]}
            summary |= unreadable.summary()
            ctx.counts |= unreadable.counts()
        if clip.note:
            summary["note"] = clip.note
        summary["temperature"] = 1 / clip.logit_scale
        if ctx.rank == 0:
            save_clip(clip, ctx.out)
        return summary


WORK = TeacherWork()
