"""Where a run's numbers come from: code, machine, times, settings, seed, and how to make them again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from regionclip_core.config.loading import dump_config
from regionclip_core.config.tree import Config, ExecutionConfig
from regionclip_core.report.csv_tables import text_url
from regionclip_core.report.run import Run, Values
from regionclip_core.storage.records import Manifest

PACKAGES = ("regionclip", "torch", "torchvision", "open_clip_torch", "numpy")
"""Packages named at the head of the page; each artifact's manifest has more."""


def origin(run: Run) -> Values:
    """The head of the page, from the provenance in the artifacts' manifests."""
    stages = stage_rows(run.manifests)
    heads = ["stage", "began (UTC)", "seconds", "code", "machine"]
    run.tables.add("times", heads, stages)
    known = [manifest.provenance for manifest in run.manifests.values()]
    settings = settings_text(run.config)
    versions = {name: distinct(one.get("packages", {}).get(name) for one in known) for name in PACKAGES}
    finished = sorted(str(one["finished"]) for one in known if "finished" in one)
    return {
        "stages": stages,
        "heads": heads,
        "seconds": sum(one.get("seconds", 0.0) for one in known) if finished else None,
        "commits": distinct(one.get("git_commit") for one in known),
        "versions": {name: ", ".join(found) for name, found in versions.items() if found},
        "python": ", ".join(distinct(one.get("python") for one in known)),
        "machines": distinct(machine(one) for one in known),
        "finished": moment(finished[-1]) if finished else "",
        "settings": settings,
        "settings_url": text_url("yaml", settings),
    }


def stage_rows(manifests: Mapping[str, Manifest]) -> list[list[Any]]:
    """Return name, begin, seconds, commit and machine of each stage; None for what its manifest doesn't say."""
    rows = []
    for stage, manifest in manifests.items():
        one = manifest.provenance
        began = moment(one["started"]) if "started" in one else None
        rows.append([stage, began, one.get("seconds"), one.get("git_commit"), machine(one)])
    return rows


def settings_text(config: Config) -> str:
    """Return the whole config as YAML; the workspace and most of `execution`, which say where it ran, as by default."""
    where = {"workspace": "runs/again", "execution": ExecutionConfig(precision=config.execution.precision)}
    return dump_config(config.model_copy(update=where))


def machine(provenance: Mapping[str, Any]) -> str | None:
    """Return the machine's name and what it is, as far as they are recorded."""
    named = [str(provenance[key]) for key in ("host", "machine") if provenance.get(key)]
    return ": ".join(named) or None


def moment(time: str) -> str:
    """Return date and minute of an ISO 8601 time."""
    return time[:16].replace("T", " ")


def duration(seconds: float) -> str:
    """Return seconds as people say them: 45 s, 12 min, 3 h 5 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def distinct(values: Iterable[str | None]) -> list[str]:
    """Return the values that are there, each once, in their order."""
    return list(dict.fromkeys(value for value in values if value))
