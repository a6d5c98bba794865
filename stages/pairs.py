"""pairs: images and their pseudo labels as WebDataset tars, ready to stream into training."""

from __future__ import annotations

from typing import Any

from regionclip_core.datasets.index import split_shards
from regionclip_core.pretraining.pairs import labels_digest, stored_probabilities, write_meta, write_pairs
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardWork, StageContext


class PairsWork(ShardWork):
    """Writes `pairs-00007.tar` with its index `pairs-00007.idx`, and at the end `pairs.json`: samples per shard and the
    concept pool's digest."""

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the labelled shards."""
        return split_shards(ctx.inputs["data"], ctx.config.labels.splits)

    def process(self, ctx: StageContext, state: None, shard: int) -> ShardResult:
        """Join the images and labels of one shard."""
        counts = write_pairs(ctx.out, ctx.inputs["data"], ctx.inputs["labels"], shard, ctx.config.pairs)
        return ShardResult(counts["ok"], counts)

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Write how many samples each shard has, for the loader.

        Raises:
            ValueError: no image has a caption and enough kept regions.
        """
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


WORK = PairsWork()
