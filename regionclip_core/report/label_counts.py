"""How the pseudo labels are spread over scores, objectness and concepts. R regions of a shard, C concepts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from regionclip_core.datasets.index import split_shards
from regionclip_core.report.samples import spread
from regionclip_core.storage.records import Folder

SCORES = np.linspace(0, 1, 26)
"""Edges of the bins of scores."""
LOGITS = np.linspace(-15, 15, 61)
"""Edges of the bins of objectness logits; what is beyond counts in the first or last bin."""
MAX_SHARDS = 64
"""Shards of labels that are counted; of more, these are spread evenly over them."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LabelCounts:
    """Counts over regions; the first index of `score` and `objectness` is 0 for those not kept, 1 for kept ones."""

    score: Counts
    """int64[2, bins of SCORES]"""
    objectness: Counts
    """int64[2, bins of LOGITS]"""
    kept_by_concept: Counts
    """int64[C]"""
    shards: int
    all_shards: int
    """How many shards the labels have; `shards` of them were counted."""


def count_labels(data: Folder, labels: Folder, splits: Iterable[str], concepts: int) -> LabelCounts:
    """Count the labelled regions of these splits, one shard in memory at a time; `concepts`: C."""
    every = split_shards(data, splits)
    shards = spread(every, MAX_SHARDS)
    score, objectness = (np.zeros((2, len(edges) - 1), np.int64) for edges in (SCORES, LOGITS))
    by_concept = np.zeros(concepts, np.int64)
    for shard in shards:
        with labels.open(f"labels-{shard:05d}.parquet") as file:
            table = pq.read_table(file, columns=["concept_id", "score", "kept", "objectness_logit"]).combine_chunks()
        kept = table["kept"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(int)
        concept, score_R, logit_R = (
            table[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            for name in ("concept_id", "score", "objectness_logit")
        )
        for counts, edges, values in ((score, SCORES, score_R), (objectness, LOGITS, logit_R)):
            for use in (0, 1):
                counts[use] += np.histogram(np.clip(values[kept == use], edges[0], edges[-1]), edges)[0]
        by_concept += np.bincount(concept[kept == 1], minlength=concepts)
    return LabelCounts(score, objectness, by_concept, len(shards), len(every))


def outline(counts: Counts, edges: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return the outline of a histogram, from the axis up and back to it."""
    points = [(float(edges[0]), 0.0)]
    for place, count in enumerate(counts.tolist()):
        points += [(float(edges[place]), float(count)), (float(edges[place + 1]), float(count))]
    return [*points, (float(edges[-1]), 0.0)]
