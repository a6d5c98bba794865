"""report: one self-contained page about the whole run, and its tables as text."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config
from stages.base import JobStage, StageContext


class ReportStage(JobStage):
    """Writes `report.html`, `results.txt` and `results.md`."""

    name = "report"
    version = 2

    def needs(self, config: Config) -> tuple[str, ...]:
        """Everything; the proposal network only where one proposes, what pretraining reads only where there is one."""
        rpn = ("rpn",) if config.proposals.method == "rpn" else ()
        trained = config.pretrain.weights == "train"
        concepts, labels = (("concepts",), ("labels", "pairs")) if trained else ((), ())
        before = ("data", *concepts, "teacher", *rpn, "proposals", *labels)
        return (*before, "pretrain", "finetune", "evaluate")

    def settings(self, config: Config) -> dict[str, Any]:
        """The whole config but where it runs: the page prints settings, so it is made anew when one changes."""
        return config.model_dump(mode="json", exclude={"execution", "workspace"})

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Read samples of every artifact and write the page."""
        from regionclip_core.report.page import build_page
        from regionclip_core.report.results_table import format_markdown, format_results

        metrics = ctx.inputs["evaluate"].read_json("metrics.json")
        ctx.out.write_bytes("results.txt", format_results(metrics).encode())
        ctx.out.write_bytes("results.md", format_markdown(metrics).encode())
        ctx.out.write_bytes("report.html", build_page(ctx.config, ctx.inputs).encode())
        return {"report": "report.html"}


STAGE = ReportStage()
