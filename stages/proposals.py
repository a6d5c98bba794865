"""proposals: boxes that may hold an object, one Parquet row per image."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow.parquet as pq

from regionclip_core.datasets.index import split_shards, splits_of_shards
from regionclip_core.proposals.proposers import make_proposer, propose_shard
from regionclip_core.proposals.recall import recall_of_splits
from regionclip_core.storage.records import ShardRecord

from .base import ShardResult, ShardWork, StageContext


class ProposalsWork(ShardWork):
    """Writes `proposals-00007.parquet`; its summary has the recall on annotated splits, novel beside base."""

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the shards of `proposals.splits`."""
        return split_shards(ctx.inputs["data"], ctx.config.proposals.splits)

    def setup(self, ctx: StageContext) -> Any:
        """Load the proposer, and find the split of each shard."""
        proposer = make_proposer(ctx.config, ctx.inputs.get("rpn"), ctx.device)
        return proposer, splits_of_shards(ctx.inputs["data"])

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Propose for every readable image of the shard."""
        proposer, split_of = state
        counts, table = propose_shard(proposer, ctx.inputs["data"], shard, ctx.loader_workers)
        with ctx.out.write(f"proposals-{shard:05d}.parquet") as file:
            pq.write_table(table, file)
        return ShardResult(table.num_rows, counts, split_of[shard])

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Measure recall at IoU 0.5 of the boxes of base and novel categories, per split.

        With given boxes, also say how many are of no category of the vocabulary.

        Raises:
            ValueError: no image of any split has a proposal.
        """
        found = Counter[str]()
        for record in records:
            found[record.split] += record.counts.get("proposals", 0)
        none = [f"no image of split {split!r} has a proposal" for split, proposals in found.items() if not proposals]
        if len(none) == len(found):
            todo = "give splits with annotated boxes, another method, or for rpn a lower proposals.min_objectness"
            raise ValueError(f"proposals.method: {ctx.config.proposals.method}: {'; '.join(none)}; {todo}")
        outside = sum(record.counts.get("outside_the_vocabulary", 0) for record in records)
        recall = recall_of_splits(ctx.inputs["data"], ctx.out, ctx.config.proposals.splits)
        summary = {"recall": recall, "given_boxes_outside_the_vocabulary": outside, "notes": none}
        return {key: value for key, value in summary.items() if value or key == "recall"}


WORK = ProposalsWork()
