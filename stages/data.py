"""data: every split as shards of index rows; the embedded world's images are drawn here too."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from regionclip_core.config.checks import same_images
from regionclip_core.config.tree import TarsSplit
from regionclip_core.datasets.categories import load_categories
from regionclip_core.datasets.category_match import unmatched
from regionclip_core.datasets.index import images_name, index_name, read_index, write_index
from regionclip_core.datasets.shard_plan import open_source, plan_shards
from regionclip_core.datasets.source import ODD_BOXES, ShardPlan, Source
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.storage.records import ShardRecord
from regionclip_core.storage.tars import TarWriter
from regionclip_core.training.error_budget import first_reasons

from .base import ShardResult, ShardWork, StageContext

SCRATCH = "scan"
"""Folder inside the artifact, not part of its content, with what the annotation and caption files say about each image:
`shards`, which counts the images, fills it, every worker reads it, and the merge removes it."""


@dataclass
class State:
    """The vocabulary, the sources by split and the plans by shard."""

    vocabulary: Vocabulary
    sources: dict[str, Source]
    plans: dict[int, ShardPlan]


class DataWork(ShardWork):
    """Writes `index-00007.parquet`, for the embedded world `images-00007.tar`, and at the end `splits.json`
    ({split: {shards, images}}) and `categories.json` (the Vocabulary that box labels point into, and for splits with
    an annotation file `ids`: {split: {name: the file's category id}}).

    A bad sample costs its row, never the shard: it is counted as bad_image, bad_caption, bad_duplicate_key,
    bad_unsafe_member or bad_tar. lost_box, lost_caption and lost_image_labels count good images that lost a part,
    lost_annotations the entries of annotation files that belong to no image, and base_boxes, novel_boxes, crowd_boxes
    (`iscrowd`) and other_boxes (of a category in neither set) the boxes that are kept; those of ODD_BOXES among them
    may be wrong.
    """

    def shards(self, ctx: StageContext) -> list[int]:
        """Return all shards of all splits; the only place where images are cut into shards.

        Raises:
            ValueError, FileNotFoundError: a split's categories match nothing, or its images are not where it says.
        """
        state = self.setup(ctx)
        for plan in state.plans.values():
            if plan.piece.ordinal == 0:
                state.sources[plan.split].check(plan.piece)
        return sorted(state.plans)

    def setup(self, ctx: StageContext) -> State:
        """Open the sources and number the shards."""
        data, scratch = ctx.config.data, ctx.out.child(SCRATCH)
        vocabulary = replace(load_categories(data.categories), source=f"data.categories ({data.categories})")
        sources = {n: open_source(n, split, ctx.config.seed, vocabulary, scratch) for n, split in data.splits.items()}
        plans = plan_shards(sources, data.shard_size)
        return State(vocabulary, sources, {plan.shard: plan for plan in plans})

    def process(self, ctx: StageContext, state: State, shard: int) -> ShardResult:
        """Index one shard."""
        plan = state.plans[shard]
        source = state.sources[plan.split]
        with ExitStack() as stack:
            store = None
            if source.stores_images:
                store = stack.enter_context(TarWriter(stack.enter_context(ctx.out.write(images_name(shard)))))
            rows = list(source.samples(plan, store))
        with ctx.out.write(index_name(shard)) as file:
            write_index(file, rows, state.vocabulary.digest)
        # Rows by status, and good rows that lost a part by what they lost.
        counts = Counter(row.status for row in rows)
        for row in rows:
            counts.update(row.lost)
        # Boxes by what they are good for; those of a category in neither set have the label -1.
        labels = np.concatenate([np.zeros(0, np.int32), *(row.box_labels for row in rows)])
        crowd = np.concatenate([np.zeros(0, np.bool_), *(row.box_crowd for row in rows)])
        is_kind = [labels < 0, crowd, np.isin(labels, state.vocabulary.base_ids)]
        counts.update(np.select(is_kind, ["other_boxes", "crowd_boxes", "base_boxes"], "novel_boxes").tolist())
        return ShardResult(len(rows), dict(sorted(counts.items())) | source.lost(plan), plan.split)

    def merge(self, ctx: StageContext, records: list[ShardRecord]) -> dict[str, Any]:
        """Write which shards make a split; the summary has their boxes, which names of categories match nothing, and
        which splits have a caption file, and no caption.

        Raises:
            ValueError: a split of tars has no sample, which only reading them shows (the other sources refuse to be
                empty when they are cut into shards); or no box that a split's annotations have can be used.
        """
        state = self.setup(ctx)
        shards: dict[str, list[int]] = {name: [] for name in state.sources}
        counts: dict[str, Counter[str]] = {name: Counter() for name in state.sources}
        annotated: Counter[str] = Counter()
        for record in sorted(records, key=lambda record: record.shard):
            name = state.plans[record.shard].split
            shards[name].append(record.shard)
            counts[name].update(record.counts)
        boxes = {name: {k: n for k, n in found.items() if k.endswith("_boxes")} for name, found in counts.items()}
        for name, split in ctx.config.data.splits.items():
            if isinstance(split, TarsSplit) and not counts[name]:
                raise ValueError(f"data.splits.{name}.urls: no samples are in {split.urls}; give other tars or drop it")
            if counts[name]["lost_box"] and not boxes[name]:
                first = first_reasons(ctx.out, [r for r in records if r.shard in shards[name]], "lost_")
                raise ValueError(f"data.splits.{name}.instances: none of its boxes can be used. The first: {first}")
            kept = sum(boxes[name].values())
            for kind, what in ODD_BOXES.items():
                if 2 * counts[name][kind] > kept:
                    first = first_reasons(ctx.out, [r for r in records if r.shard in shards[name]], "odd_")
                    raise ValueError(
                        f"data.splits.{name}.instances: {counts[name][kind]} of {kept} boxes {what}, and `bbox` is "
                        f"[x, y, width, height] in pixels. Write them so. The first: {first}"
                    )
            annotated.update(state.sources[name].categories())
        images = {name: found["ok"] for name, found in counts.items()}
        ctx.out.write_json("splits.json", {n: {"shards": shards[n], "images": images[n]} for n in shards})
        ids = {name: found for name, source in state.sources.items() if (found := source.category_ids())}
        ctx.out.write_json("categories.json", {**state.vocabulary.to_json(), **({"ids": ids} if ids else {})})
        ctx.out.child(SCRATCH).remove_all()
        categories = {"base": len(state.vocabulary.base_ids), "novel": len(state.vocabulary.novel_ids)}
        found = {"images": images, "categories": categories, "boxes": boxes, **unmatched(annotated, state.vocabulary)}
        if shared := same_images(ctx.config.data.splits):
            found["notes"] = [*shared, *found.get("notes", ())]
        without = [  # the first shard mostly shows that there are some
            name
            for name, split in ctx.config.data.splits.items()
            if getattr(split, "captions", None)
            and not any(row.ok and row.captions for shard in shards[name] for row in read_index(ctx.out, shard))
        ]
        return {**found, **({"without_captions": without} if without else {})}


WORK = DataWork()
