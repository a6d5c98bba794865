"""labels: the teacher matches proposals to concepts, once, offline (paper section 3.3, equation 1)."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import Config
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardStage, StageContext

_NOT_READ_BY = {"roi": {"context", "batch_size"}, "crop": {"image_size", "max_size", "resize"}}
"""Keys of the section by mode."""


class LabelsStage(ShardStage):
    """Writes `labels-00007.parquet`, and once the pool's embeddings, `concept_embeddings.safetensors`."""

    name = "labels"
    version = 2
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """Images, pool, teacher and boxes."""
        return ("data", "concepts", "teacher", "proposals")

    def by_default(self, config: Config) -> bool:
        """Only a student that is trained here reads it."""
        return config.pretrain.weights == "train"

    def settings(self, config: Config) -> dict[str, Any]:
        """What the mode reads, and what shapes the embeddings of names; nothing is drawn by chance."""
        from regionclip_core.storage.given_files import text_settings

        section = config.labels.model_dump(mode="json", exclude=_NOT_READ_BY[config.labels.mode])
        return {"labels": section, "teacher": text_settings(config.teacher)}

    def raw_inputs(self, config: Config) -> list[str]:
        """Files of prompts and of published embeddings count by their content."""
        from regionclip_core.storage.given_files import text_files

        return text_files(config.teacher)

    def shards(self, ctx: StageContext) -> list[int]:
        """The shards of the wanted splits."""
        from regionclip_core.datasets.index import split_shards

        return split_shards(ctx.inputs["data"], ctx.config.labels.splits)

    def prepare(self, ctx: StageContext) -> None:
        """Embed the concept pool once; the workers only read it."""
        from regionclip_core.models.clip import load_clip
        from regionclip_core.models.text_embeddings import embed_pool, save_embeddings

        clip = load_clip(ctx.inputs["teacher"])
        clip.model.to(ctx.device)
        pool, embeddings_CD = embed_pool(clip, ctx.inputs["concepts"], ctx.config.teacher)
        save_embeddings(ctx.out, pool, embeddings_CD)

    def setup(self, ctx: StageContext) -> Any:
        """Teacher and concept embeddings, loaded once per worker."""
        import torch

        from regionclip_core.pretraining.labelling import Labeller

        torch.set_num_threads(ctx.threads)
        return Labeller.load(ctx.config, ctx.inputs["teacher"], ctx.out, ctx.device)

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Label the shard's proposals."""
        import pyarrow.parquet as pq

        table, counts = state.label_shard(ctx.inputs["data"], ctx.inputs["proposals"], shard)
        with ctx.out.write(f"labels-{shard:05d}.parquet") as file:
            pq.write_table(table, file)
        return ShardResult(rows=table.num_rows, counts=counts)

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """How many regions were kept, and for annotated images how many of those are right."""
        from regionclip_core.pretraining.labelling import label_quality

        return label_quality(ctx.inputs["data"], ctx.out, ctx.config.labels.splits)


STAGE = LabelsStage()
