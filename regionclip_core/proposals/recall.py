"""Recall of proposals: the share of annotated boxes that one of the best proposals covers.

Legend: P proposals, G ground-truth boxes of one image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor

from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import labelled_boxes

IOU = 0.5
TOPS = (10, 50, 100)


def covered(proposals: Tensor, truth: Tensor) -> dict[str, int]:
    """Return how many boxes of `truth` [G, 4] one of the 10, 50 or 100 best proposals covers, as `recall@<number>`.

    `proposals`: [P, 4], best first. A box is covered at IoU >= 0.5.
    """
    overlap = box_ops.iou(truth, proposals)
    is_covered = {top: overlap[:, :top].amax(dim=1) >= IOU for top in TOPS} if overlap.numel() else {}
    return {f"recall@{top}": int(found.sum()) for top, found in is_covered.items()}


def recall_of_splits(data: Folder, proposals: Folder, splits: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return recall, 0..1, by split, for boxes of base and of novel categories; splits without boxes are left out.

    One shard's rows and proposals are in memory at a time.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    groups = {"base": set(vocabulary.base_ids), "novel": set(vocabulary.novel_ids)}
    result: dict[str, dict[str, float]] = {}
    for split in splits:
        counts: dict[str, Counter[str]] = {group: Counter() for group in groups}
        for shard in split_shards(data, (split,)):
            proposed = read_proposals(proposals, shard)
            for row in read_index(data, shard, vocabulary.digest):
                if row.key not in proposed:
                    continue
                for group, ids in groups.items():
                    truth, _ = labelled_boxes(row, ids)
                    counts[group].update(covered(proposed[row.key].boxes, truth), boxes=len(truth))
        for group, count in counts.items():
            if boxes := count["boxes"]:
                names = (f"recall@{top}" for top in TOPS)
                result.setdefault(split, {}).update({f"{group}_{name}": count[name] / boxes for name in names})
    return result
