"""How good pseudo labels are, where annotated boxes allow a look. A measurement only: nothing reads it back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow.parquet as pq
import torch
from torchvision.ops import box_iou

from regionclip_core.datasets.index import IndexRow, read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.storage.records import Folder
from regionclip_core.training.box_batches import labelled_boxes


def label_quality(data: Folder, labels: Folder, splits: Iterable[str]) -> dict[str, Any]:
    """Share of regions kept, and the share of kept regions on an object (IoU >= 0.5) that carry its name.

    The second is counted apart for base and novel objects, only for objects whose name is in the pool.
    """
    categories = Vocabulary.from_json(data.read_json("categories.json"))
    pool, _ = load_embeddings(labels)
    counts: Counter[str] = Counter()
    for shard in split_shards(data, list(splits)):
        images = {row.key: row for row in read_index(data, shard)}
        with labels.open(f"labels-{shard:05d}.parquet") as file:
            for row in pq.read_table(file, columns=["key", "boxes", "concept_id", "kept"]).to_pylist():
                _count(row, images[row["key"]], categories, pool, counts)
    summary: dict[str, Any] = {
        "regions": counts["regions"],
        "kept": counts["kept"],
        "kept_share": counts["kept"] / max(1, counts["regions"]),
    }
    for group in ("base", "novel"):
        if counts[f"{group}_on_object"]:
            summary[f"{group}_accuracy"] = counts[f"{group}_right"] / counts[f"{group}_on_object"]
    return summary


def _count(
    row: dict[str, Any], image: IndexRow, categories: Vocabulary, pool: Vocabulary, counts: Counter[str]
) -> None:
    counts["regions"] += len(row["kept"])
    counts["kept"] += sum(row["kept"])
    boxes, labels = labelled_boxes(image, range(len(categories)))
    if not len(boxes) or not row["boxes"]:
        return
    overlap = box_iou(torch.tensor(row["boxes"]), boxes)
    best, at = overlap.max(dim=1)
    base = set(categories.base)
    for region, kept in enumerate(row["kept"]):
        name = categories.names[int(labels[at[region]])]
        if not kept or best[region] < 0.5 or name not in pool.names:
            continue
        group = "base" if name in base else "novel"
        counts[f"{group}_on_object"] += 1
        counts[f"{group}_right"] += pool.names[row["concept_id"][region]] == name
