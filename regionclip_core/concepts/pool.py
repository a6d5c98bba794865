"""The counts of all shards to the concept pool (paper section 3.2).

DuckDB does the sums, joins and sorts. It keeps at most `memory` of rows and moves the rest to a scratch folder, so
that neither the number of shards nor that of phrases fills the machine; only the pool itself is held whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.concepts.counts import PARSER_KEY
from regionclip_core.config.tree import ConceptsConfig
from regionclip_core.storage.tables import CONCEPTS, DROPPED_CONCEPTS, PHRASES

MEMORY = "512MB"
"""Memory of DuckDB's own; a merge of 300 shards of 10,000 captions peaks at 0.95 GB with it."""
SURFACE_FORMS = 8
"""Surface forms kept per concept of the pool, most frequent first."""
ROW_GROUP = 1 << 20
"""Rows per row group of dropped.parquet, as in `pyarrow.parquet.write_table`. Multiple of DuckDB's 2,048 rows."""

# Joins and sorts have no use for null: '' is the drop_reason of a phrase that may become a concept.
_LOADED = "* REPLACE (coalesce(drop_reason, '') AS drop_reason), {shard} AS shard"
# One row per phrase and reason. Its head, its number of words and its example are those of its first shard.
_PHRASES = """
    CREATE TABLE phrases AS
    WITH sums AS (
        SELECT phrase, drop_reason, min(shard) AS shard, sum(n_captions)::BIGINT AS n_captions,
               sum(n_images)::BIGINT AS n_images, sum(n_mentions)::BIGINT AS n_mentions
        FROM counts GROUP BY phrase, drop_reason
    )
    SELECT sums.*, head, n_words, example, place, coalesce(is_banned, false) AS is_banned
    FROM sums JOIN counts USING (phrase, drop_reason, shard) LEFT JOIN given USING (phrase)
"""
# Given names have a place. Of the others as many are kept as `max_concepts` says; with a file of names none.
_KEPT = """
    CREATE TABLE kept AS
    WITH open AS (
        SELECT *, row_number() OVER (PARTITION BY place IS NULL ORDER BY {unit} DESC, phrase) AS rank
        FROM phrases WHERE drop_reason = '' AND NOT is_banned AND (place IS NOT NULL OR {unit} >= {min_count})
    )
    SELECT (row_number() OVER (ORDER BY {order}) - 1)::INTEGER AS id, * EXCLUDE rank
    FROM open WHERE place IS NOT NULL OR rank <= {max_concepts} ORDER BY id
"""
_POOL = f"""
    WITH forms AS (
        SELECT id, unnest(surface_forms) AS form, unnest(surface_counts) AS seen
        FROM counts JOIN kept USING (phrase, drop_reason)
    ), totals AS (
        SELECT id, form, sum(seen) AS seen FROM forms GROUP BY id, form
    ), lists AS (
        SELECT id, list(form ORDER BY seen DESC, form)[:{SURFACE_FORMS}] AS surface_forms FROM totals GROUP BY id
    )
    SELECT id, phrase AS concept, head, n_words, n_captions, n_images, n_mentions,
           coalesce(surface_forms, []) AS surface_forms, example, place IS NOT NULL AS is_given
    FROM kept LEFT JOIN lists USING (id) ORDER BY id
"""
_DROPPED = """
    SELECT phrase AS concept,
           CASE WHEN drop_reason <> '' THEN drop_reason
                WHEN is_banned THEN 'banned' WHEN {fixed} THEN 'not_in_file'
                WHEN {unit} < {min_count} THEN 'below_min_count' ELSE 'beyond_max_concepts' END AS reason,
           n_captions, n_images, n_mentions, example
    FROM phrases ANTI JOIN kept USING (phrase, drop_reason) ORDER BY {unit} DESC, phrase, drop_reason
"""


def build_pool(
    tables: Iterable[pa.Table],
    config: ConceptsConfig,
    dropped: BinaryIO,
    class_names: Mapping[str, str] | None = None,
    memory: str = MEMORY,
    names: Sequence[str] = (),
    banned: Collection[str] = (),
) -> tuple[pa.Table, int]:
    """Return the concept pool, and write the phrases that it leaves out to `dropped`, a Parquet file.

    Args:
        tables: counts of the shards (tables.PHRASES), in shard order; one at a time is held.
        config: count_unit, min_count, max_concepts, protect_categories and whether there is a `file` are used.
        dropped: gets tables.DROPPED_CONCEPTS, most frequent first; reasons: the phrase's own, `banned`, `not_in_file`,
            `below_min_count`, `beyond_max_concepts`.
        class_names: class names of the data set by their spelling in the pool (`CaptionParser.class_name`); they fill
            `dataset_class`, and with protect_categories also `source`. They add no concept.
        memory: limit of DuckDB's memory.
        names: that are kept whatever their counts; with a `file` nothing else is.
        banned: that are never kept, also if they are among `names`.

    Returns:
        tables.CONCEPTS, most frequent first (by count_unit, ties by name), with a `file` in the order of `names`; about
        200 bytes per concept; and the number of rows in `dropped`.

    Raises:
        ValueError: no concept is left, or the shards were parsed by different parsers.
    """
    unit = "n_captions" if config.count_unit == "caption" else "n_images"
    fixed = config.file is not None
    limits: dict[str, Any] = {"unit": unit, "min_count": config.min_count, "fixed": fixed}
    limits["order"] = "place" if fixed else f"{unit} DESC, phrase"
    limits["max_concepts"] = 0 if fixed else config.max_concepts or 1 << 62
    with (
        tempfile.TemporaryDirectory(prefix="regionclip-concepts-") as scratch,
        # One thread: several would share the limit, and most of the time goes into handing the tables over.
        duckdb.connect(f"{scratch}/counts.db", config={"memory_limit": memory, "threads": 1}) as db,
    ):
        db.execute("SET enable_progress_bar = false")
        _load(db, tables)
        _load_names(db, names, banned)
        db.execute(_PHRASES)
        db.execute(_KEPT.format(**limits))
        pool = db.sql(_POOL).to_arrow_table()
        if not pool.num_rows:
            if fixed:
                raise ValueError(f"concepts.ban has every name of concepts.file ({config.file}): nothing is left")
            most = f"""
                SELECT phrase, {unit} FROM phrases WHERE drop_reason = '' AND NOT is_banned
                ORDER BY {unit} DESC, phrase LIMIT 1
            """
            if (best := db.execute(most).fetchone()) is None:
                raise ValueError(
                    "the captions gave no concept at all: check that the splits in concepts.splits have English "
                    "captions (their text is in the column `captions` of the data artifact's index files)"
                )
            raise ValueError(
                f"no concept was seen in {config.min_count} {config.count_unit}s or more: the most frequent, "
                f"{best[0]!r}, was seen in {best[1]}. Lower concepts.min_count, or add captions"
            )
        rows = 0
        with pq.ParquetWriter(dropped, DROPPED_CONCEPTS, compression="zstd") as writer:
            # The bytes of a row group depend on how it is handed over: whole, as one batch.
            for batch in db.sql(_DROPPED.format(**limits)).to_arrow_reader(ROW_GROUP):
                writer.write_table(pa.Table.from_batches([batch]).cast(DROPPED_CONCEPTS), row_group_size=ROW_GROUP)
                rows += batch.num_rows
            if not rows:
                writer.write_table(DROPPED_CONCEPTS.empty_table())
    classes = [(class_names or {}).get(name) for name in pool["concept"].to_pylist()]
    protected = [config.protect_categories and name is not None for name in classes]
    columns = {name: pool[name] for name in pool.column_names}
    given = pool["is_given"].to_pylist()
    columns["source"] = np.where(protected, "dataset", np.where(given, "given", "parsed"))
    columns["dataset_class"] = classes
    return pa.table({name: columns[name] for name in CONCEPTS.names}, schema=CONCEPTS).combine_chunks(), rows


def _load(db: duckdb.DuckDBPyConnection, tables: Iterable[pa.Table]) -> None:
    """Fill the table `counts` with the rows of all shards and the number of each row's shard.

    Raises:
        ValueError: two shards were parsed by different parsers.
    """
    db.from_arrow(PHRASES.empty_table()).project(_LOADED.format(shard=0)).create("counts")
    db.begin()  # one transaction: else every shard waits for the disk
    parsers: set[str] = set()
    for shard, table in enumerate(tables):
        parsers.add((table.schema.metadata or {}).get(PARSER_KEY, b"").decode())
        if len(parsers) > 1:
            raise ValueError(
                f"the shards were parsed by different parsers: {' and '.join(sorted(parsers))}; install the same on "
                "every machine, or set concepts.parser to `rules`, and run the stage again"
            )
        db.from_arrow(table).project(_LOADED.format(shard=shard)).insert_into("counts")
    db.commit()


def _load_names(db: duckdb.DuckDBPyConnection, names: Sequence[str], banned: Collection[str]) -> None:
    """Fill the table `given`; and add to `counts`, behind all shards, each of `names` with a count of 0."""
    kept = [name for name in names if name not in banned]
    columns = {
        "phrase": [*kept, *banned],
        "place": [*range(len(kept)), *[None] * len(banned)],
        "is_banned": [False] * len(kept) + [True] * len(banned),
    }
    kinds = {"phrase": pa.string(), "place": pa.int64(), "is_banned": pa.bool_()}
    db.from_arrow(pa.table(columns, schema=pa.schema(list(kinds.items())))).create("given")
    rows = [
        {"phrase": name, "head": name.split()[-1], "n_words": len(name.split())}
        | dict.fromkeys(("n_captions", "n_images", "n_mentions"), 0)
        | {"surface_forms": [], "surface_counts": []}
        for name in names
    ]
    db.from_arrow(pa.Table.from_pylist(rows, schema=PHRASES)).project(_LOADED.format(shard=1 << 30)).insert_into(
        "counts"
    )
