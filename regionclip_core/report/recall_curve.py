"""Recall against the number of proposals: how many boxes per image a detector has to look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from regionclip_core.datasets.index import read_index, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops import boxes as box_ops
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.proposals.recall import IOU
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import labelled_boxes


def recall_curve(data: Folder, proposals: Folder, split: str) -> dict[str, npt.NDArray[np.float64]]:
    """Return for `base` and `novel` float64[P], the recall in percent of the best 1, 2, ... P proposals per image.

    P is the most proposals that an image has. A group without boxes is left out, as are images that the proposals
    stage could not read. One shard is in memory at a time.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    groups = {"base": vocabulary.base_ids, "novel": vocabulary.novel_ids}
    first: dict[str, list[int]] = {group: [] for group in groups}  # rank of the first proposal on each box; -1: none
    most = 0
    for shard in split_shards(data, (split,)):
        proposed = read_proposals(proposals, shard)
        for row in read_index(data, shard, vocabulary.digest):
            if row.key not in proposed:
                continue
            boxes = proposed[row.key].boxes
            most = max(most, len(boxes))
            for group, ids in groups.items():
                truth, _ = labelled_boxes(row, ids)
                if not len(truth) or not len(boxes):
                    first[group] += [-1] * len(truth)
                    continue
                covers = box_ops.iou(truth, boxes) >= IOU
                rank = np.where(covers.any(dim=1).numpy(), covers.int().argmax(dim=1).numpy(), -1)
                first[group] += rank.tolist()
    curves = {}
    for group, ranks in first.items():
        if ranks and most:
            found = np.bincount([rank for rank in ranks if rank >= 0], minlength=most)
            curves[group] = 100 * found.cumsum() / len(ranks)
    return curves
