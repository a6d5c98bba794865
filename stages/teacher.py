"""teacher: the CLIP whose knowledge of whole images is carried to regions."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config
from stages.base import JobStage, StageContext


class TeacherStage(JobStage):
    """Writes `clip.safetensors` and `clip.json`; trains the model first where `teacher.weights` is `train`."""

    name = "teacher"
    version = 2
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Only training reads the data; named weights need nothing."""
        return ("data",) if config.teacher.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """Prompts and stored embeddings are left out: they concern embeddings of later stages, not this model."""
        trained = config.teacher.weights == "train"
        section = config.teacher.model_dump(
            mode="json",
            exclude={
                "prompts": True,
                "normalize_prompts": True,
                "embeddings": True,
                "training": {"checkpoint_every"} if trained else True,
            },
        )
        seed = {"seed": config.seed} if config.teacher.weights in ("train", "random") else {}
        return {"teacher": section, **seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """A local file or folder of weights counts by its content."""
        from pathlib import Path

        from regionclip_core.storage.given_files import clip_files

        weights = config.teacher.weights
        if weights in ("train", "random"):
            return []
        # What is there is read, whatever its name; what looks like a path must be there; the rest are tags.
        is_place = Path(weights).exists() or "/" in weights or Path(weights).suffix
        return clip_files(weights, "teacher") if is_place else []

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Build or train the model, then save it."""
        import torch

        from regionclip_core.models.clip import create_clip, save_clip

        torch.set_num_threads(ctx.threads)
        settings = ctx.config.teacher
        clip = create_clip(settings, ctx.config.seed)
        summary: dict[str, Any] = {"model": clip.name, "weights": settings.weights}
        if settings.weights == "train":
            summary |= self._train(ctx, clip)
        if clip.note:
            summary["note"] = clip.note
        summary["temperature"] = 1 / clip.logit_scale
        if ctx.rank == 0:
            save_clip(clip, ctx.out)
        return summary

    def _train(self, ctx: StageContext, clip: Any) -> dict[str, Any]:
        import torch

        from regionclip_core.pretraining.teacher import ClipTrainer, captioned_images, clip_batches
        from regionclip_core.training.fit import fit
        from regionclip_core.training.unreadable_images import UnreadableImages

        training = ctx.config.teacher.training
        assert training is not None  # the config refuses `train` without it
        pairs = captioned_images(ctx.inputs["data"], training.splits)
        unreadable = UnreadableImages(len(pairs), ctx.config.execution.max_error_rate)
        clip.model.to(ctx.device, memory_format=torch.channels_last)
        result = fit(
            ClipTrainer(clip).train(),
            clip_batches(pairs, clip, training, ctx.config.seed, ctx.rank, ctx.world_size, unreadable),
            optim=training.optim,
            steps=training.steps,
            seed=ctx.config.seed,
            checkpoints=ctx.out.child("checkpoints"),
            checkpoint_every=training.checkpoint_every,
            progress=ctx.progress,
            rank=ctx.rank,
            world_size=ctx.world_size,
        )
        clip.model.eval().cpu()
        if ctx.rank == 0:
            ctx.out.write_json("history.json", result.history)
        ctx.counts |= unreadable.counts()
        summary = {"pairs": len(pairs), "steps": result.steps, "loss": result.history[-1]["loss"]}
        return {**summary, **unreadable.summary()}


STAGE = TeacherStage()
