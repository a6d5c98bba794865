"""proposals: boxes that may hold an object, one Parquet row per image."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from regionclip_core.datasets.index import split_shards
from regionclip_core.proposals.proposers import make_proposer, propose_shard
from regionclip_core.proposals.recall import recall_of_splits
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardWork, StageContext


class ProposalsWork(ShardWork):
    """Writes `proposals-00007.parquet`; its summary has the recall on annotated splits, novel beside base."""

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the shards of `proposals.splits`."""
        return split_shards(ctx.inputs["data"], ctx.config.proposals.splits)

    def setup(self, ctx: StageContext) -> Any:
        """Load the proposer, and find the split of each shard."""
        splits = ctx.inputs["data"].read_json("splits.json").items()
        split_of = {shard: name for name, split in splits for shard in split["shards"]}
        return make_proposer(ctx.config, ctx.inputs.get("rpn"), ctx.device), split_of

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Propose for every readable image of the shard."""
        proposer, split_of = state
        counts, table = propose_shard(proposer, ctx.inputs["data"], shard)
        with ctx.out.write(f"proposals-{shard:05d}.parquet") as file:
            pq.write_table(table, file)
        return ShardResult(table.num_rows, counts, split_of[shard])

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Measure recall at IoU 0.5 of the boxes of base and novel categories, per split.

        With given boxes, also say how many are of no category of the vocabulary.
        """
        outside = sum(record.counts.get("outside_the_vocabulary", 0) for record in records)
        recall = recall_of_splits(ctx.inputs["data"], ctx.out, ctx.config.proposals.splits)
        return {"recall": recall, **({"given_boxes_outside_the_vocabulary": outside} if outside else {})}


WORK = ProposalsWork()
