"""pretrain: the student learns regions from the teacher's pseudo labels (paper section 3.3)."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config
from stages.base import JobStage, StageContext


class PretrainStage(JobStage):
    """Writes the student as a CLIP model, `clip.safetensors` and `clip.json`: the teacher with a new image encoder.

    Where `pretrain.weights` names a published student, that is written, and nothing is trained.
    """

    name = "pretrain"
    version = 2
    uses_gpu = True
    distributed = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Pairs, the pool's embeddings (kept with the labels), weights to start from; nothing for a given student."""
        return ("teacher", "labels", "pairs") if config.pretrain.weights == "train" else ()

    def settings(self, config: Config) -> dict[str, Any]:
        """The section and the seed; for a given student its place, and the model it must fit.

        How many processes train counts only where each takes the losses over its own regions.
        """
        if config.pretrain.weights != "train":
            return {"pretrain": {"weights": config.pretrain.weights}, "teacher": {"model": config.teacher.model}}
        settings = {"pretrain": config.pretrain.model_dump(mode="json", exclude={"checkpoint_every"})}
        if not config.pretrain.gather_regions:
            settings["execution"] = {"train_workers": config.execution.train_workers}
        return {**settings, "seed": config.seed}

    def raw_inputs(self, config: Config) -> list[str]:
        """A given student counts by its content."""
        from regionclip_core.storage.given_files import clip_files

        weights = config.pretrain.weights
        return [] if weights == "train" else clip_files(weights, "student")

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Train, then save the student; or save the given one."""
        if ctx.config.pretrain.weights != "train":
            return self._take(ctx)
        import torch

        from regionclip_core.models.clip import load_clip, save_clip
        from regionclip_core.pretraining.student import make_student, pretrain_student

        torch.set_num_threads(ctx.threads)
        config = ctx.config
        clip = load_clip(ctx.inputs["teacher"])
        student = make_student(clip, config.pretrain)
        result, pairs = pretrain_student(
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
        ctx.counts |= pairs.unreadable.counts()
        summary = {"samples": len(pairs), "steps": result.steps, "loss": result.history[-1]["loss"]}
        return {**summary, **pairs.unreadable.summary()}

    def _take(self, ctx: StageContext) -> dict[str, Any]:
        from regionclip_core.models.clip import load_clip, named_architecture, save_clip, small_architecture
        from regionclip_core.storage.given_files import clip_folder

        weights, teacher = ctx.config.pretrain.weights, ctx.config.teacher
        clip = load_clip(clip_folder(weights, "student"))
        small = teacher.model == "small"
        wanted = small_architecture(teacher.architecture) if small else named_architecture(teacher.model)
        if any(clip.architecture[part] != wanted[part] for part in ("embed_dim", "vision_cfg")):
            raise ValueError(
                f"pretrain.weights: {weights} holds a student of the architecture {clip.name}, but teacher.model is "
                f"{teacher.model}, which it is measured beside: set teacher.model to the student's"
            )
        if ctx.rank == 0:
            save_clip(clip, ctx.out)
        return {"model": clip.name, "weights": weights}


STAGE = PretrainStage()
