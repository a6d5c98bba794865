"""Whether what is in an artifact's files makes sense: rows, schemas, samples, and whose vocabulary the ids point into.

The files' bytes are checked elsewhere, against their records. Every function yields what is wrong, a line each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regionclip_core.storage.records import Folder, ShardRecord

if TYPE_CHECKING:
    import pyarrow as pa

Upstream = Mapping[str, Folder]
"""Finished artifacts that this one was made from, by stage, as far as the workspace still has them."""


def check_content(
    stage: str, folder: Folder, shards: Sequence[ShardRecord], stage_files: Sequence[str], upstream: Upstream
) -> Iterator[str]:
    """What is wrong inside an artifact of `stage`; a stage without a check of its own has its tables read.

    Args:
        shards: records of its finished shards; stage_files: names of the files of its merge or job. All of them must
            be there, with the bytes that were recorded.
    """
    for record in shards:
        for file in record.files:
            yield from check_table(folder, file.name, record.rows)
    for name in stage_files:
        yield from check_table(folder, name)
    if stage in _CHECKS:
        yield from _CHECKS[stage](folder, shards, set(stage_files), upstream)


# ---------------------------------------------------------------- tables


def check_table(folder: Folder, name: str, rows: int | None = None) -> Iterator[str]:
    """A Parquet file has the schema of its kind and the rows that its footer, and its record, promise."""
    if not name.endswith(".parquet"):
        return
    import pyarrow.parquet as pq

    try:
        with folder.open(name) as stream, pq.ParquetFile(stream) as file:
            found = sum(batch.num_rows for batch in file.iter_batches())
            promised, schema = file.metadata.num_rows, file.schema_arrow
    except (OSError, ValueError) as error:
        yield f"{folder.path(name)}: not readable as Parquet: {error}"
        return
    if found != promised:
        yield f"{folder.path(name)}: {found} rows, its footer says {promised}"
    if rows is not None and found != rows:
        yield f"{folder.path(name)}: {found} rows, its record says {rows}"
    expected = _schemas().get(name.removesuffix(".parquet").split("-")[0])
    if expected is not None and not schema.equals(expected):
        yield f"{folder.path(name)}: {_schema_difference(schema, expected)}"


def _schemas() -> dict[str, pa.Schema]:
    """By what a file's name begins with."""
    from regionclip_core.storage import tables as schemas

    return {
        "index": schemas.INDEX,
        "phrases": schemas.PHRASES,
        "concepts": schemas.CONCEPTS,
        "dropped": schemas.DROPPED_CONCEPTS,
        "proposals": schemas.PROPOSALS,
        "labels": schemas.LABELS,
    }


def _schema_difference(found: pa.Schema, expected: pa.Schema) -> str:
    if found.names != expected.names:
        missing = [name for name in expected.names if name not in found.names]
        more = [name for name in found.names if name not in expected.names]
        what = [f"lacks {missing}"] * bool(missing) + [f"also has {more}"] * bool(more) or ["has them in another order"]
        return f"columns are not those of its schema: it {' and '.join(what)}"
    field = next(f for f in expected if not found.field(f.name).equals(f))
    return f"column {field.name!r} is {found.field(field.name)}, its schema says {field}"


# ---------------------------------------------------------------- stages


def _data(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """Box labels point into categories.json, stored images lie where the index says, splits.json has every shard."""
    from regionclip_core.datasets.index import VOCABULARY_DIGEST, images_name, index_name

    for record in shards:
        if images_name(record.shard) in {f.name for f in record.files}:
            yield from _stored_images(folder, record.shard)
    if "categories.json" in names:
        digest = folder.read_json("categories.json")["digest"]
        for record in shards:
            found = _metadata(folder, index_name(record.shard), VOCABULARY_DIGEST)
            yield from _same(folder.path(index_name(record.shard)), found, folder.path("categories.json"), digest)
    if "splits.json" in names:
        listed = sorted(shard for split in folder.read_json("splits.json").values() for shard in split["shards"])
        if listed != sorted(record.shard for record in shards):
            yield f"{folder.path('splits.json')}: its shards are not those that have records"


def _stored_images(folder: Folder, shard: int) -> Iterator[str]:
    """Every member of the images' tar is one row of the index, at its place."""
    from regionclip_core.datasets.index import images_name, read_index
    from regionclip_core.storage.tars import BadTar, scan_tar

    url = images_name(shard)
    expected = {(row.offset, row.size) for row in read_index(folder, shard) if row.url == url}
    try:
        with folder.open(url) as stream:
            found = {place for sample in scan_tar(stream) for place in sample.members.values()}
    except BadTar as error:
        yield f"{folder.path(url)}: {error}"
        return
    if found != expected:
        yield (
            f"{folder.path(url)}: {len(found)} images, of which {len(found & expected)} lie where the index has its "
            f"{len(expected)}"
        )


def _concepts(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """The pool as text is the pool as a table, its ids run from 0."""
    import pyarrow.parquet as pq

    if not {"concepts.parquet", "concepts.txt"} <= names:
        return
    with folder.open("concepts.parquet") as stream:
        table = pq.read_table(stream, columns=["id", "concept"]).to_pydict()
    if table["id"] != list(range(len(table["id"]))):
        yield f"{folder.path('concepts.parquet')}: its ids don't run from 0 to {len(table['id']) - 1}"
    if folder.read_bytes("concepts.txt").decode().splitlines() != table["concept"]:
        yield f"{folder.path('concepts.txt')}: its names are not those of concepts.parquet"


def _labels(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """Concept ids point into the pool whose embeddings lie here, which is that of the concepts stage."""
    from safetensors.numpy import load

    from regionclip_core.datasets.index import VOCABULARY_DIGEST

    meta, tensors = "concept_embeddings.json", "concept_embeddings.safetensors"
    if not {meta, tensors} <= names:
        return
    pool = folder.read_json(meta)
    rows = len(load(folder.read_bytes(tensors))["embeddings"])
    if rows != len(pool["names"]):
        yield f"{folder.path(tensors)}: {rows} embeddings for {len(pool['names'])} concepts"
    for record in shards:
        name = f"labels-{record.shard:05d}.parquet"
        found = _metadata(folder, name, VOCABULARY_DIGEST)
        yield from _same(folder.path(name), found, folder.path(meta), pool["digest"])
    if "concepts" in upstream:
        source = upstream["concepts"]
        if source.read_bytes("concepts.txt").decode().splitlines() != pool["names"]:
            yield f"{folder.path(meta)}: its concepts are not those of {source.path('concepts.txt')}"


def _pairs(folder: Folder, shards: Sequence[ShardRecord], names: set[str], upstream: Upstream) -> Iterator[str]:
    """Each tar holds the samples that its record and pairs.json say, all of the pool that the labels are of."""
    listing = "pairs.json"  # PAIRS_META and pairs_name are in a module that loads torch
    meta = folder.read_json(listing) if listing in names else None
    listed = {entry["shard"]: entry["samples"] for entry in meta["shards"]} if meta else {}
    for record in shards:
        name = f"pairs-{record.shard:05d}.tar"
        path, digests = folder.path(name), []
        try:
            digests = list(_sample_digests(folder, name))
        except ValueError as error:
            yield f"{path}: {error}"
            continue
        if len(digests) != record.rows:
            yield f"{path}: {len(digests)} samples, its record says {record.rows}"
        if meta is not None:
            if listed.get(record.shard) != record.rows:
                number = listed.get(record.shard)
                yield f"{folder.path(listing)}: {number} samples in shard {record.shard}, recorded {record.rows}"
            for digest in sorted(set(digests) - {meta["vocabulary"]}):
                yield from _same(f"{path}, {digests.count(digest)} samples", digest, listing, meta["vocabulary"])
    if meta is not None and "labels" in upstream:
        source = upstream["labels"].path("concept_embeddings.json")
        digest = upstream["labels"].read_json("concept_embeddings.json")["digest"]
        yield from _same(folder.path(listing), meta["vocabulary"], source, digest)


def _sample_digests(folder: Folder, name: str) -> Iterator[str]:
    """The vocabulary digest of each sample. Raises ValueError for a sample without image or JSON, and for a bad tar."""
    from regionclip_core.storage.tars import scan_tar

    with folder.open(name) as stream:
        for sample in list(scan_tar(stream)):
            if len(sample.members) != 2 or "json" not in sample.members:
                raise ValueError(f"sample {sample.key} has the members {sorted(sample.members)}, not an image and json")
            offset, size = sample.members["json"]
            stream.seek(offset)
            yield str(json.loads(stream.read(size))["vocabulary"])


_CHECKS: dict[str, Callable[[Folder, Sequence[ShardRecord], set[str], Upstream], Iterator[str]]] = {
    "data": _data,
    "concepts": _concepts,
    "labels": _labels,
    "pairs": _pairs,
}


def _metadata(folder: Folder, name: str, key: bytes) -> str:
    """A value of a Parquet file's own metadata; empty where there is none."""
    import pyarrow.parquet as pq

    with folder.open(name) as stream:
        metadata: dict[bytes, Any] = pq.read_schema(stream).metadata or {}
    return str(metadata.get(key, b"").decode())


def _same(path: str, found: str, other: str, expected: str) -> Iterator[str]:
    if found != expected:
        yield f"{path}: of the vocabulary {found[:12] or '(none)'}, {other} has {expected[:12]}"
