"""rpn: a class-agnostic region proposal network, trained on the boxes of base categories only."""

from __future__ import annotations

from typing import Any

from regionclip_core.config import Config
from stages.base import JobStage, StageContext


class RpnStage(JobStage):
    """Writes `rpn.safetensors`."""

    name = "rpn"
    version = 1
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Nothing at all where no proposal network is used, only boxes where one is trained."""
        trained = config.proposals.method == "rpn" and config.rpn.weights == "train"
        return ("data",) if trained else ()

    def raw_inputs(self, config: Config) -> list[str]:
        """A weight file counts by its content."""
        return [] if config.rpn.weights in ("train", "random") else [config.rpn.weights]

    def settings(self, config: Config) -> dict[str, Any]:
        """The section and the seed; nothing but `unused` where another proposer is set."""
        if config.proposals.method != "rpn":
            return {"unused": config.proposals.method}
        return super().settings(config)

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Build, train where asked, save."""
        if ctx.config.proposals.method != "rpn":
            return {"unused": f"proposals.method is {ctx.config.proposals.method}"}
        import torch

        from regionclip_core.rpn_training import build_network, save_network, train_network

        torch.set_num_threads(ctx.threads)
        network = build_network(ctx.config.rpn, ctx.config.seed)
        summary: dict[str, Any] = {"backbone": ctx.config.rpn.backbone, "weights": ctx.config.rpn.weights}
        if ctx.config.rpn.weights == "train":
            result = train_network(
                network,
                ctx.inputs["data"],
                ctx.config.rpn,
                seed=ctx.config.seed,
                device=ctx.device,
                checkpoints=ctx.out.child("checkpoints"),
                progress=ctx.progress,
            )
            ctx.out.write_json("history.json", result.history)
            summary |= {"steps": result.steps, "loss": result.history[-1]["loss"]}
        save_network(network, ctx.out)
        return summary


STAGE = RpnStage()
