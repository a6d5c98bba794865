"""The regions of a shard that get labels: its proposals, or the boxes that `labels.source` gives with their names.

R regions of one image. Boxes are xyxy pixels in the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from regionclip_core.config.tree import LabelsConfig
from regionclip_core.datasets.index import IndexRow, require_same_images, split_ragged
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import PROPOSALS, read_proposal_table


@dataclass(frozen=True)
class ShardRegions:
    """One entry per image of the shard, in the order of the index, in each list."""

    status: list[str]
    reasons: list[str | None]
    boxes: list[npt.NDArray[np.float32]]
    """[R, 4] each, at most `labels.max_regions`."""
    objectness_logit: list[npt.NDArray[np.float32]]
    """[R] each; 0 for boxes that are no proposals."""
    concept_id: list[npt.NDArray[np.int64]] | None = None
    """[R] each, where `labels.source` gives the labels."""
    score: list[npt.NDArray[np.float32]] | None = None
    """[R] each, of those concepts."""


def concept_ids(concepts: Folder) -> dict[str, int]:
    """Return the pool's concept ids by name, and by the names of categories that the pool spells otherwise."""
    with concepts.open_table("concepts.parquet") as file:
        pool = pq.read_table(file, columns=["concept", "dataset_class"])
    own = {name: number for number, name in enumerate(pool["concept"].to_pylist())}
    classes = enumerate(pool["dataset_class"].to_pylist())
    return {name: number for number, name in classes if name is not None} | own


def given_name(shard: int) -> str:
    """Return the name of the file in which `read_source` leaves a shard's boxes."""
    return f"given-{shard:05d}.parquet"


def read_regions(folder: Folder, images: Sequence[IndexRow], shard: int, settings: LabelsConfig) -> ShardRegions:
    """Load a shard's regions from the proposals, or with `labels.source` from where `read_source` left them."""
    if settings.source is None:
        table = read_proposal_table(folder, shard, PROPOSALS.names)
        keys, status, reasons = (table[name].to_pylist() for name in ("key", "status", "reason"))
        require_same_images(keys, [image.key for image in images], f"the proposals of shard {shard}")
        boxes, logits = (_best(table, name, settings) for name in ("boxes", "objectness_logit"))
        return ShardRegions(status, reasons, boxes, logits)
    with folder.open_table(given_name(shard)) as file:
        table = pq.read_table(file)
    boxes, concepts, scores = (_best(table, name, settings) for name in ("boxes", "concept_id", "score"))
    logits = [np.zeros(len(own), np.float32) for own in boxes]
    status, reasons = [image.status for image in images], [None if image.ok else image.reason for image in images]
    return ShardRegions(status, reasons, boxes, logits, [own.astype(np.int64) for own in concepts], scores)


def _best(table: Any, name: str, settings: LabelsConfig) -> list[npt.NDArray[Any]]:
    return [own[: settings.max_regions] for own in split_ragged(table[name], name)]
