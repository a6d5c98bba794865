"""Artifacts: the records that commit what a stage wrote. The bytes are `folders.py`'s.

An artifact folder holds, next to the stage's own files:

    plan.json          how many shards the stage set out to do
    shard-00007.json   the record of one shard: the shard is done when this file is there
    failed-00007.json  why a shard failed, with its traceback; removed when the shard succeeds
    failed.json        the same for a job, a set-up or a merge
    progress.json      how far a running job is; gone when it is done
    records.json       all shard records rolled up, so that nobody opens 40,000 small files
    manifest.json      commits the stage; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from regionclip_core.folders import FileRecord, Folder, canonical_json

__all__ = [
    "Failure",
    "FileRecord",
    "Folder",
    "Manifest",
    "ShardRecord",
    "canonical_json",
    "content_digest",
    "done_shards",
    "failed_shards",
    "read_failure",
    "read_manifest",
    "read_records",
    "read_shard_records",
    "shard_failure_name",
    "shard_record_name",
    "write_failure",
    "write_manifest",
    "write_records",
    "write_shard_record",
]

MANIFEST = "manifest.json"
RECORDS = "records.json"
PLAN = "plan.json"
FAILURE = "failed.json"
PROGRESS = "progress.json"


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard. `counts` maps a sample status ("ok", "bad_...") to how many samples had it."""

    shard: int
    rows: int
    counts: dict[str, int]
    files: list[FileRecord]
    seconds: float

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> ShardRecord:
        """Inverse of `dataclasses.asdict`."""
        files = [FileRecord(**f) for f in obj["files"]]
        return cls(obj["shard"], obj["rows"], dict(obj["counts"]), files, obj["seconds"])


@dataclass(frozen=True)
class Failure:
    """Why a shard (or, with shard None, a whole stage) failed."""

    stage: str
    shard: int | None
    error: str
    """Last line of the traceback: type and message."""
    traceback: str
    host: str
    time: str
    """UTC, ISO 8601."""


@dataclass(frozen=True)
class Manifest:
    """What a finished stage is: how it came about and what its records add up to. The file list is in records.json."""

    stage: str
    version: int
    fingerprint: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    """Content digest of each upstream artifact, by stage name."""
    raw_inputs: dict[str, str]
    """Digest of each external file or folder, by the path the config gave."""
    summary: dict[str, Any]
    shards: int
    rows: int
    counts: dict[str, int]
    files: int
    """Number of files; `read_records` lists them."""
    bytes: int
    content_digest: str
    provenance: dict[str, Any] = field(default_factory=dict)
    """git commit, package versions, host, started, finished, seconds; never part of a digest."""


def content_digest(files: Iterable[FileRecord]) -> str:
    """sha256 (hex) over the sorted (name, sha256) pairs: equal content gives an equal digest, wherever it lies."""
    pairs = sorted((f.name, f.sha256) for f in files)
    return hashlib.sha256(canonical_json(pairs)).hexdigest()


def shard_record_name(shard: int) -> str:
    """File name of a shard's record."""
    return f"shard-{shard:05d}.json"


def shard_failure_name(shard: int) -> str:
    """File name of a shard's failure record."""
    return f"failed-{shard:05d}.json"


# ---------------------------------------------------------------- reading and writing records


def write_shard_record(folder: Folder, record: ShardRecord) -> None:
    """Commit a shard. Its files must be in place."""
    folder.write_json(shard_record_name(record.shard), asdict(record))


def write_failure(folder: Folder, failure: Failure) -> None:
    """Leave the reason of a failure beside the artifact."""
    name = FAILURE if failure.shard is None else shard_failure_name(failure.shard)
    folder.write_json(name, asdict(failure), indent=1)


def read_failure(folder: Folder, shard: int | None = None) -> Failure:
    """The failure record of a shard, or of the stage. Raises FileNotFoundError."""
    return Failure(**folder.read_json(FAILURE if shard is None else shard_failure_name(shard)))


def done_shards(names: Iterable[str]) -> list[int]:
    """Shards that have a record, from a listing of the artifact folder."""
    return sorted(int(n[6:-5]) for n in names if n.startswith("shard-") and n.endswith(".json") and n[6:-5].isdigit())


def failed_shards(names: Iterable[str]) -> list[int]:
    """Shards that have a failure record and no shard record, from a listing."""
    names = list(names)
    failed = {int(n[7:-5]) for n in names if n.startswith("failed-") and n.endswith(".json") and n[7:-5].isdigit()}
    return sorted(failed - set(done_shards(names)))


def read_shard_records(folder: Folder, shards: Iterable[int]) -> list[ShardRecord]:
    """Records of the given finished shards, in order; from records.json where it has them, else one by one."""
    from concurrent.futures import ThreadPoolExecutor

    known: dict[int, ShardRecord] = {}
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a roll-up is only a cache
        known = {r["shard"]: ShardRecord.from_json(r) for r in folder.read_json(RECORDS)["shards"]}
    wanted = sorted(shards)
    missing = [s for s in wanted if s not in known]

    def read(shard: int) -> ShardRecord:
        return ShardRecord.from_json(folder.read_json(shard_record_name(shard)))

    with ThreadPoolExecutor(max_workers=1 if folder.is_local else 32) as threads:
        known.update(zip(missing, threads.map(read, missing), strict=True))
    return [known[s] for s in wanted]


def write_records(folder: Folder, shards: Iterable[ShardRecord], stage_files: Iterable[FileRecord] = ()) -> None:
    """Roll up the records of an artifact: those of its shards, and the files of its job or merge."""
    rolled = {
        "shards": [{**vars(r), "files": [vars(f) for f in r.files]} for r in shards],
        "stage": [vars(f) for f in stage_files],
    }
    # What canonical_json gives. Its checks, made when each record was committed, would take most of the time here.
    text = json.dumps(rolled, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    folder.write_bytes(RECORDS, text.encode() + b"\n")


def read_records(folder: Folder) -> tuple[list[ShardRecord], list[FileRecord]]:
    """Shard records and stage-level files of a finished artifact."""
    rolled = folder.read_json(RECORDS)
    return [ShardRecord.from_json(r) for r in rolled["shards"]], [FileRecord(**f) for f in rolled["stage"]]


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Commit the stage. Everything else must be in place."""
    folder.write_json(MANIFEST, asdict(manifest), indent=1)


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest, or None when the stage is not finished. ValueError for one of another form."""
    try:
        found = folder.read_json(MANIFEST)
    except FileNotFoundError:
        return None
    try:
        return Manifest(**found)
    except TypeError as error:
        raise ValueError(
            f"{folder.path(MANIFEST)}: expected a manifest as this version writes it, but {error}; it was written by "
            "another version or damaged. Use that version, or delete the file's folder and run again"
        ) from error
