"""The finished artifacts of a workspace, for commands that read them and run nothing."""

from __future__ import annotations

from collections.abc import Sequence

from regionclip_core.artifacts import Folder
from regionclip_core.config import Config
from stages.plan import PlanLine, Planner


def finished(
    config: Config, needed: Sequence[str], useful: Sequence[str] = (), purpose: str = "this"
) -> dict[str, PlanLine]:
    """Plan lines of `needed` stages, and of the `useful` ones that are done.

    Raises:
        ValueError: if a needed stage is not done, with what to run; `purpose` begins the message.
    """
    lines = {line.stage: line for line in Planner(config, Folder(config.workspace)).lines()}
    for stage in needed:
        line = lines[stage]
        if line.state != "done":
            raise ValueError(
                f"{purpose} needs the finished stage {stage}, which is {line.state} in {config.workspace} "
                f"({line.reason}); run `regionclip run {stage}` with the same config first"
            )
    wanted = {*needed, *useful}
    return {stage: line for stage, line in lines.items() if stage in wanted and line.state == "done"}


def folder_of(line: PlanLine) -> Folder:
    """A finished stage's artifact."""
    assert line.path is not None
    return Folder(line.path)
