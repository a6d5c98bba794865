"""teacher: the CLIP whose knowledge of whole images is carried to regions."""

from __future__ import annotations

from typing import Any

from regionclip_core.config import Config
from stages.base import JobStage, StageContext

_CACHE_BYTES = 512 * 1024**2  # decoded images kept between epochs: all of the embedded world's, a part of more


class TeacherStage(JobStage):
    """Writes `clip.safetensors` and `clip.json`; trains the model first where `teacher.weights` is `train`."""

    name = "teacher"
    version = 1
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Only training reads the data; named weights stand alone."""
        return ("data",) if config.teacher.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """Prompts are left out: they shape embeddings, which later stages compute, not this model."""
        section = config.teacher.model_dump(mode="json", exclude={"prompts", "normalize_prompts"})
        return {"teacher": section, "seed": config.seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """A local weight file counts by its content."""
        from pathlib import Path

        weights = config.teacher.weights
        return [weights] if "/" in weights or Path(weights).suffix else []

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Build or train the model, then save it."""
        import torch

        from regionclip_core.clip import create_clip, save_clip

        torch.set_num_threads(ctx.threads)
        settings = ctx.config.teacher
        clip = create_clip(settings, ctx.config.seed)
        summary: dict[str, Any] = {"model": clip.name, "weights": settings.weights}
        if settings.weights == "train":
            summary |= self._train(ctx, clip)
        summary["temperature"] = 1 / clip.logit_scale
        if ctx.rank == 0:
            save_clip(clip, ctx.out)
        return summary

    def _train(self, ctx: StageContext, clip: Any) -> dict[str, Any]:
        import torch

        from regionclip_core.clip_training import ClipTrainer, batch_maker
        from regionclip_core.training import fit

        training = ctx.config.teacher.training
        assert training is not None  # the config refuses `train` without it
        pairs = captioned_images(ctx.inputs["data"], training.splits)
        clip.model.to(ctx.device, memory_format=torch.channels_last)
        result = fit(
            ClipTrainer(clip).train(),
            batch_maker(pairs, clip, training, ctx.config.seed, ctx.rank, ctx.world_size),
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
        return {"pairs": len(pairs), "steps": result.steps, "loss": result.history[-1]["loss"]}


def captioned_images(data: Any, splits: tuple[str, ...]) -> list[Any]:
    """Every readable image of the splits that has a caption, as `CaptionedImage`s."""
    from functools import partial

    from regionclip_core.clip_training import CaptionedImage
    from regionclip_core.images import ImageReader
    from regionclip_core.index import read_index, split_shards
    from regionclip_core.sampling import ImageCache

    cache = ImageCache(ImageReader(data).read, _CACHE_BYTES)
    rows = (row for shard in split_shards(data, splits) for row in read_index(data, shard))
    usable = (row for row in rows if row.status == "ok" and row.captions)
    return [CaptionedImage(partial(cache.read, n, row), tuple(row.captions)) for n, row in enumerate(usable)]


STAGE = TeacherStage()
