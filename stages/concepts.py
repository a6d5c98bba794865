"""concepts: captions to a concept pool (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from regionclip_core.concepts.counts import count_captions
from regionclip_core.concepts.given_names import NO_NAMES, read_given
from regionclip_core.concepts.parser import CaptionParser, make_parser
from regionclip_core.concepts.pool import build_pool
from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import ShardRecord

from .base import ShardResult, ShardWork, StageContext


def phrases_name(shard: int) -> str:
    """Return the file name of a shard's phrase counts."""
    return f"phrases-{shard:05d}.parquet"


class ConceptsWork(ShardWork):
    """Counts phrases shard by shard in `phrases-00007.parquet`; the merge writes the pool.

    concepts.parquet (tables.CONCEPTS): the pool, most frequent first; with `concepts.file` in the file's order.
    dropped.parquet (tables.DROPPED_CONCEPTS): what was left out, and why.
    concepts.txt: the pool's names, one per line.
    """

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the shards of `concepts.splits`; none where a file of names is the pool and no split is named."""
        return split_shards(ctx.inputs["data"], ctx.config.concepts.splits)

    def setup(self, ctx: StageContext) -> CaptionParser:
        """Load the parser."""
        section = ctx.config.concepts
        return make_parser(section, _categories(ctx) if section.protect_categories else (), read_given(section))

    def process(self, ctx: StageContext, state: CaptionParser, shard: int) -> ShardResult:
        """Parse and count the captions of every good row; a row of the result is one phrase."""
        rows = read_index(ctx.inputs["data"], shard)
        captions = [list(row.captions) for row in rows if row.ok and row.captions]
        table = count_captions(state, captions)
        with ctx.out.write(phrases_name(shard)) as file:
            pq.write_table(table, file, compression="zstd")
        skipped = len(rows) - len(captions)
        return ShardResult(table.num_rows, {"ok": len(captions)} | ({"skipped": skipped} if skipped else {}))

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Sum the shards, leave out what was seen fewer than min_count times or is banned, write the pool."""
        parser, section, given = self.setup(ctx), ctx.config.concepts, read_given(ctx.config.concepts)
        classes = {parser.class_name(name): name for name in _categories(ctx)}

        def tables() -> Any:
            """Yield the shards' tables in shard order, one in memory at a time."""
            for shard in sorted(record.shard for record in records):
                with ctx.out.open_table(phrases_name(shard)) as file:
                    yield pq.read_table(file)

        with ctx.out.write("dropped.parquet") as file:
            named: dict[str, Any] = {"names": list(given.synonyms), "banned": parser.banned}
            pool, dropped = build_pool(tables(), section, file, classes, **named)
        with ctx.out.write("concepts.parquet") as file:
            pq.write_table(pool, file, compression="zstd")
        names = pool.column("concept").to_pylist()
        ctx.out.write_bytes("concepts.txt", "".join(f"{name}\n" for name in names).encode())
        return {
            **parser.description(),
            "concepts": len(names),
            "dropped": dropped,
            "images": sum(record.counts.get("ok", 0) for record in records),
            "min_count": section.min_count,
            "categories": len(classes),
            "categories_in_pool": sum(name is not None for name in pool.column("dataset_class").to_pylist()),
            "most_frequent": names[:20],
            **({"given": len(given.synonyms), "banned": len(given.banned)} if given != NO_NAMES else {}),
        }


def _categories(ctx: StageContext) -> list[str]:
    """Return the names of the data set's categories."""
    return list(Vocabulary.from_json(ctx.inputs["data"].read_json("categories.json")).names)


WORK = ConceptsWork()
