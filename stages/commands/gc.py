"""What a workspace holds that no current config reaches."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from regionclip_core.config.tree import Config
from regionclip_core.storage.local_files import is_full
from regionclip_core.storage.locations import remote
from regionclip_core.storage.records import Folder
from stages.commands.verify import artifacts, stage_folders
from stages.engine.lock import hold
from stages.engine.plan import Planner

_log = logging.getLogger(__name__)

ROOM_FOR_A_LOCK = 1 << 16
"""Bytes of an artifact whose deletion surely makes room for a lock."""


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


def collect(configs: Sequence[Config], workspace: Folder) -> tuple[list[Garbage], list[str]]:
    """Delete what is unreachable, under the workspace's lock; returns what was deleted, and the stages kept whole."""
    early: list[Garbage] = []
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(workspace))
        except OSError as error:
            if not is_full(error):
                raise
            early = _make_room(configs, workspace, error)
            stack.enter_context(hold(workspace))
        garbage, undecided = unreachable(configs, workspace)
        for item in garbage:
            item.folder.remove_all()
    return early + garbage, undecided


def _make_room(configs: Sequence[Config], workspace: Folder, error: OSError) -> list[Garbage]:
    """Delete the smallest unreached artifact that is larger than a lock, without a lock, as there is no room for one.

    Nobody holds the workspace, else the lock would have been there, and a run that began now would find no room for
    its lock either. So one artifact goes without, and all others under the lock that then has room.
    """
    garbage, _ = unreachable(configs, workspace)
    enough = sorted((item for item in garbage if item.bytes >= ROOM_FOR_A_LOCK), key=lambda item: item.bytes)
    if not enough:
        raise error
    first = enough[0]
    _log.warning("the lock found no room (%s): %s is deleted without one, to make some", error, first.folder.url)
    first.folder.remove_all()
    return [first]


def strangers(workspace: Folder) -> list[Folder]:
    """Folders in the stages' places that are no artifacts, and that nothing here ever deletes."""
    known = {folder.url for _, folder in artifacts(workspace)}
    return [folder for _, folder in stage_folders(workspace) if folder.url not in known]


def folder_bytes(folder: Folder) -> int:
    """Bytes of everything inside, sub-folders included; a file that a run removes meanwhile counts as none."""
    if not folder.is_local:
        with suppress(FileNotFoundError), remote(folder.url) as (filesystem, root):
            filesystem.invalidate_cache()
            return int(filesystem.du(root))
        return 0
    total = 0
    for root, _, names in os.walk(folder.url):
        for name in names:
            with suppress(FileNotFoundError):
                total += (Path(root) / name).stat().st_size
    return total
