"""labels: the teacher matches proposals to concepts, once, offline (paper section 3.3, equation 1); or a file has the
boxes and their names.
"""

from __future__ import annotations

from typing import Any

import pyarrow.parquet as pq

from regionclip_core.datasets.index import split_shards, splits_of_shards
from regionclip_core.models.clip import load_clip
from regionclip_core.models.text_embeddings import embed_pool, read_pool, save_embeddings
from regionclip_core.pretraining.concept_truth import write_truth
from regionclip_core.pretraining.corrections import CORRECTIONS, write_corrections
from regionclip_core.pretraining.label_quality import label_quality
from regionclip_core.pretraining.label_source import SOURCE, read_source
from regionclip_core.pretraining.labelling import Labeller, check_texts, naming_clip
from regionclip_core.pretraining.regions import concept_ids
from regionclip_core.storage.records import Folder, ShardRecord

from .base import ShardResult, ShardWork, StageContext

SCRATCH = "scan"
"""Folder in the artifact, no part of its content, with the boxes of `labels.source` until the stage is done."""


class LabelsWork(ShardWork):
    """Writes `labels-00007.parquet`, where asked for with the embeddings of crops, and once those of the pool,
    `concept_embeddings.safetensors`; with `labels.source` also `rejected.parquet` (REJECTED) and `source.json`, with
    `labels.corrections` `corrections.json`. Beside the artifact's content: `truth/concepts.parquet` (CONCEPT_TRUTH).
    """

    def shards(self, ctx: StageContext) -> list[int]:
        """Return the shards of `labels.splits`."""
        return split_shards(ctx.inputs["data"], ctx.config.labels.splits)

    def prepare(self, ctx: StageContext) -> None:
        """Embed the concept pool, with the names that `labels.source` adds, and find the corrected regions; the workers
        only read them.

        Raises:
            ValueError: the file of labels has no row that can be used, lines of the corrections are wrong, or the CLIP
                of `labels.weights` embeds texts otherwise than the teacher.
        """
        data, concepts, settings = ctx.inputs["data"], ctx.inputs["concepts"], ctx.config.labels
        ids, added = concept_ids(concepts), list[str]()
        if settings.source is not None:
            pool = len(read_pool(concepts))
            added = read_source(ctx.out, ctx.out.child(SCRATCH), data, settings, ids, pool)
            ids |= {name: number for number, name in enumerate(added, start=pool)}
        if settings.corrections is not None:
            write_corrections(ctx.out, data, _regions(ctx), settings, ids)
        clip = load_clip(ctx.inputs["teacher"])
        if settings.weights != "teacher":
            folder = naming_clip(settings, ctx.inputs["teacher"], ctx.inputs.get("student"))
            check_texts(load_clip(folder), clip, folder.url)
        clip.model.to(ctx.device)
        pool_and_embeddings = embed_pool(clip, concepts, ctx.config.teacher, added)
        save_embeddings(ctx.out, *pool_and_embeddings)

    def setup(self, ctx: StageContext) -> tuple[Labeller, dict[int, str]]:
        """Load the CLIP that names regions and the concept embeddings, and find the split of each shard."""
        teacher, student = ctx.inputs["teacher"], ctx.inputs.get("student")
        labeller = Labeller(ctx.config, teacher, ctx.out, ctx.device, ctx.loader_workers, student)
        return labeller, splits_of_shards(ctx.inputs["data"])

    def process(self, ctx: StageContext, state: tuple[Labeller, dict[int, str]], shard: int) -> ShardResult:
        """Label the shard's regions."""
        labeller, split_of = state
        table, counts = labeller.label_shard(ctx.inputs["data"], _regions(ctx), shard)
        with ctx.out.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(table, file)
        return ShardResult(table.num_rows, counts, split_of[shard])

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Say what named the regions, if not the teacher, how many were kept, for annotated splits what their labels
        are, also by concept, and what became of the files of labels and corrections.
        """
        settings = ctx.config.labels
        inputs = (ctx.inputs["data"], ctx.inputs["concepts"], ctx.out)
        summary, truth = label_quality(*inputs, settings.splits, settings.synonyms)
        if truth is not None:
            write_truth(ctx.out, truth)
        if settings.weights != "teacher":
            summary["named_by"] = settings.weights
        if settings.source is not None:
            summary["source"] = ctx.out.read_json(SOURCE)
            ctx.out.child(SCRATCH).remove_all()
        if settings.corrections is not None:
            found = ctx.out.read_json(CORRECTIONS)
            summary["corrections"] = {"used": len(found["regions"]), "without_region": found["no_region"]}
        return summary


def _regions(ctx: StageContext) -> Folder:
    """Return where `read_regions` finds the boxes."""
    return ctx.inputs["proposals"] if ctx.config.labels.source is None else ctx.out.child(SCRATCH)


WORK = LabelsWork()
