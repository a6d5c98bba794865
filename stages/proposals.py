"""proposals: boxes that may hold an object, one Parquet row per image."""

from __future__ import annotations

from typing import Any

from regionclip_core.config.tree import RPN_FIELDS, Config
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardStage, StageContext

_READ_BY = {
    "rpn": ("max_regions", "pre_nms", "nms", "min_objectness"),
    "grid": ("max_regions", "grid_scales"),
    "random": ("max_regions", "grid_scales"),
    "given": (),
}
"""Keys of the section by method."""


class ProposalsStage(ShardStage):
    """Writes `proposals-00007.parquet`; its summary has the recall on annotated splits, novel beside base."""

    name = "proposals"
    version = 2
    uses_gpu = True

    def needs(self, config: Config) -> tuple[str, ...]:
        """The images, and the network where one proposes."""
        return ("data", "rpn") if config.proposals.method == "rpn" else ("data",)

    def settings(self, config: Config) -> dict[str, Any]:
        """What the method reads; for a network also how it is built and fed, since weights don't show anchors."""
        method = config.proposals.method
        section = config.proposals.model_dump(mode="json", include={"splits", "method", *_READ_BY[method]})
        if method == "rpn":
            return {"proposals": section, "rpn": config.rpn.model_dump(mode="json", include=set(RPN_FIELDS))}
        return {"proposals": section, **({"seed": config.seed} if method == "random" else {})}

    def shards(self, ctx: StageContext) -> list[int]:
        """The shards of the wanted splits."""
        from regionclip_core.datasets.index import split_shards

        return split_shards(ctx.inputs["data"], ctx.config.proposals.splits)

    def setup(self, ctx: StageContext) -> Any:
        """The proposer, loaded once per worker."""
        from regionclip_core.proposals.proposers import make_proposer

        return make_proposer(ctx.config, ctx.inputs.get("rpn"), ctx.device)

    def process(self, ctx: StageContext, state: Any, shard: int) -> ShardResult:
        """Propose for every readable image of the shard."""
        from regionclip_core.proposals.proposers import propose_shard

        counts, table = propose_shard(state, ctx.inputs["data"], shard)
        import pyarrow.parquet as pq

        with ctx.out.write(f"proposals-{shard:05d}.parquet") as file:
            pq.write_table(table, file)
        return ShardResult(rows=table.num_rows, counts=counts)

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Recall at IoU 0.5 of the boxes of base and novel categories, per split."""
        from regionclip_core.proposals.recall import recall_of_splits

        return {"recall": recall_of_splits(ctx.inputs["data"], ctx.out, ctx.config.proposals.splits)}


STAGE = ProposalsStage()
