"""Re-reads every artifact of a workspace: its files against their records, the records against each other, and whether
the content makes sense: rows, schemas, samples, and the vocabulary that ids point into.

Functions that return an iterator of strings yield what is wrong, one line each.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_tensors

from regionclip_core.datasets.index import VOCABULARY_DIGEST, images_name, index_name, read_index
from regionclip_core.storage import tables
from regionclip_core.storage.fingerprints import SHORT, fingerprint, is_mark
from regionclip_core.storage.folder import HALF_REMOVED, stream_sha256
from regionclip_core.storage.records import (
    FAILURE,
    MANIFEST,
    PLAN,
    PROGRESS,
    RECORDS,
    FileRecord,
    Folder,
    Manifest,
    ShardRecord,
    content_digest,
    done_shards,
    read_manifest,
    read_records,
    read_shard_records,
    shard_record_name,
)
from regionclip_core.storage.tars import read_tar_index, scan_tar
from regionclip_core.training.error_budget import is_bad

from .. import declarations
from ..engine.plan import PlanLine

UNREADABLE = (OSError, ValueError, KeyError, TypeError)
"""What reading a file of another form than expected raises."""
LOOKS = 3
"""How often an artifact with problems is read, if it changed meanwhile or is unfinished: a run may be at work on it."""
SCHEMAS = {
    "index": tables.INDEX,
    "phrases": tables.PHRASES,
    "concepts": tables.CONCEPTS,
    "dropped": tables.DROPPED_CONCEPTS,
    "proposals": tables.PROPOSALS,
    "labels": tables.LABELS,
    "rejected": tables.REJECTED,
    "unreadable": tables.UNREADABLE,
}
"""By what a table's name begins with."""
Upstream = Mapping[str, Folder]
"""Finished artifacts that one was made from, by stage, as far as the workspace still has them."""

# ---------------------------------------------------------------- what is there


def stage_folders(workspace: Folder) -> Iterator[tuple[str, Folder]]:
    """Yield (stage, folder) of everything in the stages' places: artifacts, and what somebody else put there."""
    for stage in declarations.STAGES:
        with suppress(NotADirectoryError):  # `verify_workspace` complains
            for name in workspace.child(stage).folders():
                yield stage, workspace.child(stage).child(name)


def artifacts(workspace: Folder) -> Iterator[tuple[str, Folder]]:
    """Yield (stage, folder) of every artifact in the workspace, finished or not, whatever config made it.

    One has the name that a fingerprint gives, and a plan, a manifest or records, or the mark of one half removed.
    Anything else belongs to somebody.
    """
    for stage, folder in stage_folders(workspace):
        if is_mark(folder.url.rsplit("/", 1)[-1]):
            known = any(folder.exists(name) for name in (PLAN, MANIFEST, RECORDS, FAILURE, HALF_REMOVED))
            if known or done_shards(folder.names("shard-")):
                yield stage, folder


def verify_workspace(workspace: Folder) -> Iterator[tuple[str, Folder, list[str]]]:
    """Yield (stage, folder, what is wrong) of every artifact in the workspace, in pipeline order.

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
                break  # no run was at work on it
        if problems and not is_artifact(folder):
            continue
        if manifest is not None and not problems:
            sound[stage, manifest.content_digest] = folder
        yield stage, folder, problems


def is_artifact(folder: Folder) -> bool:
    """Return whether there is an artifact; what deletes one removes the manifest and the plan first."""
    return folder.exists(MANIFEST) or folder.exists(PLAN)


def _manifest(folder: Folder) -> Manifest | None:
    with suppress(*UNREADABLE):  # verify_artifact complains
        return read_manifest(folder)
    return None


def verify_artifact(folder: Folder, stage: str = "", upstream: Upstream | None = None) -> list[str]:
    """Return what is wrong with an artifact; empty when every file is what its record says. Reads every byte.

    `stage` adds the checks of its content, for artifacts that this version of the stage made.
    """
    stage_files: list[FileRecord] = []
    try:
        manifest = read_manifest(folder)
        done = done_shards(folder.names())  # after the manifest: a stage that ends just now has all records by then
        if manifest is None:
            shards = read_shard_records(folder, done)
        else:
            shards, stage_files = read_records(folder)
    except UNREADABLE as error:
        return [f"{folder.url}: its records can't be read: {type(error).__name__}: {error}"]
    files = [f for record in shards for f in record.files] + stage_files
    wrong = [problem for f in files for problem in _file(folder, f)]
    declared = declarations.STAGES.get(stage)
    current = declared is not None and (manifest is None or manifest.version == declared.version)
    if not wrong and current:  # a file that has changed needs no second complaint
        try:
            wrong += _content(stage, folder, shards, {f.name for f in stage_files}, upstream or {})
        except UNREADABLE as error:
            wrong.append(f"{folder.url}: its content can't be read: {type(error).__name__}: {error}")
    # The records in the folder are those that were rolled up.
    rolled = {record.shard: record for record in shards}
    if list(done) != list(rolled):
        wrong.append(f"{folder.path(RECORDS)}: the shard records in the folder differ from those rolled up in it")
    damaged: list[int] = []
    for record in read_shard_records(folder, [s for s in done if s in rolled], damaged, rolled_up=False):
        # Two workers may have done a shard, and the later record come after the earlier one was rolled up.
        if replace(record, seconds=0.0) != replace(rolled[record.shard], seconds=0.0):
            wrong.append(f"{folder.path(shard_record_name(record.shard))}: not what {RECORDS} says of the shard")
    wrong += [f"{folder.path(shard_record_name(shard))}: can't be read" for shard in damaged]
    if manifest is not None:
        wrong += _manifest_adds_up(folder, stage, manifest, shards, files)
    return wrong


def not_recorded(folder: Folder) -> list[str]:
    """Return the paths of files in a finished artifact that are not part of it: nothing reads them, so no damage."""
    try:
        if not folder.exists(MANIFEST):
            return []
        shards, stage_files = read_records(folder)
    except (OSError, ValueError):
        return []
    known = {f.name for record in shards for f in record.files} | {f.name for f in stage_files}
    known |= {MANIFEST, PLAN, PROGRESS, RECORDS}
    ours = re.compile(r"(shard|failed)-\d+\.json")
    return [folder.path(name) for name in folder.names() if name not in known and not ours.fullmatch(name)]


# ---------------------------------------------------------------- files and records


def _file(folder: Folder, record: FileRecord) -> Iterator[str]:
    """A file has the bytes that were recorded."""
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


def _manifest_adds_up(
    folder: Folder, stage: str, manifest: Manifest, shards: Sequence[ShardRecord], files: Sequence[FileRecord]
) -> Iterator[str]:
    """A manifest is the sum of its records, its fingerprint follows from what it says, and the folder has its name."""
    path = folder.path(MANIFEST)
    counts: Counter[str] = Counter()
    for record in shards:
        counts.update(record.counts)
    expected: dict[str, Any] = {
        "rows": sum(r.rows for r in shards),
        "bytes": sum(f.bytes for f in files),
        "files": len(files),
        "shards": len(shards),
        **({"counts": dict(counts)} if shards else {}),  # a job's counts are in its manifest alone
    }
    for what, number in expected.items():
        if number != (recorded := getattr(manifest, what)):
            yield f"{path}: {recorded} {what}, its records have {number}"
    if content_digest(files) != manifest.content_digest:
        yield f"{path}: its content digest doesn't fit its records"
    made_from = manifest.stage, manifest.version, manifest.settings, manifest.inputs, manifest.raw_inputs
    mark, name = manifest.fingerprint[:SHORT], folder.url.rsplit("/", 1)[-1]
    if manifest.fingerprint != (found := fingerprint(*made_from)):
        yield f"{path}: its fingerprint is {mark}, but its version, settings and inputs give {found[:SHORT]}"
    elif name != mark:
        yield f"{path}: its folder is called {name}, its fingerprint {mark}"
    if stage and manifest.stage != stage:
        yield f"{path}: of the stage {manifest.stage!r}, in the place of {stage}"


# ---------------------------------------------------------------- content


def _content(
    stage: str, folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream
) -> Iterator[str]:
    """Tables have the schema of their kind and the rows of their record; then what is particular to the stage.

    names: of the files of its merge or job. Every file must have the bytes that were recorded.
    """
    rows: dict[str, int | None] = dict.fromkeys(names)
    for record in shards:
        bad = sum(n for status, n in record.counts.items() if is_bad(status))
        rows |= {f.name: bad if f.name.startswith("unreadable-") else record.rows for f in record.files}
    for name in sorted(name for name in rows if name.endswith(".parquet")):
        try:
            schema, found = _schema(folder, name)
        except (OSError, ValueError) as error:
            yield f"{folder.path(name)}: not readable as Parquet: {error}"
            continue
        if rows[name] not in (None, found):
            yield f"{folder.path(name)}: {found} rows, its record says {rows[name]}"
        expected = SCHEMAS.get(name.removesuffix(".parquet").split("-")[0])
        if expected is tables.LABELS and tables.CROPS in schema.names:
            expected = tables.LABELS_WITH_CROPS
        if expected is not None and not schema.equals(expected):
            lacks, more = ([str(f) for f in a if f not in list(b)] for a, b in ((expected, schema), (schema, expected)))
            what = [f"lacks {lacks}"] * bool(lacks) + [f"also has {more}"] * bool(more) or ["has another order"]
            yield f"{folder.path(name)}: its columns don't fit its schema: it {' and '.join(what)}"
    if (check := {"data": _data, "labels": _labels, "pairs": _pairs}.get(stage)) is not None:
        yield from check(folder, shards, names, upstream)


def _data(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """Stored images are where the index says, box labels point into categories.json, splits.json has every shard."""
    for record in shards:
        tar = images_name(record.shard)
        if tar in {f.name for f in record.files}:
            expected = {(row.offset, row.size) for row in read_index(folder, record.shard) if row.url == tar}
            try:
                with folder.open(tar) as stream:
                    found = {place for sample in scan_tar(stream) for place in sample.members.values()}
            except ValueError as error:
                yield f"{folder.path(tar)}: {error}"
            else:
                if found != expected:
                    there = f"{len(found)} images, of which {len(found & expected)} are where the index has its"
                    yield f"{folder.path(tar)}: {there} {len(expected)}"
    if "categories.json" in names:
        digest = folder.read_json("categories.json")["digest"]
        for record in shards:
            yield from _same_vocabulary(folder, index_name(record.shard), folder.path("categories.json"), digest)
    if "splits.json" in names:
        listed = sorted(shard for split in folder.read_json("splits.json").values() for shard in split["shards"])
        if listed != sorted(record.shard for record in shards):
            yield f"{folder.path('splits.json')}: its shards differ from those that have records"


def _labels(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """Concept ids point into the pool whose embeddings are here: the concepts stage's, and names that a file of labels
    added.
    """
    meta, tensors = "concept_embeddings.json", "concept_embeddings.safetensors"
    if not {meta, tensors} <= names:
        return
    pool = folder.read_json(meta)
    rows = len(load_tensors(folder.read_bytes(tensors))["embeddings"])
    if rows != len(pool["names"]):
        yield f"{folder.path(tensors)}: {rows} embeddings for {len(pool['names'])} concepts"
    for record in shards:
        yield from _same_vocabulary(folder, f"labels-{record.shard:05d}.parquet", folder.path(meta), pool["digest"])
    source = upstream.get("concepts")
    own = source.read_bytes("concepts.txt").decode().splitlines() if source is not None else pool["names"]
    if own != pool["names"][: len(own) if "rejected.parquet" in names else None]:
        assert source is not None
        yield f"{folder.path(meta)}: its concepts differ from {source.path('concepts.txt')}"


def _pairs(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """Each tar has the samples that its record, index and pairs.json say, all with the vocabulary of the labels."""
    listing = folder.path("pairs.json")
    meta = folder.read_json("pairs.json") if "pairs.json" in names else None
    listed = {entry["shard"]: entry["samples"] for entry in meta["shards"]} if meta is not None else {}
    for record in shards:
        path, digests = folder.path(f"pairs-{record.shard:05d}.tar"), Counter[str]()
        try:
            with folder.open(f"pairs-{record.shard:05d}.tar") as stream:
                samples = list(scan_tar(stream))
                for sample in samples:
                    crops = "crops.npy" in sample.members
                    wanted = crops if meta is None else "crops" in meta
                    if len(sample.members) != 2 + crops or "json" not in sample.members or crops != wanted:
                        members, more = sorted(sample.members), ", crops.npy" * wanted
                        raise ValueError(f"sample {sample.key} has the members {members}, not an image, json{more}")
                    offset, size = sample.members["json"]
                    stream.seek(offset)
                    digests[json.loads(stream.read(size))["vocabulary"]] += 1
        except ValueError as error:
            yield f"{path}: {error}"
            continue
        if digests.total() != record.rows:
            yield f"{path}: {digests.total()} samples, its record says {record.rows}"
        index = f"pairs-{record.shard:05d}.idx"
        if read_tar_index(folder.read_bytes(index)) != [list(sample.members.values()) for sample in samples]:
            yield f"{folder.path(index)}: the samples of {path} are elsewhere"
        if meta is not None:
            if listed.get(record.shard) != record.rows:
                samples = listed.get(record.shard)
                yield f"{listing}: {samples} samples in shard {record.shard}, recorded {record.rows}"
            for digest, count in digests.items():
                yield from _same(f"{path}, {count} samples", digest, listing, meta["vocabulary"])
    if meta is not None and (source := upstream.get("labels")) is not None:
        pool = "concept_embeddings.json"
        yield from _same(listing, meta["vocabulary"], source.path(pool), source.read_json(pool)["digest"])


def _schema(folder: Folder, name: str) -> tuple[pa.Schema, int]:
    """Return the schema and the number of rows of a Parquet file."""
    with folder.open(name) as stream, pq.ParquetFile(stream) as file:
        return file.schema_arrow, file.metadata.num_rows


def _same_vocabulary(folder: Folder, name: str, other: str, expected: str) -> Iterator[str]:
    """A table's ids point into the vocabulary of this digest, which the file `other` has."""
    metadata: dict[bytes, bytes] = _schema(folder, name)[0].metadata or {}
    yield from _same(folder.path(name), metadata.get(VOCABULARY_DIGEST, b"").decode(), other, expected)


def _same(path: str, found: str, other: str, expected: str) -> Iterator[str]:
    if found != expected:
        yield f"{path}: of the vocabulary {found[:12] or '(none)'}, {other} has {expected[:12]}"


# ---------------------------------------------------------------- what to do


def advice(bad: Sequence[tuple[str, Folder]], lines: Sequence[PlanLine], options: str) -> list[str]:
    """Return what to do about artifacts with problems, given the plan of a config.

    `run --force` repairs those that the config reaches; of any other it would throw away a good result of the stage.
    options: of the command line, from its first blank on.
    """
    reached = {line.path: line.name for line in lines if line.path is not None}
    unknown = {line.stage for line in lines if line.path is None}
    files = [folder.url for _, folder in bad if folder.is_local and os.path.isfile(folder.url)]
    bad = [(stage, folder) for stage, folder in bad if folder.url not in files]
    again = sorted({reached[folder.url] for _, folder in bad if folder.url in reached})
    bad = [(stage, folder) for stage, folder in bad if folder.url not in reached]
    waiting = sorted({stage for stage, _ in bad if stage in unknown})
    others = [folder.url for stage, folder in bad if stage not in unknown]
    todo = [f"move it away: {url}" for url in files]
    if again:
        todo.append(f"do them over: regionclip run {' '.join(again)} --force{options}")
    if waiting:
        todo.append(
            f"not known yet whether this config reaches them: regionclip run {' '.join(waiting)}{options}, then verify "
            "again"
        )
    if others:
        todo.append(
            f"not of this config: {', '.join(others)}. Do them over with the config that made them, or delete them: "
            f"regionclip gc{options} lists all that this config doesn't reach, --yes deletes it"
        )
    return todo
