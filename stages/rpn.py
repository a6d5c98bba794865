"""rpn: a class-agnostic region proposal network, trained on the boxes of base categories only."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import RPN_FIELDS, Config
from regionclip_core.storage.records import Folder
from stages.base import JobStage, StageContext


class RpnStage(JobStage):
    """Writes `rpn.safetensors` and `rpn.json`: a folder that `rpn.weights` and `detect --rpn` take in turn."""

    name = "rpn"
    version = 2
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Nothing at all where no proposal network is used, only boxes where one is trained."""
        trained = config.proposals.method == "rpn" and config.rpn.weights == "train"
        return ("data",) if trained else ()

    def raw_inputs(self, config: Config) -> list[str]:
        """A weight file counts by its content, also inside a folder."""
        if config.proposals.method != "rpn" or config.rpn.weights in ("train", "random"):
            return []
        return weight_files(config.rpn.weights)

    def settings(self, config: Config) -> dict[str, Any]:
        """What is read of the section; nothing but `unused` where another proposer is set."""
        if config.proposals.method != "rpn":
            return {"unused": config.proposals.method}
        if config.rpn.weights == "train":
            return {"rpn": config.rpn.model_dump(mode="json", exclude={"checkpoint_every"}), "seed": config.seed}
        section = config.rpn.model_dump(mode="json", include={"weights", *RPN_FIELDS})
        return {"rpn": section, **({"seed": config.seed} if config.rpn.weights == "random" else {})}

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Build, train where asked, save."""
        if ctx.config.proposals.method != "rpn":
            return {"unused": f"proposals.method is {ctx.config.proposals.method}"}
        import torch

        from regionclip_core.proposals.network import build_network, train_network
        from regionclip_core.proposals.rpn_folder import load_weights, rpn_section, save_rpn_folder

        torch.set_num_threads(ctx.threads)
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
            )
            ctx.out.write_json("history.json", result.history)
            summary |= {"steps": result.steps, "loss": result.history[-1]["loss"], **unreadable.summary()}
            ctx.counts |= unreadable.counts()
        elif settings.weights != "random":
            read = load_weights(network, settings)
            summary |= {"names": read.layout, "matched": len(read.state), "left_over": _by_part(read.left_over)}
        save_rpn_folder(ctx.out, network, rpn_section(settings))
        return summary


def weight_files(weights: str) -> list[str]:
    """The files behind `rpn.weights`: those of an RPN folder or of the one in a pretrained folder, or the file."""
    folder = Folder(weights)
    for inside in (folder, folder.child("rpn")):
        if inside.exists("rpn.json"):
            return [inside.path("rpn.json"), inside.path("rpn.safetensors")]
    return [weights]


def _by_part(names: tuple[str, ...]) -> dict[str, int]:
    """How many of a file's entries were left over, by the first part of their names."""
    parts = [name.split(".")[0] for name in names]
    return {part: parts.count(part) for part in sorted(set(parts))}


STAGE = RpnStage()
