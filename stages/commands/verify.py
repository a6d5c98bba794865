"""Re-reads every artifact of a workspace against its records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from regionclip_core.storage.fingerprints import is_mark
from regionclip_core.storage.folder import HALF_REMOVED, stream_sha256
from regionclip_core.storage.records import (
    FAILURE,
    MANIFEST,
    PLAN,
    RECORDS,
    FileRecord,
    Folder,
    Manifest,
    done_shards,
    read_manifest,
    read_records,
    read_shard_records,
)
from stages import declarations
from stages.base import JobStage
from stages.commands.content_checks import check_content
from stages.commands.record_checks import check_manifest, check_plan, check_shard_records

if TYPE_CHECKING:
    from stages.engine.plan import PlanLine

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What reading a file of another form than expected raises."""
LOOKS = 3
"""How often an artifact with problems is read, if it changed meanwhile or is unfinished: a run may be at work on it."""


def stage_folders(workspace: Folder) -> Iterator[tuple[str, Folder]]:
    """(stage, folder) of everything that lies in the stages' places: artifacts, and what somebody else put there."""
    for stage in declarations.STAGES:
        with suppress(NotADirectoryError):  # `verify_workspace` complains
            for name in workspace.child(stage).folders():
                yield stage, workspace.child(stage).child(name)


def artifacts(workspace: Folder) -> Iterator[tuple[str, Folder]]:
    """(stage, folder) of every artifact in the workspace, finished or not, whatever config made it.

    One has the name that a fingerprint gives, and a plan, a manifest or records, or the mark of one half removed.
    Anything else is somebody's own.
    """
    for stage, folder in stage_folders(workspace):
        if is_mark(folder.url.rsplit("/", 1)[-1]) and _has_records(folder):
            yield stage, folder


def _has_records(folder: Folder) -> bool:
    known = any(folder.exists(name) for name in (PLAN, MANIFEST, RECORDS, FAILURE, HALF_REMOVED))
    return known or bool(done_shards(folder.names("shard-")))


def verify_workspace(workspace: Folder) -> Iterator[tuple[str, Folder, list[str]]]:
    """(stage, folder, what is wrong) of every artifact in the workspace, in pipeline order.

    Takes no lock: an artifact that `gc --yes` or `run --force` deletes meanwhile is left out.
    """
    for stage in declarations.STAGES:
        place = workspace.child(stage)
        if place.is_local and os.path.lexists(place.url) and not os.path.isdir(place.url):
            yield stage, place, [f"{place.url}: expected the folder of the stage's results, but it is a file"]
    sound: dict[tuple[str, str], Folder] = {}
    """By stage and content digest: what others may be compared with."""
    for stage, folder in artifacts(workspace):
        for _ in range(LOOKS):
            manifest = _manifest(folder)
            made_from = manifest.inputs.items() if manifest is not None else ()
            upstream = {name: sound[name, digest] for name, digest in made_from if (name, digest) in sound}
            problems = verify_artifact(folder, stage, {n: f for n, f in upstream.items() if is_artifact(f)})
            if not problems or not is_artifact(folder):
                break
            if manifest is not None and manifest == _manifest(folder) and all(map(is_artifact, upstream.values())):
                break  # nobody was at work on it
        if problems and not is_artifact(folder):
            continue
        if manifest is not None and not problems:
            sound[stage, manifest.content_digest] = folder
        yield stage, folder, problems


def is_artifact(folder: Folder) -> bool:
    """Whether there is an artifact; what deletes one removes the manifest and the plan first."""
    return folder.exists(MANIFEST) or folder.exists(PLAN)


def _manifest(folder: Folder) -> Manifest | None:
    with suppress(*_UNREADABLE):  # verify_artifact complains
        return read_manifest(folder)
    return None


def verify_artifact(folder: Folder, stage: str = "", upstream: Mapping[str, Folder] | None = None) -> list[str]:
    """What is wrong with an artifact; empty when every file is what its record says. Reads every byte.

    `stage` adds the checks of its content (rows, schemas, samples, vocabularies), for artifacts that this version of
    the stage made; `upstream` are the artifacts it was made from, by stage, as far as they are there.
    """
    stage_files: list[FileRecord] = []
    try:
        manifest = read_manifest(folder)
        done = done_shards(folder.names())  # after the manifest: a stage that ends just now has all records by then
        if manifest is None:
            shards = read_shard_records(folder, done)
        else:
            shards, stage_files = read_records(folder)
    except _UNREADABLE as error:
        return [f"{folder.url}: its records can't be read: {type(error).__name__}: {error}"]
    files = [f for record in shards for f in record.files] + stage_files
    wrong = [problem for f in files for problem in _check_file(folder, f)]
    current = manifest is None or (
        stage in declarations.STAGES and manifest.version == declarations.STAGES[stage].version
    )
    if not wrong and stage and current:  # what is no longer what was written needs no second complaint
        try:
            wrong += check_content(stage, folder, shards, [f.name for f in stage_files], upstream or {})
        except _UNREADABLE as error:
            wrong.append(f"{folder.url}: its content can't be read: {type(error).__name__}: {error}")
    wrong += check_shard_records(folder, shards, done)
    if manifest is not None:
        wrong += check_manifest(folder, stage, manifest, shards, stage_files)
        if stage:
            wrong += check_plan(folder, shards, is_job=isinstance(declarations.STAGES[stage], JobStage))
    return wrong


def _check_file(folder: Folder, record: FileRecord) -> Iterator[str]:
    path = folder.path(record.name)
    try:
        with folder.open(record.name) as stream:
            size, digest = stream_sha256(stream)
    except FileNotFoundError:
        yield f"{path}: missing"
        return
    except ConnectionError:  # of the store, not of this file
        raise
    except OSError as error:
        yield f"{path}: can't be read: {error.strerror or error}"
        return
    if size != record.bytes:
        yield f"{path}: {size} bytes, recorded {record.bytes}"
    elif digest != record.sha256:
        yield f"{path}: sha256 {digest[:12]}..., recorded {record.sha256[:12]}..."


def advice(bad: Sequence[tuple[str, Folder]], lines: Sequence[PlanLine], options: str) -> list[str]:
    """What to do about artifacts with problems, given the plan of a config.

    `run --force` mends those that the config reaches; of any other it would throw away a good result of the stage.
    options: of the command line, from its first blank on.
    """
    paths = {line.stage: line.path for line in lines}
    again = [stage for stage, folder in bad if folder.url == paths.get(stage)]
    files = [folder.url for _, folder in bad if folder.is_local and os.path.isfile(folder.url)]
    waiting = [stage for stage, folder in bad if paths.get(stage) is None and folder.url not in files]
    known = [(stage, folder) for stage, folder in bad if stage not in waiting and folder.url not in files]
    others = [folder.url for stage, folder in known if folder.url != paths[stage]]
    told = [f"move it away: {url}" for url in files]
    if again:
        told.append(f"do them over: regionclip run {' '.join(sorted(set(again)))} --force{options}")
    if waiting:
        named = " ".join(sorted(set(waiting)))
        told.append(
            f"not known yet whether this config reaches them: regionclip run {named}{options}, then verify again"
        )
    if others:
        told.append(
            f"not of this config: {', '.join(others)}. Do them over with the config that made them, or delete them: "
            f"regionclip gc{options} lists all that this config doesn't reach, --yes deletes it"
        )
    return told
