"""data: every split as shards of index rows; the embedded world's images are drawn here too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regionclip_core.config.tree import CocoSplit, Config, FolderSplit, LvisSplit, TarsSplit, WorldSplit
from regionclip_core.storage.records import ShardRecord
from stages.base import ShardResult, ShardStage, StageContext

if TYPE_CHECKING:
    from regionclip_core.datasets.index import IndexRow
    from regionclip_core.datasets.source import ShardPlan, Source
    from regionclip_core.datasets.vocabulary import Vocabulary


SCRATCH = "scan"
"""Folder in the artifact, no part of its content, for what the annotation and caption files say about each image:
`shards`, which counts the images, fills it, the workers read it, and the merge removes it."""


@dataclass
class State:
    """What a worker keeps."""

    vocabulary: Vocabulary
    sources: dict[str, Source]
    plans: dict[int, ShardPlan]


class DataStage(ShardStage):
    """Writes `index-00007.parquet`, for the embedded world `images-00007.tar`, and at the end `splits.json`
    ({split: {shards, images}}) and `categories.json` (the Vocabulary that box labels point into).

    A bad sample costs its row, never the shard: it is counted as bad_image, bad_caption, bad_duplicate_key,
    bad_unsafe_member or bad_tar. lost_box, lost_caption and lost_image_labels count good images that lost a part,
    lost_annotations the entries of annotation files that are of no image.
    """

    name = "data"
    version = 3

    def settings(self, config: Config) -> dict[str, Any]:
        """The section, what its category list holds, and the names and sizes of tars (never their content)."""
        from regionclip_core.datasets.categories import load_categories

        vocabulary = load_categories(config.data.categories)
        settings: dict[str, Any] = {
            # Where the categories were read from makes no difference.
            "data": {**config.data.model_dump(mode="json"), "categories": vocabulary.digest},
            # Shard numbers follow it, and canonical JSON sorts keys.
            "order": list(config.data.splits),
        }
        if vocabulary.groups:
            settings["category_groups"] = _digest([[name, list(members)] for name, members in vocabulary.groups])
        if any(isinstance(split, WorldSplit) for split in config.data.splits.values()):
            from regionclip_core.datasets.world.sample import WORLD_VERSION

            settings |= {"seed": config.seed, "world_version": WORLD_VERSION}
        tars = {name: split for name, split in config.data.splits.items() if isinstance(split, TarsSplit)}
        if tars:
            settings["tars"] = {name: _listing_digest(split.urls) for name, split in tars.items()}
        return settings

    def raw_inputs(self, config: Config) -> list[str]:
        """Annotation and caption files."""
        files: set[str] = set()
        for split in config.data.splits.values():
            if isinstance(split, (CocoSplit, LvisSplit)):
                files |= {url for url in (split.instances, split.captions) if url}
            elif isinstance(split, FolderSplit):
                files.add(split.captions)
        return sorted(files)

    def shards(self, ctx: StageContext) -> list[int]:
        """All shards of all splits."""
        return sorted(self.setup(ctx).plans)

    def setup(self, ctx: StageContext) -> State:
        """Open the sources and number the shards."""
        from regionclip_core.datasets.categories import load_categories
        from regionclip_core.datasets.shard_plan import open_source, plan_shards

        data, scratch = ctx.config.data, ctx.out.child(SCRATCH)
        vocabulary = load_categories(data.categories)
        sources = {n: open_source(n, split, ctx.config.seed, vocabulary, scratch) for n, split in data.splits.items()}
        plans = plan_shards(sources, data.shard_size)
        return State(vocabulary, sources, {plan.shard: plan for plan in plans})

    def process(self, ctx: StageContext, state: State, shard: int) -> ShardResult:
        """Index one shard."""
        from regionclip_core.datasets.index import images_name, index_name, write_index
        from regionclip_core.storage.tars import TarWriter

        plan = state.plans[shard]
        source = state.sources[plan.split]
        with ExitStack() as stack:
            store = None
            if source.stores_images:
                store = stack.enter_context(TarWriter(stack.enter_context(ctx.out.write(images_name(shard)))))
            rows = list(source.samples(plan, store))
        with ctx.out.write(index_name(shard)) as file:
            write_index(file, rows, state.vocabulary.digest)
        return ShardResult(len(rows), count(rows) | source.lost(plan))

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Say which shards make a split."""
        state = self.setup(ctx)
        splits: dict[str, dict[str, Any]] = {name: {"shards": [], "images": 0} for name in state.sources}
        for record in sorted(records, key=lambda record: record.shard):
            entry = splits[state.plans[record.shard].split]
            entry["shards"].append(record.shard)
            entry["images"] += record.counts.get("ok", 0)
        _refuse_empty(ctx.config, {state.plans[one.shard].split: one.rows for one in records if one.rows})
        ctx.out.write_json("splits.json", splits)
        ctx.out.write_json("categories.json", state.vocabulary.to_json())
        ctx.out.child(SCRATCH).remove_all()
        images = {name: entry["images"] for name, entry in splits.items()}
        categories = {"base": len(state.vocabulary.base_ids), "novel": len(state.vocabulary.novel_ids)}
        return {"images": images, "categories": categories}


def count(rows: list[IndexRow]) -> dict[str, int]:
    """Count rows by status, and good rows that lost a part by what they lost."""
    counts = Counter(row.status for row in rows)
    for row in rows:
        counts.update(row.lost)
    return dict(sorted(counts.items()))


def _refuse_empty(config: Config, rows: Mapping[str, int]) -> None:
    """Tars are counted by reading them; the other sources refuse to be empty when they are planned."""
    for name, split in config.data.splits.items():
        if isinstance(split, TarsSplit) and not rows.get(name):
            raise ValueError(f"data.splits.{name}.urls: no samples are in {split.urls}; give other tars or drop it")


def _listing_digest(urls: str) -> str:
    from regionclip_core.storage.locations import list_files

    return _digest([list(entry) for entry in list_files(urls)])


def _digest(value: Any) -> str:
    import hashlib

    from regionclip_core.storage.records import canonical_json

    return hashlib.sha256(canonical_json(value)).hexdigest()


STAGE = DataStage()
