"""Whether an artifact's manifest, roll-up, plan and shard records say the same, and what they don't speak for.

The functions that begin with `check_` yield what is wrong, a line each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from regionclip_core.storage.fingerprints import SHORT, fingerprint
from regionclip_core.storage.records import (
    MANIFEST,
    PLAN,
    PROGRESS,
    RECORDS,
    FileRecord,
    Folder,
    Manifest,
    ShardRecord,
    content_digest,
    read_plan,
    read_records,
    read_shard_records,
    shard_record_name,
)

_RECORD_NAME = re.compile(r"(shard|failed)-\d+\.json")


def check_manifest(
    folder: Folder, stage: str, manifest: Manifest, shards: Sequence[ShardRecord], stage_files: Sequence[FileRecord]
) -> Iterator[str]:
    """A manifest adds up, its fingerprint is of what it says it was made from, and the folder has its name.

    stage: the one whose artifact it should be; "" where that is not known.
    """
    path = folder.path(MANIFEST)
    files = [f for record in shards for f in record.files] + list(stage_files)
    counts: Counter[str] = Counter()
    for record in shards:
        counts.update(record.counts)
    counted: dict[str, int | dict[str, int]] = {
        "rows": sum(r.rows for r in shards),
        "bytes": sum(f.bytes for f in files),
        "files": len(files),
        "shards": len(shards),
    }
    if shards:  # a job has no records: its counts are the manifest's alone
        counted["counts"] = dict(counts)
    for what, number in counted.items():
        if number != (recorded := getattr(manifest, what)):
            yield f"{path}: {recorded} {what}, its records have {number}"
    if content_digest(files) != manifest.content_digest:
        yield f"{path}: its content digest is not that of its records"
    if stage and manifest.stage != stage:
        yield f"{path}: of the stage {manifest.stage!r}, in the place of {stage}"
    made_from = manifest.stage, manifest.version, manifest.settings, manifest.inputs, manifest.raw_inputs
    if manifest.fingerprint != (found := fingerprint(*made_from)):
        yield (
            f"{path}: its fingerprint is {manifest.fingerprint[:SHORT]}, but that of its version, settings and inputs "
            f"{found[:SHORT]}"
        )
    elif (name := folder.url.rsplit("/", 1)[-1]) != manifest.fingerprint[:SHORT]:
        yield f"{path}: its folder is called {name}, its fingerprint {manifest.fingerprint[:SHORT]}"


def check_shard_records(folder: Folder, shards: Sequence[ShardRecord], done: Sequence[int]) -> Iterator[str]:
    """The records that were committed are the ones that were rolled up.

    Args:
        shards: records as the roll-up has them, or as they were read from the folder; done: shards with a record in it.
    """
    if list(done) != [record.shard for record in shards]:
        yield f"{folder.path(RECORDS)}: the shard records in the folder are not those rolled up in it"
    rolled = {record.shard: record for record in shards}
    damaged: list[int] = []
    both = [shard for shard in done if shard in rolled]
    for record in read_shard_records(folder, both, damaged, rolled_up=False):
        # Two workers may have done a shard, and the later record come after the earlier one was rolled up.
        if replace(record, seconds=0.0) != replace(rolled[record.shard], seconds=0.0):
            yield f"{folder.path(shard_record_name(record.shard))}: not what {RECORDS} says of the shard"
    for shard in damaged:
        yield f"{folder.path(shard_record_name(shard))}: can't be read"


def check_plan(folder: Folder, shards: Sequence[ShardRecord], is_job: bool) -> Iterator[str]:
    """A finished stage has done what it set out to do."""
    try:
        plan = read_plan(folder)
    except ValueError as error:
        yield str(error)
        return
    total = None if is_job else len(shards)
    if plan is None:
        yield f"{folder.path(PLAN)}: missing"
    elif plan.total != total:
        yield f"{folder.path(PLAN)}: {plan.total} shards planned, its records have {total}"


def not_recorded(folder: Folder) -> list[str]:
    """Paths of files in a finished artifact that are no part of it: nothing reads them, so they are no damage.

    Empty for an unfinished artifact, and for one whose records can't be read.
    """
    if not folder.exists(MANIFEST):
        return []
    try:
        shards, stage_files = read_records(folder)
    except (OSError, ValueError):
        return []
    recorded = {f.name for record in shards for f in record.files} | {f.name for f in stage_files}
    known = recorded | {MANIFEST, PLAN, PROGRESS, RECORDS}
    return [folder.path(name) for name in folder.names() if name not in known and not _RECORD_NAME.fullmatch(name)]
