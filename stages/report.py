"""report: one self-contained page about the whole run, and its tables as text."""

from __future__ import annotations

from typing import Any

from regionclip_core.report.page import build_page, format_markdown
from regionclip_core.report.results import format_results

from .base import JobWork, StageContext


class ReportWork(JobWork):
    """Writes `report.html`, `results.txt`, `results.md`, and every table of the page as `<name>.csv`."""

    def run(self, ctx: StageContext) -> dict[str, Any]:
        """Read samples of every artifact and write the page."""
        metrics = ctx.inputs["evaluate"].read_json("metrics.json")
        ctx.out.write_bytes("results.txt", format_results(metrics).encode())
        ctx.out.write_bytes("results.md", format_markdown(metrics).encode())
        page, tables = build_page(ctx.config, ctx.inputs)
        for name, text in tables.items():
            ctx.out.write_bytes(f"{name}.csv", text.encode())
        ctx.out.write_bytes("report.html", page.encode())
        return {"report": "report.html"}


WORK = ReportWork()
