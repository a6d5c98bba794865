"""Artifacts: the records that commit what a stage wrote. The bytes are `folder.py`'s.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from regionclip_core.storage.folder import REQUESTS, FileRecord, Folder, canonical_json

__all__ = [
    "Failure",
    "FileRecord",
    "Folder",
    "Manifest",
    "ShardListing",
    "ShardRecord",
    "StagePlan",
    "canonical_json",
    "content_digest",
    "done_shards",
    "failed_shards",
    "list_shards",
    "read_failure",
    "read_manifest",
    "read_plan",
    "read_records",
    "read_shard_record",
    "read_shard_records",
    "remove_shard_records",
    "shard_failure_name",
    "shard_record_name",
    "write_failure",
    "write_manifest",
    "write_plan",
    "write_records",
    "write_shard_record",
]

T = TypeVar("T")

MANIFEST = "manifest.json"
RECORDS = "records.json"
PLAN = "plan.json"
FAILURE = "failed.json"
PROGRESS = "progress.json"


_PAGE = 1000
"""Names that an object store gives an answer. Five digits of a shard's number: the first two choose one page."""


# ---------------------------------------------------------------- records


@dataclass(frozen=True)
class StagePlan:
    """What a stage set out to do."""

    total: int | None
    """Shards; None for a job."""
    last: int | None = None
    """The highest shard number, where there are shards and it is known."""


@dataclass(frozen=True)
class ShardListing:
    """Shards with a record, and those with a failure record and no shard record, rising."""

    done: tuple[int, ...]
    failed: tuple[int, ...]


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
    """The failure record of a shard, or of the stage. Raises FileNotFoundError, and ValueError for a damaged one."""
    name = FAILURE if shard is None else shard_failure_name(shard)
    found = folder.read_json(name)
    try:
        return Failure(**found)
    except TypeError as error:
        raise ValueError(f"{folder.path(name)}: expected a failure record, but {error}; run again") from error


def write_plan(folder: Folder, shards: Sequence[int] | None) -> None:
    """Say what the stage sets out to do: these shards, or (None) a job."""
    total = None if shards is None else len(shards)
    folder.write_json(PLAN, {"total": total, "last": max(shards) if shards else None}, indent=1)


def read_plan(folder: Folder) -> StagePlan | None:
    """What the stage set out to do; None when it has not begun. ValueError for one that is damaged."""
    try:
        found = folder.read_json(PLAN)
    except FileNotFoundError:
        return None
    numbers = [found.get("total"), found.get("last")] if isinstance(found, dict) and "total" in found else [""]
    if not all(number is None or type(number) is int for number in numbers):
        raise ValueError(f"{folder.path(PLAN)}: expected total and last, two numbers, but it holds {str(found)[:80]!r}")
    return StagePlan(*numbers)


def list_shards(folder: Folder, plan: StagePlan | None = None) -> ShardListing:
    """Where the shards of an unfinished stage stand, by one look at the names.

    Only names of records are asked for. What the stage planned tells an object store's pages apart beforehand, so that
    they come at the same time and not one after the other.
    """
    names = folder.names(*record_prefixes(plan), "failed-")
    return ShardListing(tuple(done_shards(names)), tuple(failed_shards(names)))


def record_prefixes(plan: StagePlan | None) -> list[str]:
    """Beginnings of records' names, each of few enough names for one page up to 100,000 shards."""
    if plan is None or plan.total is None or plan.total <= _PAGE:
        return ["shard-"]
    last = 99_999 if plan.last is None else min(plan.last, 99_999)
    return [f"shard-{block:02d}" for block in range(last // _PAGE + 1)]


def done_shards(names: Iterable[str]) -> list[int]:
    """Shards that have a record, from a listing of the artifact folder."""
    return sorted(int(n[6:-5]) for n in names if n.startswith("shard-") and n.endswith(".json") and n[6:-5].isdigit())


def failed_shards(names: Iterable[str]) -> list[int]:
    """Shards that have a failure record and no shard record, from a listing."""
    names = list(names)
    failed = {int(n[7:-5]) for n in names if n.startswith("failed-") and n.endswith(".json") and n[7:-5].isdigit()}
    return sorted(failed - set(done_shards(names)))


def read_shard_record(folder: Folder, shard: int) -> ShardRecord:
    """The record of one shard, as it was committed. Raises FileNotFoundError, and ValueError for a damaged one."""
    found = folder.read_json(shard_record_name(shard))
    try:
        record = ShardRecord.from_json(found)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_record(folder, shard, error) from error
    if record.shard != shard:
        raise _no_record(folder, shard, ValueError(f"it is shard {record.shard}'s"))
    return record


def _no_record(folder: Folder, shard: int, error: Exception) -> ValueError:
    return ValueError(
        f"{folder.path(shard_record_name(shard))}: expected the record of shard {shard}, but "
        f"{type(error).__name__}: {error}; a run does the shard anew"
    )


def read_shard_records(
    folder: Folder,
    shards: Iterable[int],
    damaged: list[int] | None = None,
    at_most: int | None = None,
    rolled_up: bool = True,
) -> list[ShardRecord]:
    """Records of the given finished shards, in order; from records.json where it has them, else one by one.

    Args:
        damaged: takes the shards whose records can't be read or have just been removed; None: that is an error.
        at_most: records to open one by one; the shards beyond are left out. None: all.
        rolled_up: False opens all of them, whatever records.json has.
    """
    known: dict[int, ShardRecord] = {}
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):  # a roll-up is only a cache
        if rolled_up:
            known = {r["shard"]: ShardRecord.from_json(r) for r in folder.read_json(RECORDS)["shards"]}
    wanted = sorted(shards)

    def read(shard: int) -> ShardRecord | None:
        try:
            return read_shard_record(folder, shard)
        except (FileNotFoundError, ValueError):
            if damaged is None:
                raise
            return None

    missing = [s for s in wanted if s not in known][:at_most]
    for shard, record in zip(missing, _at_once(folder, read, missing), strict=True):
        if record is not None:
            known[shard] = record
        elif damaged is not None:
            damaged.append(shard)
    return [known[s] for s in wanted if s in known]


def remove_shard_records(folder: Folder, shards: Iterable[int]) -> None:
    """Take back the commits of these shards; what records.json says of them is the caller's to mend."""
    list(_at_once(folder, lambda shard: folder.remove(shard_record_name(shard)), list(shards)))


def _at_once(folder: Folder, call: Callable[[int], T], shards: Sequence[int]) -> Iterator[T]:
    """`call` of each shard, in order; many requests at a time where the folder is remote."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=1 if folder.is_local else REQUESTS) as threads:
        yield from threads.map(call, shards)


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
    """Shard records and stage-level files of a finished artifact. ValueError for a damaged roll-up."""
    rolled = folder.read_json(RECORDS)
    try:
        return [ShardRecord.from_json(r) for r in rolled["shards"]], [FileRecord(**f) for f in rolled["stage"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder.path(RECORDS)}: expected the records of shards and of stage, but {type(error).__name__}: {error}"
        ) from error


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Commit the stage. Everything else must be in place."""
    folder.write_json(MANIFEST, asdict(manifest), indent=1)


def read_manifest(folder: Folder) -> Manifest | None:
    """The manifest, or None when the stage is not finished. ValueError for a damaged one and for another form."""
    try:
        found = folder.read_json(MANIFEST)
    except FileNotFoundError:
        return None
    try:
        manifest = Manifest(**found)
    except TypeError as error:
        raise _no_manifest(folder, str(error)) from error
    for name, kind in _MANIFEST_TYPES.items():
        if type(value := getattr(manifest, name)) is not kind:
            raise _no_manifest(folder, f"its {name} is {str(value)[:60]!r}")
    return manifest


_MANIFEST_TYPES = {
    **dict.fromkeys(("stage", "fingerprint", "content_digest"), str),
    **dict.fromkeys(("version", "shards", "rows", "files", "bytes"), int),
    **dict.fromkeys(("settings", "inputs", "raw_inputs", "summary", "counts", "provenance"), dict),
}


def _no_manifest(folder: Folder, what: str) -> ValueError:
    return ValueError(
        f"{folder.path(MANIFEST)}: expected a manifest as this version writes it, but {what}; it was written by "
        "another version or damaged. Use that version, or run again: it is made anew, and good shards are kept"
    )
