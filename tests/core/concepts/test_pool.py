"""The pool of all shards' counts: what is in it and why, and the bytes of a naive merge in memory."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_captions import IMAGES, config

from regionclip_core.concepts import pool as pool_module
from regionclip_core.concepts.counts import PARSER_KEY, count_captions
from regionclip_core.concepts.parser import make_parser
from regionclip_core.concepts.pool import SURFACE_FORMS, build_pool
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, PHRASES

Row = dict[str, Any]
CLASSES = {"a1": "A (one)", "z3": "Z 3"}


def pool_and_dropped(
    tables: Sequence[pa.Table], settings: ConceptsConfig, names: dict[str, str] | None = None
) -> tuple[pa.Table, pa.Table]:
    file = io.BytesIO()
    pool, rows = build_pool(tables, settings, file, names)
    dropped = pq.read_table(io.BytesIO(file.getvalue()))
    assert dropped.num_rows == rows
    return pool, dropped


def pool_of(**settings: object) -> tuple[pa.Table, pa.Table]:
    cfg = config(**settings)
    return pool_and_dropped([count_captions(make_parser(cfg), IMAGES)], cfg)


def test_the_pool_is_ordered_by_count_then_name() -> None:
    pool, dropped = pool_of()
    assert pool.schema.equals(CONCEPTS) and dropped.schema.equals(DROPPED_CONCEPTS)
    rows = pool.to_pylist()
    assert [row["id"] for row in rows] == list(range(len(rows)))
    assert rows == sorted(rows, key=lambda row: (-row["n_captions"], row["concept"]))
    assert [row["concept"] for row in rows] == ["dog", "glass", "cat", "wine glass", "mat", "person", "table", "wine"]
    assert {row["concept"]: row["reason"] for row in dropped.to_pylist()} == {"picture": "image", "front": "relational"}


def test_every_phrase_is_in_the_pool_or_has_a_reason() -> None:
    cfg = config(min_count=2, max_concepts=2)
    counts = count_captions(make_parser(cfg), IMAGES)
    pool, dropped = pool_and_dropped([counts], cfg)
    assert pool.num_rows + dropped.num_rows == counts.num_rows
    assert pool.column("concept").to_pylist() == ["dog", "glass"]
    reasons = {row["concept"]: row["reason"] for row in dropped.to_pylist()}
    assert reasons["cat"] == "beyond_max_concepts"
    assert reasons["table"] == "below_min_count"


def test_count_unit_image() -> None:
    by_caption, _ = pool_of(min_count=2)
    by_image, _ = pool_of(min_count=2, count_unit="image")
    assert by_caption.column("concept").to_pylist() == ["dog", "glass", "cat", "wine glass"]
    assert by_image.column("concept").to_pylist() == ["cat", "dog", "glass", "wine glass"]
    with pytest.raises(ValueError, match="no concept was seen in 9 images"):
        pool_of(min_count=9, count_unit="image")


def test_an_empty_pool_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"'dog', was seen in 4\. Lower concepts\.min_count"):
        pool_of(min_count=100)
    with pytest.raises(ValueError, match="English captions"):
        pool_and_dropped([PHRASES.empty_table()], config())
    with pytest.raises(ValueError, match="English captions"):
        pool_and_dropped([], config())


def test_class_names_mark_concepts_but_add_none() -> None:
    cfg = config()
    parser = make_parser(cfg)
    counts = count_captions(parser, IMAGES)
    names = {parser.class_name(name): name for name in ("dogs", "Wine Glass", "zebra")}
    pool, _ = pool_and_dropped([counts], cfg, names)
    plain, _ = pool_and_dropped([counts], cfg)
    assert pool.column("concept").equals(plain.column("concept"))
    marked = {row["concept"]: row["dataset_class"] for row in pool.to_pylist() if row["dataset_class"]}
    assert marked == {"dog": "dogs", "wine glass": "Wine Glass"}
    assert set(pool.column("source").to_pylist()) == {"parsed"}
    protected, _ = pool_and_dropped([counts], config(protect_categories=True), names)
    assert {r["concept"] for r in protected.to_pylist() if r["source"] == "dataset"} == {"dog", "wine glass"}


# ---------------------------------------------------------------- the merge of shards


def test_shards_sum_to_the_whole() -> None:
    parser = make_parser(config())
    whole = count_captions(parser, IMAGES)
    parts = [count_captions(parser, [group]) for group in IMAGES]
    assert pool_and_dropped(parts, config()) == pool_and_dropped([whole], config())


def test_shards_of_two_parsers_are_refused() -> None:
    counts = count_captions(make_parser(config()), IMAGES)
    tables = [counts.replace_schema_metadata({PARSER_KEY: name}) for name in ("rules", "spacy:en_core_web_sm")]
    with pytest.raises(ValueError, match=r"rules.*spacy:en_core_web_sm"):
        pool_and_dropped(tables, config())
    assert pool_and_dropped([tables[0], tables[0]], config())[0].num_rows == 8


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


@pytest.mark.parametrize(("shards", "rows"), [(1, 40), (40, 6), (50, 60), (9, 99)])
def test_the_bytes_of_a_merge_in_memory(shards: int, rows: int) -> None:
    for seed in range(3):
        rng = random.Random(seed)
        tables = random_tables(rng, shards, rows)
        settings = config(
            min_count=rng.choice([1, 2, 4]),
            max_concepts=rng.choice([None, 3, 40]),
            count_unit=rng.choice(["caption", "image"]),
            protect_categories=rng.choice([True, False]),
        )
        kept, left = naive_merge(tables, settings)
        file = io.BytesIO()
        pool, dropped = build_pool(tables, settings, file, CLASSES)
        assert pool.schema.equals(CONCEPTS)
        assert pool.to_pylist() == kept
        assert parquet(pool) == parquet(pa.Table.from_pylist(kept, schema=CONCEPTS))
        assert dropped == len(left)
        assert file.getvalue() == parquet(pa.Table.from_pylist(left, schema=DROPPED_CONCEPTS))


def many_tables(shards: int, rows: int) -> list[pa.Table]:
    """Shards of which each has half of its phrases alone."""
    tables = []
    for shard in range(shards):
        names = [f"in all {n}" for n in range(rows // 2)] + [f"of {shard}: {n}" for n in range(rows - rows // 2)]
        columns = {
            "phrase": names,
            "head": names,
            "surface_forms": [[name] for name in names],
            "surface_counts": [[1]] * rows,
            "drop_reason": [None] * rows,
            "example": [f"a long example of a caption with {name}" for name in names],
        } | dict.fromkeys(("n_words", "n_captions", "n_images", "n_mentions"), [1] * rows)
        tables.append(pa.table({name: columns[name] for name in PHRASES.names}, schema=PHRASES))
    return tables


@pytest.mark.parametrize("left", [3 * 2048, 3 * 2048 + 700])
def test_whole_row_groups_have_the_bytes_of_a_file_written_at_once(left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "ROW_GROUP", 2048)
    file, at_once = io.BytesIO(), io.BytesIO()
    _, dropped = build_pool(many_tables(1, left + 1), config(max_concepts=1), file)
    assert dropped == left
    table = pq.read_table(io.BytesIO(file.getvalue()))
    pq.write_table(table, at_once, compression="zstd", row_group_size=2048)
    assert file.getvalue() == at_once.getvalue()


def test_more_rows_than_memory_go_to_the_scratch_folder_and_leave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tables = many_tables(24, 10_000)
    assert sum(table.nbytes for table in tables) > 30 << 20
    on_disk = []

    def shards() -> Iterator[pa.Table]:
        yield from tables
        on_disk.append(sum(path.stat().st_size for path in tmp_path.rglob("*")))

    file, roomy = io.BytesIO(), io.BytesIO()
    pool, dropped = build_pool(shards(), config(min_count=24), file, memory="30MB")
    assert (len(pool), dropped) == (5000, 24 * 5000)
    assert on_disk[0] > 1 << 20
    assert list(tmp_path.iterdir()) == []
    assert build_pool(tables, config(min_count=24), roomy) == (pool, dropped)
    assert file.getvalue() == roomy.getvalue()
