"""Running the toy pipeline: its workspace, its faults and its log of calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import toy_stages
import yaml

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import Config
from regionclip_core.storage.folder import Folder
from stages.commands.verify import artifacts
from stages.engine.plan import PlanLine, Planner
from stages.engine.progress import Reporter
from stages.engine.runner import Pipeline, RunResult


class Toy:
    """A toy pipeline in a temporary folder, its faults and its log of calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.workspace = Folder(str(root / "ws"))

    def config(self, **settings: Any) -> Config:
        raw = yaml.safe_load(toy_stages.CONFIG)
        raw["workspace"] = self.workspace.url
        for path, value in settings.items():
            section, key = path.split("__")
            raw.setdefault(section, {})[key] = value
        return parse_config(raw)

    def run(self, *targets: str, force: bool = False, **settings: Any) -> RunResult:
        return Pipeline(self.config(**settings), Reporter()).run(targets, force)

    def plan(self, **settings: Any) -> dict[str, PlanLine]:
        return {line.stage: line for line in Planner(self.config(**settings)).lines()}

    def fault(self, name: str) -> Path:
        path = toy_stages.folder(self.config(), "faults") / name
        path.touch()
        return path

    def calls(self) -> list[str]:
        """Calls since the last look, sorted."""
        path = self.root / "log" / "calls"
        text = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return sorted(text.split())

    def content(self) -> dict[str, bytes]:
        """Every committed file but the records."""
        return {
            f"{stage}/{folder.url[-12:]}/{name}": folder.read_bytes(name)
            for stage, folder in artifacts(self.workspace)
            for name in folder.names()
            if not name.startswith(("shard-", "failed", "records", "manifest", "plan", "progress"))
        }
