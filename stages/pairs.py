"""pairs: images and their pseudo labels as WebDataset tars, ready to stream into training."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from regionclip_core.config.rounds import is_student
from regionclip_core.datasets.index import split_shards, splits_of_shards
from regionclip_core.pretraining.pairs import (
    crop_dimensions,
    labels_digest,
    stored_probabilities,
    write_meta,
    write_pairs,
)
from regionclip_core.storage.records import ShardRecord
from regionclip_core.storage.tables import UNREADABLE

from .base import ShardResult, ShardWork, StageContext


class PairsWork(ShardWork):
    """Writes `pairs-00007.tar` with its index `pairs-00007.idx`, where images can't be read
    `unreadable-00007.parquet` with the reasons, and at the end `pairs.json`: samples per shard and the concept pool's
    digest.
    """

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the labelled shards."""
        return split_shards(ctx.inputs["data"], ctx.config.labels.splits)

    def setup(self, ctx: StageContext) -> dict[int, str]:
        """Find the split of each shard."""
        return splits_of_shards(ctx.inputs["data"])

    def process(self, ctx: StageContext, state: dict[int, str], shard: int) -> ShardResult:
        """Join the images and labels of one shard."""
        counts, unreadable = write_pairs(ctx.out, ctx.inputs["data"], ctx.inputs["labels"], shard, ctx.config.pairs)
        name = f"unreadable-{shard:05d}.parquet"
        ctx.out.remove(name)  # from an earlier try, whose images are repaired now
        if unreadable:
            with ctx.out.write(name) as file:
                pq.write_table(pa.Table.from_pylist(unreadable, schema=UNREADABLE), file)
        return ShardResult(counts["ok"], counts, state[shard])

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Write how many samples each shard has, for the loader; the summary says which splits have none.

        Raises:
            ValueError: no image has a caption and enough kept regions.
        """
        samples = sum(record.rows for record in records)
        outcomes: dict[str, Counter[str]] = {}
        for record in records:
            outcomes.setdefault(record.split, Counter()).update(record.counts)
        shown = {split: ", ".join(f"{n} {k}" for k, n in found.items() if n) for split, found in outcomes.items()}
        empty = [f"split {split!r} gives no sample: {shown[split]}" for split in outcomes if not outcomes[split]["ok"]]
        if not samples:
            raise ValueError(
                f"pairs: {'; '.join(empty)}. A sample needs a caption, and as many kept regions as pairs.min_regions: "
                "give labels.splits with captions, or lower labels.threshold or pairs.min_regions (now "
                f"{ctx.config.labels.threshold} and {ctx.config.pairs.min_regions})"
                + "; in this round, labels.later_rounds.threshold"
                * is_student(ctx.config.labels.weights)
            )
        shards = sorted(record.shard for record in records)
        top_k = stored_probabilities(ctx.inputs["labels"], shards)
        digest = labels_digest(ctx.inputs["labels"], shards[0])
        crops = crop_dimensions(ctx.inputs["labels"], shards[0])
        write_meta(ctx.out, [(record.shard, record.rows) for record in records], top_k, digest, crops)
        return {"samples": samples, "vocabulary": digest, **({"notes": empty} if empty else {})}


WORK = PairsWork()
