"""pairs: images and their pseudo labels as WebDataset tars, ready to stream into training."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardStage, StageContext


class PairsStage(ShardStage):
    """Writes `pairs-00007.tar`, and at the end `pairs.json`: samples by shard and the concept pool's digest."""

    name = "pairs"
    version = 2

    def needs(self, config: Config) -> tuple[str, ...]:
        """Images and captions from data, regions from labels."""
        return ("data", "labels")

    def by_default(self, config: Config) -> bool:
        """Only a student that is trained here reads it."""
        return config.pretrain.weights == "train"

    def settings(self, config: Config) -> dict[str, Any]:
        """The section, and the splits taken; nothing here is random."""
        return {"pairs": config.pairs.model_dump(mode="json"), "labels": {"splits": list(config.labels.splits)}}

    def shards(self, ctx: StageContext) -> list[int]:
        """The labelled shards."""
        from regionclip_core.datasets.index import split_shards

        return split_shards(ctx.inputs["data"], ctx.config.labels.splits)

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Join one shard."""
        from regionclip_core.pretraining.pairs import pairs_name, write_pairs

        with ctx.out.write(pairs_name(shard)) as file:
            counts = write_pairs(file, ctx.inputs["data"], ctx.inputs["labels"], shard, ctx.config.pairs)
        return ShardResult(counts["ok"], counts)

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Samples by shard, for the loader.

        Raises:
            ValueError: no image has a caption and enough kept regions.
        """
        from regionclip_core.pretraining.pairs import labels_digest, stored_probabilities, write_meta

        samples = sum(record.rows for record in records)
        if not samples:
            raise ValueError(
                "pairs: no captioned image kept enough regions; lower labels.threshold or pairs.min_regions "
                f"(now {ctx.config.labels.threshold} and {ctx.config.pairs.min_regions})"
            )
        shards = sorted(record.shard for record in records)
        top_k = stored_probabilities(ctx.inputs["labels"], shards)
        digest = labels_digest(ctx.inputs["labels"], shards[0])
        write_meta(ctx.out, [(record.shard, record.rows) for record in records], top_k, digest)
        return {"samples": samples, "vocabulary": digest}


STAGE = PairsStage()
