"""report: one self-contained page about the whole run, and its tables as text."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import STAGE_NAMES, Config
from stages.base import JobStage, StageContext


class ReportStage(JobStage):
    """Writes `report.html`, `results.txt` and `results.md`."""

    name = "report"
    version = 2

    def needs(self, config: Config) -> tuple[str, ...]:
        """Return every other stage, except those that the config has no use for."""
        unused = {"report"}
        if config.proposals.method != "rpn":
            unused.add("rpn")
        if config.pretrain.weights != "train":
            unused |= {"concepts", "labels", "pairs"}  # only pretraining reads them
        return tuple(stage for stage in STAGE_NAMES if stage not in unused)

    def settings(self, config: Config) -> dict[str, Any]:
        """Return the whole config except where it runs: the page prints settings, so a changed one makes a new page."""
        return config.model_dump(mode="json", exclude={"execution", "workspace"})

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Read samples of every artifact and write the page."""
        from regionclip_core.report.page import build_page, format_markdown
        from regionclip_core.report.results import format_results

        metrics = ctx.inputs["evaluate"].read_json("metrics.json")
        ctx.out.write_bytes("results.txt", format_results(metrics).encode())
        ctx.out.write_bytes("results.md", format_markdown(metrics).encode())
        ctx.out.write_bytes("report.html", build_page(ctx.config, ctx.inputs).encode())
        return {"report": "report.html"}


STAGE = ReportStage()
