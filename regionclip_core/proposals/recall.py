"""Recall of proposals: the share of annotated boxes that one of the best proposals covers.

Legend: P proposals, G ground-truth boxes of one image.
"""

from __future__ import annotations

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


class RecallCount:
    """Counts ground-truth boxes, and those that one of the best 10, 50 or 100 proposals covers at IoU >= 0.5."""

    def __init__(self) -> None:
        self.boxes = 0
        """Ground-truth boxes so far."""
        self._found = dict.fromkeys(TOPS, 0)

    def add(self, proposals: Tensor, truth: Tensor) -> None:
        """Add one image: [P, 4] proposals, best first, and [G, 4] ground truth in the same pixels."""
        if not len(truth):
            return
        self.boxes += len(truth)
        overlap = box_ops.iou(truth, proposals)
        for top in TOPS if len(proposals) else ():
            self._found[top] += int((overlap[:, :top].amax(dim=1) >= IOU).sum())

    def scores(self) -> dict[str, float]:
        """Return `recall@<top>`, the share of boxes found, in 0..1; NaN if there is no box at all."""
        return {f"recall@{top}": n / self.boxes if self.boxes else float("nan") for top, n in self._found.items()}


def recall_of_splits(data: Folder, proposals: Folder, splits: Iterable[str]) -> dict[str, dict[str, float]]:
    """Return recall at IoU 0.5 by split, for boxes of base and of novel categories; splits without boxes are left out.

    One shard's rows and proposals are in memory at a time.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    groups = {"base": set(vocabulary.base_ids), "novel": set(vocabulary.novel_ids)}
    result: dict[str, dict[str, float]] = {}
    for split in splits:
        counts = {group: RecallCount() for group in groups}
        for shard in split_shards(data, (split,)):
            proposed = read_proposals(proposals, shard)
            for row in read_index(data, shard):
                if row.key not in proposed:
                    continue
                for group, ids in groups.items():
                    counts[group].add(proposed[row.key].boxes, labelled_boxes(row, ids)[0])
        for group, count in counts.items():
            if count.boxes:
                result.setdefault(split, {}).update({f"{group}_{name}": v for name, v in count.scores().items()})
    return result
