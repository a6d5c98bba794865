"""concepts: captions to a concept pool (paper section 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardStage, StageContext

if TYPE_CHECKING:
    from regionclip_core.concepts.parser import CaptionParser


def phrases_name(shard: int) -> str:
    """File name of a shard's phrase counts."""
    return f"phrases-{shard:05d}.parquet"


class ConceptsStage(ShardStage):
    """Counts phrases shard by shard in `phrases-00007.parquet`; the merge writes the pool.

    concepts.parquet (schemas.CONCEPTS): the pool, most frequent first.
    dropped.parquet (schemas.DROPPED_CONCEPTS): what was left out, and why.
    concepts.txt: the pool's names, one a line.
    """

    name = "concepts"
    version = 1

    def needs(self, config: Config) -> tuple[str, ...]:
        """Captions, and the categories' names, are in the data artifact."""
        return ("data",)

    def by_default(self, config: Config) -> bool:
        """Only a student that is trained here reads it."""
        return config.pretrain.weights == "train"

    def settings(self, config: Config) -> dict[str, Any]:
        """The section, and which parser it stands for here: `auto` must not mix two parsers in one pool."""
        from regionclip_core.concepts.identity import parser_identity

        return {"concepts": config.concepts.model_dump(mode="json"), "parser": parser_identity(config.concepts)}

    def shards(self, ctx: StageContext) -> list[int]:
        """The shards of the wanted splits."""
        from regionclip_core.datasets.index import split_shards

        return split_shards(ctx.inputs["data"], ctx.config.concepts.splits)

    def setup(self, ctx: StageContext) -> Any:
        """The parser, loaded once a worker."""
        return _parser(ctx)

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Parse and count the captions of every good row; a row of the result is one phrase."""
        import pyarrow.parquet as pq

        from regionclip_core.concepts.counts import count_captions
        from regionclip_core.datasets.index import read_index

        rows = read_index(ctx.inputs["data"], shard)
        captions = [list(row.captions) for row in rows if row.ok and row.captions]
        table = count_captions(state, captions).to_table(state.description())
        with ctx.out.write(phrases_name(shard)) as file:
            pq.write_table(table, file, compression="zstd")
        skipped = len(rows) - len(captions)
        return ShardResult(table.num_rows, {"ok": len(captions)} | ({"skipped": skipped} if skipped else {}))

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Sum the shards, cut at min_count, write the pool."""
        import pyarrow.parquet as pq

        from regionclip_core.concepts.pool import build_pool

        parser, section = _parser(ctx), ctx.config.concepts
        classes = {parser.class_name(name): name for name in _categories(ctx)}
        with ctx.out.write("dropped.parquet") as file:
            pool, dropped = build_pool(self._tables(ctx), section, file, classes)
        with ctx.out.write("concepts.parquet") as file:
            pq.write_table(pool, file, compression="zstd")
        names = pool.column("concept").to_pylist()
        ctx.out.write_bytes("concepts.txt", "".join(f"{name}\n" for name in names).encode())
        seen = sum(value is not None for value in pool.column("dataset_class").to_pylist())
        images = sum(record.counts.get("ok", 0) for record in records)
        return {
            **parser.description(),
            "concepts": len(names),
            "dropped": dropped,
            "images": images,
            "min_count": section.min_count,
            "categories": len(classes),
            "categories_in_pool": seen,
            "most_frequent": names[:20],
        }

    def _tables(self, ctx: StageContext) -> Any:
        """The shards' tables in shard order, one in memory at a time."""
        import pyarrow.parquet as pq

        for shard in self.shards(ctx):
            with ctx.out.open_table(phrases_name(shard)) as file:
                yield pq.read_table(file)


def _categories(ctx: StageContext) -> list[str]:
    """Names of the data set's categories."""
    from regionclip_core.datasets.vocabulary import Vocabulary

    return list(Vocabulary.from_json(ctx.inputs["data"].read_json("categories.json")).names)


def _parser(ctx: StageContext) -> CaptionParser:
    from regionclip_core.concepts.parser import make_parser

    section = ctx.config.concepts
    return make_parser(section, _categories(ctx) if section.protect_categories else ())


STAGE = ConceptsStage()
