"""What a workspace holds that no current config reaches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from regionclip_core.config.loading import parse_config
from regionclip_core.config.tree import Config
from regionclip_core.config.yaml_text import parse_yaml
from regionclip_core.storage.local_files import is_full
from regionclip_core.storage.locations import remote
from regionclip_core.storage.records import Folder

from ..engine.lock import hold
from ..engine.plan import Planner
from .verify import artifacts, stage_folders

ABLATION = ".ablation.json"
"""How the files end in which `ablate` keeps its configs."""


@dataclass(frozen=True)
class Garbage:
    """An artifact that nothing reaches."""

    stage: str
    folder: Folder
    bytes: int


def ablations(workspace: Folder) -> dict[str, list[Config]]:
    """Return the configs of every ablation in the workspace, by its file: their artifacts stay while the file is there.

    Raises ValueError for a file that this version can't read.
    """
    found = {}
    for name in workspace.names():
        if name.endswith(ABLATION):
            path = workspace.path(name)
            try:
                texts = dict.fromkeys(cell["config"] for cell in workspace.read_json(name)["cells"])
                found[path] = [parse_config(parse_yaml(text, path), path) for text in texts]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}: expected an ablation as this version writes it, but {error}; run `regionclip ablate` "
                    "again, or delete the file if its artifacts need not stay"
                ) from error
    return found


def unreachable(configs: Sequence[Config], workspace: Folder) -> tuple[list[Garbage], list[str]]:
    """Return the artifacts that none of the configs reaches, and the stages that are kept whole.

    A stage is kept whole while its fingerprint is not known: after its upstream has run, an old result may turn out
    to be the current one.
    """
    lines = [line for config in configs for line in Planner(config, workspace).lines()]
    reached = {line.path for line in lines}
    undecided = list(dict.fromkeys(line.stage for line in lines if line.path is None))
    garbage = [
        Garbage(stage, folder, folder_bytes(folder))
        for stage, folder in artifacts(workspace)
        if folder.url not in reached and stage not in undecided
    ]
    return garbage, undecided


def collect(configs: Sequence[Config], workspace: Folder) -> tuple[list[Garbage], list[str]]:
    """Delete what is unreachable, under the workspace's lock; returns what was deleted, and the stages kept whole."""
    try:
        with hold(workspace):
            garbage, undecided = unreachable(configs, workspace)
            for item in garbage:
                item.folder.remove_all()
    except OSError as error:
        if not is_full(error):
            raise
        # Without a lock a run could begin meanwhile, and reach what is deleted here.
        hint = "the lock finds no room: delete one of the folders that `regionclip gc` lists, then try again"
        raise OSError(error.errno, f"{error.strerror}; {hint}", error.filename) from error
    return garbage, undecided


def foreign_folders(workspace: Folder) -> list[Folder]:
    """Return the folders in the stages' places that are no artifacts; nothing here ever deletes them."""
    known = {folder.url for _, folder in artifacts(workspace)}
    return [folder for _, folder in stage_folders(workspace) if folder.url not in known]


def folder_bytes(folder: Folder) -> int:
    """Return the bytes of everything inside, sub-folders included; a file that is removed meanwhile counts as none."""
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
