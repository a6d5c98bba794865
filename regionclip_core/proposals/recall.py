"""Recall of proposals: the share of annotated boxes that one of the best proposals covers.

Legend: P proposals, G ground-truth boxes of one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import labelled_boxes


class RecallCount:
    """Counts ground-truth boxes, and those that one of the best `top` proposals covers at IoU >= `iou`."""

    def __init__(self, ious: Sequence[float] = (0.5,), tops: Sequence[int] = (10, 50, 100)) -> None:
        self.boxes = 0
        """Ground-truth boxes so far."""
        self._ious, self._tops = ious, tops
        self._found = {(top, iou): 0 for iou in ious for top in tops}

    def add(self, proposals: Tensor, truth: Tensor) -> None:
        """Add one image: [P, 4] proposals, best first, and [G, 4] ground truth in the same pixels."""
        if not len(truth):
            return
        self.boxes += len(truth)
        overlap = box_ops.iou(truth, proposals)
        for top in self._tops:
            best = overlap[:, :top].amax(dim=1) if overlap.shape[1] else overlap.new_zeros(len(truth))
            for iou in self._ious:
                self._found[top, iou] += int((best >= iou).sum())

    def scores(self) -> dict[str, float]:
        """Return the share of boxes found, in 0..1; NaN if there is no box at all.

        `recall@<top>` is at the first IoU, `recall@<top>/iou<iou>` at the others.
        """
        return {
            f"recall@{top}" + ("" if iou == self._ious[0] else f"/iou{iou:g}"): (
                count / self.boxes if self.boxes else float("nan")
            )
            for (top, iou), count in self._found.items()
        }


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
