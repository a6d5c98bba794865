"""labels: the teacher matches proposals to concepts, once, offline (paper section 3.3, equation 1)."""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from regionclip_core.datasets.index import split_shards, splits_of_shards
from regionclip_core.models.clip import load_clip
from regionclip_core.models.text_embeddings import embed_pool, save_embeddings
from regionclip_core.pretraining.concept_truth import write_truth
from regionclip_core.pretraining.label_quality import label_quality
from regionclip_core.pretraining.labelling import Labeller
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardWork, StageContext


class LabelsWork(ShardWork):
    """Writes `labels-00007.parquet`, where asked for with the embeddings of crops, and once those of the pool,
    `concept_embeddings.safetensors`. Beside the artifact's content: `truth/concepts.parquet` (CONCEPT_TRUTH).
    """

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the shards of `labels.splits`."""
        return split_shards(ctx.inputs["data"], ctx.config.labels.splits)

    def prepare(self, ctx: StageContext) -> None:
        """Embed the concept pool once; the workers only read it."""
        clip = load_clip(ctx.inputs["teacher"])
        clip.model.to(ctx.device)
        pool, embeddings_CD = embed_pool(clip, ctx.inputs["concepts"], ctx.config.teacher)
        save_embeddings(ctx.out, pool, embeddings_CD)

    def setup(self, ctx: StageContext) -> tuple[Labeller, dict[int, str]]:
        """Load teacher and concept embeddings, and find the split of each shard."""
        labeller = Labeller(ctx.config, ctx.inputs["teacher"], ctx.out, ctx.device, ctx.loader_workers)
        return labeller, splits_of_shards(ctx.inputs["data"])

    def process(self, ctx: StageContext, state: tuple[Labeller, dict[int, str]], shard: int) -> ShardResult:
        """Label the shard's proposals."""
        labeller, split_of = state
        table, counts = labeller.label_shard(ctx.inputs["data"], ctx.inputs["proposals"], shard)
        with ctx.out.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(table, file)
        return ShardResult(table.num_rows, counts, split_of[shard])

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Say how many regions were kept, and for annotated splits what their labels are, also by concept."""
        settings = ctx.config.labels
        inputs = (ctx.inputs["data"], ctx.inputs["concepts"], ctx.out)
        summary, truth = label_quality(*inputs, settings.splits, settings.synonyms)
        if truth is not None:
            write_truth(ctx.out, truth)
        return summary


WORK = LabelsWork()
