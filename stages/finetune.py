"""finetune: open-vocabulary detectors from base boxes, one from each init, and an oracle that sees every box."""

from __future__ import annotations

from typing import Any

from regionclip_core.detection.detector import save_detector
from regionclip_core.detection.finetuning import build_detector, finetune_data, finetune_detector
from regionclip_core.detection.model_folder import load_model
from regionclip_core.models.clip import load_clip
from regionclip_core.storage.records import Folder

from .base import JobWork, StageContext


class FinetuneWork(JobWork):
    """Writes `clip.*`, `regionclip.*` and, where asked, `oracle.*`: weights and description of each detector.

    Where `finetune.weights` names a published detector, that one is written as `regionclip.*`, and nothing is trained.
    """

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Finetune detectors with the same data, seed and settings, only the init differs; or take the given one."""
        weights = ctx.config.finetune.weights
        if weights != "train":
            model = load_model(Folder(weights))
            if ctx.rank == 0:
                save_detector(model.detector, ctx.out, model.clip_architecture, stem="regionclip")
            return {"detectors": {"regionclip": {"weights": weights, "names": len(model.detector.names)}}}
        runs = [("clip", "teacher", False), ("regionclip", "pretrain", False)]
        runs += [("oracle", "pretrain", True)] * ctx.config.finetune.oracle
        detectors = {
            name: self._finetune(ctx, name, init, every_box, (number, len(runs)))
            for number, (name, init, every_box) in enumerate(runs)
        }
        notes = list(dict.fromkeys(note for one in detectors.values() for note in one.pop("notes", ())))
        return {"detectors": detectors, **({"notes": notes} if notes else {})}

    def _finetune(
        self, ctx: StageContext, name: str, init: str, every_box: bool, place: tuple[int, int]
    ) -> dict[str, Any]:
        """Finetune one detector; `place`: how many are done, and how many there are."""
        config, (done, of) = ctx.config, place
        training = finetune_data(config, ctx.inputs["data"], ctx.inputs["proposals"], every_box)
        clip = load_clip(ctx.inputs[init])
        detector = build_detector(clip, training.names, config)
        result = finetune_detector(
            detector,
            clip,
            training,
            ctx.inputs["data"],
            config,
            device=ctx.device,
            checkpoints=ctx.out.child("checkpoints").child(name),
            progress=lambda step, steps, note, row: ctx.progress(
                done * steps + step, of * steps, f"{name}: {note}", {"training": name, **row}
            ),
            rank=ctx.rank,
            world_size=ctx.world_size,
            loader_workers=ctx.loader_workers,
        )
        if ctx.rank == 0:
            save_detector(detector, ctx.out, clip.architecture, stem=name)
            ctx.out.write_json(f"history-{name}.json", result.history)
        for status, number in training.unreadable.counts().items():  # the detectors learn from one split: not a sum
            ctx.counts[status] = max(number, ctx.counts.get(status, 0))
        summary = {"images": len(training.images), "steps": result.steps, "loss": result.history[-1]["loss"]}
        return {**summary, **training.unreadable.summary()}


WORK = FinetuneWork()
