"""Re-reads every artifact of a workspace against its records."""

from __future__ import annotations

from collections.abc import Iterator

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
from regionclip_core.folders import stream_sha256
from stages import base


def artifacts(workspace: Folder) -> Iterator[tuple[str, Folder]]:
    """(stage, folder) of every artifact in the workspace, finished or not, whatever config made it."""
    for stage in base.STAGES:
        for name in workspace.child(stage).folders():
            yield stage, workspace.child(stage).child(name)


def verify_artifact(folder: Folder) -> list[str]:
    """What is wrong with an artifact; empty when every file is what its record says. Reads every byte."""
    manifest = read_manifest(folder)
    names = set(folder.names())
    stage_files: list[FileRecord] = []
    try:
        if manifest is None:
            shards = read_shard_records(folder, done_shards(names))
        else:
            shards, stage_files = read_records(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{folder.url}: its records can't be read: {type(error).__name__}: {error}"]
    files = [f for record in shards for f in record.files] + stage_files
    wrong = [problem for f in files for problem in _check_file(folder, f, names)]
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
    elif record.name.endswith(".parquet"):
        yield from _check_parquet(folder, record.name)


def _check_parquet(folder: Folder, name: str) -> Iterator[str]:
    """The rows that the footer promises are there."""
    import pyarrow.parquet as pq

    try:
        with folder.open(name) as stream, pq.ParquetFile(stream) as file:
            rows = sum(batch.num_rows for batch in file.iter_batches())
            if rows != file.metadata.num_rows:
                yield f"{folder.path(name)}: {rows} rows, its footer says {file.metadata.num_rows}"
    except (OSError, ValueError) as error:
        yield f"{folder.path(name)}: not readable as Parquet: {error}"


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
