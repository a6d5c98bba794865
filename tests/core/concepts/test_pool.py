"""The merge of shards' counts: the bytes of a naive one in memory, however small the memory."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regionclip_core.concepts.pool import SURFACE_FORMS, build_pool, merge_counts
from regionclip_core.concepts.row_groups import RowGroupWriter
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, PHRASES

Row = dict[str, Any]
CLASSES = {"a1": "A (one)", "z3": "Z 3"}


def random_tables(rng: random.Random, shards: int, rows: int) -> list[pa.Table]:
    """Shards with few names, so that counts tie; heads, words and examples differ from shard to shard."""
    vocabulary = rng.choice([5, 50, 500])
    tables = []
    for shard in range(shards):
        keys = {
            (rng.choice("aéz日𝄞") + str(rng.randrange(vocabulary)), rng.choice([None] * 5 + ["image", "too_long"]))
            for _ in range(rng.randrange(rows))
        }
        counts = [random_row(rng, shard, *key) for key in rng.sample(sorted(keys, key=str), len(keys))]
        tables.append(pa.Table.from_pylist(counts, schema=PHRASES))
    return tables


def random_row(rng: random.Random, shard: int, phrase: str, reason: str | None) -> Row:
    forms = rng.sample([phrase + end for end in ("", "s", "es", "é", "日", *"uvwxyz")], rng.randrange(1, 11))
    captions = rng.randrange(1, 4)
    return {
        "phrase": phrase,
        "head": phrase + rng.choice("gh"),
        "n_words": rng.randrange(1, 4),
        "n_captions": captions,
        "n_images": rng.randrange(1, captions + 1),
        "n_mentions": rng.randrange(1, 9),
        "surface_forms": forms,
        "surface_counts": [rng.randrange(1, 3) for _ in forms],
        "drop_reason": reason,
        "example": rng.choice([None, f"seen in shard {shard}"]),
    }


def naive_merge(tables: Sequence[pa.Table], config: ConceptsConfig) -> tuple[list[Row], list[Row]]:
    """The pool and what is dropped, one phrase after another in memory."""
    total: dict[tuple[str, str], Row] = {}
    for table in tables:
        for row in table.to_pylist():
            forms = Counter(dict(zip(row["surface_forms"], row["surface_counts"], strict=True)))
            found = total.setdefault((row["phrase"], row["drop_reason"] or ""), {**row, "forms": Counter()})
            if found["forms"]:
                for name in ("n_captions", "n_images", "n_mentions"):
                    found[name] += row[name]
            found["forms"] += forms
    unit = {"caption": "n_captions", "image": "n_images"}[config.count_unit]
    kept: list[Row] = []
    dropped: list[Row] = []
    for (phrase, reason), row in sorted(total.items(), key=lambda item: (-item[1][unit], item[0])):
        reason = reason or ("below_min_count" if row[unit] < config.min_count else "")
        if not reason and config.max_concepts and len(kept) == config.max_concepts:
            reason = "beyond_max_concepts"
        shared = {name: row[name] for name in ("n_captions", "n_images", "n_mentions", "example")}
        if reason:
            dropped.append({"concept": phrase, "reason": reason, **shared})
            continue
        forms = sorted(row["forms"], key=lambda form: (-row["forms"][form], form))
        named = {"id": len(kept), "concept": phrase, "head": row["head"], "n_words": row["n_words"]}
        marked = {
            "source": "dataset" if config.protect_categories and phrase in CLASSES else "parsed",
            "dataset_class": CLASSES.get(phrase),
        }
        kept.append({**named, **shared, "surface_forms": forms[:SURFACE_FORMS], **marked})
    return kept, dropped


def parquet(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


@pytest.mark.parametrize(
    ("memory", "shards", "rows"), [(1, 40, 6), (9_000, 50, 30), (60_000, 50, 60), (1 << 25, 9, 99)]
)
def test_the_bytes_of_a_merge_in_memory(memory: int, shards: int, rows: int) -> None:
    """A run a shard and batches of one row (two levels of runs); some runs; a few; none at all."""
    for seed in range(3):
        rng = random.Random(seed)
        tables = random_tables(rng, shards, rows)
        config = ConceptsConfig(
            splits=("train",),
            min_count=rng.choice([1, 2, 4]),
            max_concepts=rng.choice([None, 3, 40]),
            count_unit=rng.choice(["caption", "image"]),
            protect_categories=rng.choice([True, False]),
        )
        kept, left = naive_merge(tables, config)
        file = io.BytesIO()
        with RowGroupWriter(file, DROPPED_CONCEPTS) as dropped:
            pool = build_pool(merge_counts(tables, memory), config, dropped.write, CLASSES, memory)
        assert pool.schema.equals(CONCEPTS)
        assert pool.to_pylist() == kept
        assert parquet(pool) == parquet(pa.Table.from_pylist(kept, schema=CONCEPTS))
        assert dropped.rows == len(left)
        assert file.getvalue() == parquet(pa.Table.from_pylist(left, schema=DROPPED_CONCEPTS))


def test_memory_is_bounded() -> None:
    """Arrow's memory at ten times the shards, with phrases that all have and phrases of each shard's own."""

    def tables(shards: int) -> Iterator[pa.Table]:
        for shard in range(shards):
            names = [f"in all {n}" for n in range(500)] + [f"of {shard}: {n}" for n in range(500)]
            columns = {
                "phrase": names,
                "head": names,
                "n_words": [2] * 1000,
                "n_captions": [1] * 1000,
                "n_images": [1] * 1000,
                "n_mentions": [1] * 1000,
                "surface_forms": [[name] for name in names],
                "surface_counts": [[1]] * 1000,
                "drop_reason": [None] * 1000,
                "example": ["a long example of a caption" * 4] * 1000,
            }
            yield pa.table(columns, schema=PHRASES)

    def peak(shards: int) -> int:
        usual, rows = pa.default_memory_pool(), 0

        def drop(table: pa.Table) -> None:
            nonlocal rows
            rows += table.num_rows

        pool = pa.proxy_memory_pool(usual)
        pa.set_memory_pool(pool)
        config = ConceptsConfig(splits=("train",), min_count=shards)
        kept = len(build_pool(merge_counts(tables(shards), memory=1 << 20), config, drop, memory=1 << 20))
        pa.set_memory_pool(usual)
        assert (kept, rows) == (500, 500 * shards)
        return int(pool.max_memory())

    assert sum(table.nbytes for table in tables(100)) > 19 << 20
    few, many = peak(10), peak(100)
    assert max(few, many) < 4 << 20, (few, many)
