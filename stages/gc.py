"""What a workspace holds that no current config reaches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regionclip_core.artifacts import Folder
from regionclip_core.config import Config
from stages.lock import WorkspaceLock
from stages.plan import Planner
from stages.verify import artifacts


@dataclass(frozen=True)
class Garbage:
    """An artifact that nothing reaches."""

    stage: str
    folder: Folder
    bytes: int


def unreachable(configs: Sequence[Config], workspace: Folder) -> tuple[list[Garbage], list[str]]:
    """Artifacts that none of the configs reaches, and the stages that are kept whole.

    A stage is kept whole while its fingerprint is not known: after its upstream has run, an old result may turn out
    to be the current one.
    """
    reached: set[str] = set()
    undecided: list[str] = []
    for config in configs:
        for line in Planner(config, workspace).lines():
            if line.path is not None:
                reached.add(line.path)
            elif line.stage not in undecided:
                undecided.append(line.stage)
    garbage = [
        Garbage(stage, folder, folder_bytes(folder))
        for stage, folder in artifacts(workspace)
        if folder.url not in reached and stage not in undecided
    ]
    return garbage, undecided


def collect(configs: Sequence[Config], workspace: Folder) -> list[Garbage]:
    """Delete what is unreachable, under the workspace's lock; returns what was deleted."""
    with WorkspaceLock(workspace):
        garbage, _ = unreachable(configs, workspace)
        for item in garbage:
            item.folder.remove_all()
    return garbage


def folder_bytes(folder: Folder) -> int:
    """Bytes of everything inside, sub-folders included."""
    if folder.is_local:
        return sum((Path(root) / name).stat().st_size for root, _, names in os.walk(folder.url) for name in names)
    return sum(folder.sizes().values()) + sum(folder_bytes(folder.child(name)) for name in folder.folders())
