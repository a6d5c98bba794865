"""pretrain: the student learns regions from the teacher's pseudo labels (paper section 3.3)."""

from __future__ import annotations

from typing import Any, Literal

from regionclip_core.config.rounds import is_student
from regionclip_core.models.clip import ClipModel, load_clip, named_architecture, save_clip, small_architecture
from regionclip_core.pretraining.student import average_weights, make_student, pretrain_student
from regionclip_core.storage.given_files import clip_folder

from .base import JobWork, StageContext


class PretrainWork(JobWork):
    """Writes the student as a CLIP model, `clip.safetensors` and `clip.json`: the teacher with another visual encoder.

    Where `pretrain.weights` names a published student, that one is written, and nothing is trained.
    """

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Train, then save the student; or save the given one."""
        config = ctx.config
        if config.pretrain.weights != "train":
            given = self._given(ctx, "weights")
            if ctx.rank == 0:
                save_clip(given, ctx.out)
            return {"model": given.name, "weights": config.pretrain.weights}
        clip = load_clip(ctx.inputs["teacher"])
        if config.pretrain.init != "teacher":
            clip.model.visual.load_state_dict(self._given(ctx, "init").model.visual.state_dict())
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
            loader_workers=ctx.loader_workers,
        )
        if ctx.rank == 0:
            start = clip.model.visual.state_dict()
            saved = average_weights(start, student.state_dict(), config.pretrain.weight_average)
            clip.model.visual.load_state_dict(saved)
            save_clip(clip, ctx.out)
            ctx.out.write_json("history.json", result.history)
        ctx.counts |= pairs.unreadable.counts()
        summary = {"samples": len(pairs), "steps": result.steps, "loss": result.history[-1]["loss"]}
        return {**summary, **pairs.unreadable.summary()}

    def _given(self, ctx: StageContext, key: Literal["weights", "init"]) -> ClipModel:
        """Return the student that a key names. Raises ValueError for one of another architecture than the teacher's."""
        where, teacher = getattr(ctx.config.pretrain, key), ctx.config.teacher
        clip = load_clip(ctx.inputs["student"] if is_student(where) else clip_folder(where, "student"))
        small = teacher.model == "small"
        wanted = small_architecture(teacher.architecture) if small else named_architecture(teacher.model)
        if any(clip.architecture[part] != wanted[part] for part in ("embed_dim", "vision_cfg")):
            raise ValueError(
                f"pretrain.{key}: {where} holds a student of the architecture {clip.name}, but teacher.model is "
                f"{teacher.model}, and the student must have the teacher's: set teacher.model to the student's"
            )
        return clip


WORK = PretrainWork()
