"""rpn: a class-agnostic region proposal network, trained on the boxes of base categories only."""

from __future__ import annotations

from collections import Counter
from typing import Any

from regionclip_core.proposals.network import build_network, train_network
from regionclip_core.proposals.rpn_folder import load_weights, rpn_section, write_rpn_folder

from .base import JobWork, StageContext


class RpnWork(JobWork):
    """Writes `rpn.safetensors` and `rpn.json`: a folder that `rpn.weights` and `detect --rpn` take in turn."""

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Build the network, train it or load weights where the config asks for it, save it."""
        if ctx.config.proposals.method != "rpn":
            return {"unused": f"proposals.method is {ctx.config.proposals.method}"}
        settings = ctx.config.rpn
        network = build_network(settings, ctx.config.seed)
        summary: dict[str, Any] = {"backbone": settings.backbone, "weights": settings.weights}
        if settings.weights == "train":
            result, unreadable = train_network(
                network,
                ctx.inputs["data"],
                settings,
                seed=ctx.config.seed,
                device=ctx.device,
                checkpoints=ctx.out.child("checkpoints"),
                progress=ctx.progress,
                max_error_rate=ctx.config.execution.max_error_rate,
                loader_workers=ctx.loader_workers,
            )
            ctx.out.write_json("history.json", result.history)
            summary |= {"steps": result.steps, "loss": result.history[-1]["loss"], **unreadable.summary()}
            ctx.counts |= unreadable.counts()
        elif settings.weights != "random":
            read = load_weights(network, settings)
            left_over = sorted(Counter(name.split(".")[0] for name in read.left_over).items())  # by first part of name
            summary |= {"names": read.layout, "matched": len(read.state), "left_over": dict(left_over)}
        write_rpn_folder(ctx.out, network.state_dict(), rpn_section(settings))
        return summary


WORK = RpnWork()
