"""The finished artifacts of a workspace, for commands that read them and run nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import Folder, read_manifest

from ..engine.plan import PlanLine, Planner


def finished(
    config: Config, needed: Sequence[str], useful: Sequence[str] = (), purpose: str = "this"
) -> dict[str, PlanLine]:
    """Return the plan lines of `needed` stages, and of the `useful` ones that are done.

    Raises:
        ValueError: if a needed stage is not done, with what to run; `purpose` begins the message.
    """
    planner = Planner(config)
    lines = planner.finished()
    if not set(needed) <= lines.keys():  # to say why, more has to be looked at
        lines = {line.name: line for line in planner.lines()}
    for stage in needed:
        line = lines[stage]
        if line.state != "done":
            raise ValueError(
                f"{purpose} needs the finished stage {stage}, which is {line.state} in {config.workspace} "
                f"({line.reason}); run `regionclip run {stage}` with the same config first"
            )
    wanted = {*needed, *useful}
    return {stage: line for stage, line in lines.items() if stage in wanted and line.state == "done"}


@contextmanager
def undisturbed(lines: Iterable[PlanLine]) -> Iterator[None]:
    """Let the block read finished artifacts without a lock; if one was deleted meanwhile, its error says so.

    Raises:
        ValueError: with the stages whose artifacts are gone.
    """
    try:
        yield
    except Exception as error:
        gone = [line for line in lines if read_manifest(folder_of(line)) is None]
        if not gone:
            raise
        named = ", ".join(f"{line.name} ({line.path})" for line in gone)
        raise ValueError(
            f"deleted while it was being read, by `gc --yes` or `run --force`: {named}. Look at `regionclip status`, "
            "then try again"
        ) from error


def folder_of(line: PlanLine) -> Folder:
    """Return the artifact of a finished stage."""
    assert line.path is not None
    return Folder(line.path)
