"""Artifacts: the records that commit what a stage wrote. `folder.py` writes the bytes.

An artifact folder holds, next to the stage's own files:

    plan.json          how many shards the stage set out to do
    shard-00007.json   the record of one shard: the shard is done when this file is there
    failed-00007.json  why a shard failed, with its traceback; removed when the shard succeeds
    failed.json        the same for a job, a set-up or a merge
    progress.json      how far a running job is; removed when it is done
    records.json       all shard records rolled up, so that nobody opens 40,000 small files
    manifest.json      commits the stage; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from regionclip_core.storage.folder import FileRecord as FileRecord
from regionclip_core.storage.folder import Folder as Folder
from regionclip_core.storage.folder import canonical_json as canonical_json

T = TypeVar("T")

MANIFEST = "manifest.json"
RECORDS = "records.json"
PLAN = "plan.json"
FAILURE = "failed.json"
PROGRESS = "progress.json"

_PAGE = 1000
"""Names that an object store gives per answer; as many shards have numbers with the same first two of five digits."""
_STRICT = ConfigDict(strict=True, extra="forbid")
_FORMS: dict[Any, TypeAdapter[Any]] = {}
"""The checkers of the files, built when they are first needed."""


# ---------------------------------------------------------------- what the files hold


@dataclass(frozen=True)
class StagePlan:
    """What a stage set out to do."""

    __pydantic_config__ = _STRICT

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

    __pydantic_config__ = _STRICT

    shard: int
    rows: int
    counts: dict[str, int]
    files: list[FileRecord]
    seconds: float
    split: str = ""
    """Whose samples they are, where the stage says."""


@dataclass(frozen=True)
class RollUp:
    """All records of an artifact: those of its shards, and the files of its job or merge."""

    __pydantic_config__ = _STRICT

    shards: list[ShardRecord]
    stage: list[FileRecord]


@dataclass(frozen=True)
class Failure:
    """Why a shard (or, with shard None, a whole stage) failed."""

    __pydantic_config__ = _STRICT

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
    """What a finished stage is: how it was made and what its records add up to. The file list is in records.json."""

    __pydantic_config__ = _STRICT

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


def _read(folder: Folder, name: str, kind: type[T], what_to_do: str) -> T:
    """Return a JSON file as a `kind`. Raises FileNotFoundError, and ValueError for a file of any other form."""
    data = folder.read_bytes(name, small=True)
    form = _FORMS.get(kind) or _FORMS.setdefault(kind, TypeAdapter(kind))
    try:
        found: T = form.validate_json(data)
        return found
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{key}: " for key in first["loc"])
        came = f"{first['input']!r:.60}"
        raise ValueError(
            f"{folder.path(name)} is of another version or damaged: {place}{first['msg']} (came: {came}). {what_to_do}"
        ) from error


def content_digest(files: Iterable[FileRecord]) -> str:
    """Return the sha256 (hex) over the sorted (name, sha256) pairs: equal content gives an equal digest anywhere."""
    pairs = sorted((f.name, f.sha256) for f in files)
    return hashlib.sha256(canonical_json(pairs)).hexdigest()


def size(n: float) -> str:
    """Return bytes for a reader, in powers of ten: 1.5 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


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
    """Return the failure record of a shard, or of the stage. Raises FileNotFoundError, and ValueError if damaged."""
    return _read(folder, FAILURE if shard is None else shard_failure_name(shard), Failure, "Run again")


def write_plan(folder: Folder, shards: Sequence[int] | None) -> None:
    """Say what the stage sets out to do: these shards, or (None) a job."""
    total = None if shards is None else len(shards)
    folder.write_json(PLAN, {"total": total, "last": max(shards) if shards else None}, indent=1)


def read_plan(folder: Folder) -> StagePlan | None:
    """Return what the stage set out to do; None when it has not begun. Raises ValueError for a damaged plan."""
    with suppress(FileNotFoundError):
        return _read(folder, PLAN, StagePlan, "Run again")
    return None


def list_shards(folder: Folder, plan: StagePlan | None = None) -> ShardListing:
    """Return which shards of an unfinished stage are done and which failed, by one look at the names.

    Only names of records are asked for. With the stage's plan, an object store is asked for all pages of names at the
    same time instead of one after the other.
    """
    names = folder.names(*record_prefixes(plan), "failed-")
    done = _numbers(names, "shard-")
    return ShardListing(tuple(sorted(done)), tuple(sorted(_numbers(names, "failed-") - done)))


def record_prefixes(plan: StagePlan | None) -> list[str]:
    """Return beginnings of the records' names; up to shard 99,999 each has at most one page of names."""
    if plan is None or plan.total is None or plan.total <= _PAGE:
        return ["shard-"]
    last = 99_999 if plan.last is None else min(plan.last, 99_999)
    return [f"shard-{block:02d}" for block in range(last // _PAGE + 1)]


def done_shards(names: Iterable[str]) -> list[int]:
    """Return the shards that have a record, from a listing of the artifact folder."""
    return sorted(_numbers(names, "shard-"))


def _numbers(names: Iterable[str], kind: str) -> set[int]:
    found = (name[len(kind) : -5] for name in names if name.startswith(kind) and name.endswith(".json"))
    return {int(number) for number in found if number.isdigit()}


def read_shard_record(folder: Folder, shard: int) -> ShardRecord:
    """Return the record of one shard, as it was committed. Raises FileNotFoundError, and ValueError if damaged."""
    name = shard_record_name(shard)
    record = _read(folder, name, ShardRecord, "A run does the shard again")
    if record.shard != shard:
        raise ValueError(f"{folder.path(name)}: expected the record of shard {shard} (came: of shard {record.shard})")
    return record


def read_shard_records(
    folder: Folder,
    shards: Iterable[int],
    damaged: list[int] | None = None,
    at_most: int | None = None,
    rolled_up: bool = True,
) -> list[ShardRecord]:
    """Return the records of finished shards, in order; from records.json where it has them, else one by one.

    Args:
        damaged: takes the shards whose records can't be read or have just been removed; None: that is an error.
        at_most: records to open one by one; the shards beyond are left out. None: all.
        rolled_up: False opens all of them, whatever records.json has.
    """
    known: dict[int, ShardRecord] = {}
    if rolled_up:
        with suppress(FileNotFoundError, ValueError):  # a roll-up is only a cache
            known = {record.shard: record for record in read_records(folder)[0]}
    wanted = sorted(shards)

    def read(shard: int) -> ShardRecord | None:
        try:
            return read_shard_record(folder, shard)
        except (FileNotFoundError, ValueError):
            if damaged is None:
                raise
            return None

    missing = [s for s in wanted if s not in known][:at_most]
    for shard, record in zip(missing, folder.at_once(read, missing), strict=True):
        if record is not None:
            known[shard] = record
        elif damaged is not None:
            damaged.append(shard)
    return [known[s] for s in wanted if s in known]


def remove_shard_records(folder: Folder, shards: Iterable[int]) -> None:
    """Take back the commits of these shards; the caller updates records.json."""
    list(folder.at_once(lambda shard: folder.remove(shard_record_name(shard)), shards))


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
    """Return shard records and stage-level files of a finished artifact. Raises ValueError for a damaged roll-up."""
    rolled = _read(folder, RECORDS, RollUp, "Delete it and run again")
    return rolled.shards, rolled.stage


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Commit the stage. Everything else must be in place."""
    folder.write_json(MANIFEST, asdict(manifest), indent=1)


def read_manifest(folder: Folder) -> Manifest | None:
    """Return the manifest, or None when the stage is not finished. Raises ValueError for a damaged one."""
    with suppress(FileNotFoundError):
        return _read(
            folder, MANIFEST, Manifest, "Use that version, or run again: it is written again, and good shards are kept"
        )
    return None
