"""Re-reads every artifact of a workspace against its records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from regionclip_core.artifacts import (
    FileRecord,
    Folder,
    Manifest,
    ShardRecord,
    content_digest,
    done_shards,
    read_manifest,
    read_records,
    read_shard_records,
)
from regionclip_core.content_checks import check_content
from regionclip_core.folders import stream_sha256
from stages import base

_UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What reading a file of another form than expected raises."""


def artifacts(workspace: Folder) -> Iterator[tuple[str, Folder]]:
    """(stage, folder) of every artifact in the workspace, finished or not, whatever config made it."""
    for stage in base.STAGES:
        for name in workspace.child(stage).folders():
            yield stage, workspace.child(stage).child(name)


def verify_workspace(workspace: Folder) -> Iterator[tuple[str, Folder, list[str]]]:
    """(stage, folder, what is wrong) of every artifact in the workspace, in pipeline order."""
    sound: dict[tuple[str, str], Folder] = {}
    """By stage and content digest: what others may be compared with."""
    for stage, folder in artifacts(workspace):
        manifest = None
        with suppress(*_UNREADABLE):  # verify_artifact complains
            manifest = read_manifest(folder)
        made_from = manifest.inputs.items() if manifest is not None else ()
        upstream = {name: sound[name, digest] for name, digest in made_from if (name, digest) in sound}
        problems = verify_artifact(folder, stage, upstream)
        if manifest is not None and not problems:
            sound[stage, manifest.content_digest] = folder
        yield stage, folder, problems


def verify_artifact(folder: Folder, stage: str = "", upstream: Mapping[str, Folder] | None = None) -> list[str]:
    """What is wrong with an artifact; empty when every file is what its record says. Reads every byte.

    `stage` adds the checks of its content (rows, schemas, samples, vocabularies), for artifacts that this version of
    the stage made; `upstream` are the artifacts it was made from, by stage, as far as they are there.
    """
    names = set(folder.names())
    stage_files: list[FileRecord] = []
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            shards = read_shard_records(folder, done_shards(names))
        else:
            shards, stage_files = read_records(folder)
    except _UNREADABLE as error:
        return [f"{folder.url}: its records can't be read: {type(error).__name__}: {error}"]
    files = [f for record in shards for f in record.files] + stage_files
    wrong = [problem for f in files for problem in _check_file(folder, f, names)]
    current = manifest is None or (stage in base.STAGES and manifest.version == base.STAGES[stage].version)
    if not wrong and stage and current:  # what is no longer what was written needs no second complaint
        try:
            wrong += check_content(stage, folder, shards, [f.name for f in stage_files], upstream or {})
        except _UNREADABLE as error:
            wrong.append(f"{folder.url}: its content can't be read: {type(error).__name__}: {error}")
    if manifest is not None:
        wrong += _check_manifest(folder, manifest, shards, files)
    return wrong


def _check_file(folder: Folder, record: FileRecord, names: set[str]) -> Iterator[str]:
    path = folder.path(record.name)
    if record.name not in names:
        yield f"{path}: missing"
        return
    with folder.open(record.name) as stream:
        size, digest = stream_sha256(stream)
    if size != record.bytes:
        yield f"{path}: {size} bytes, recorded {record.bytes}"
    elif digest != record.sha256:
        yield f"{path}: sha256 {digest[:12]}..., recorded {record.sha256[:12]}..."


def _check_manifest(
    folder: Folder, manifest: Manifest, shards: list[ShardRecord], files: list[FileRecord]
) -> Iterator[str]:
    """The roll-up adds up, and says the same as the records that it rolled up."""
    path = folder.path("manifest.json")
    recorded = {"rows": manifest.rows, "bytes": manifest.bytes, "files": manifest.files, "shards": manifest.shards}
    counted = {
        "rows": sum(r.rows for r in shards),
        "bytes": sum(f.bytes for f in files),
        "files": len(files),
        "shards": len(shards),
    }
    for what, number in counted.items():
        if number != recorded[what]:
            yield f"{path}: {recorded[what]} {what}, its records have {number}"
    if content_digest(files) != manifest.content_digest:
        yield f"{path}: its content digest is not that of its records"
    if done_shards(folder.names()) != [r.shard for r in shards]:
        yield f"{path}: the shard records in the folder are not those rolled up in records.json"
