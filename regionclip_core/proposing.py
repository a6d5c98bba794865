"""One shard of images to one table of proposals, by any of the four methods; and their recall."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from regionclip_core.artifacts import Folder
from regionclip_core.box_data import labelled_boxes
from regionclip_core.config import Config
from regionclip_core.image_batch import batch_images
from regionclip_core.images import BadImage, ImageReader
from regionclip_core.index import IndexRow, read_index, split_shards
from regionclip_core.proposals import grid_boxes, min_objectness, random_boxes, recall
from regionclip_core.rpn_training import load_network
from regionclip_core.schemas import PROPOSALS
from regionclip_core.selection import Proposals
from regionclip_core.training import step_seed
from regionclip_core.vocabulary import Vocabulary

_IMAGES_AT_ONCE = 8

Proposer = Callable[[Sequence[IndexRow], Sequence[Tensor]], list[Proposals]]
"""(rows, images uint8[3, H, W]) -> proposals in original pixels. `needs_pixels` says whether images are read."""


class GivenBoxes:
    """Annotated boxes, whatever their category; crowds are left out."""

    needs_pixels = False

    def __call__(self, rows: Sequence[IndexRow], images: Sequence[Tensor]) -> list[Proposals]:
        """One list of boxes a row; all objectness logits are 0."""
        found = []
        for row in rows:
            boxes = torch.from_numpy(row.boxes[~row.box_crowd])
            found.append(Proposals(boxes, torch.zeros(len(boxes))))
        return found


class PatternBoxes:
    """A grid, or random boxes seeded by the image's key."""

    needs_pixels = False

    def __init__(self, config: Config) -> None:
        self.settings = config.proposals
        self.seed = config.seed

    def __call__(self, rows: Sequence[IndexRow], images: Sequence[Tensor]) -> list[Proposals]:
        """Boxes from the image's size alone."""
        settings = self.settings
        found = []
        for row in rows:
            if settings.method == "grid":
                found.append(grid_boxes(row.width, row.height, settings.grid_scales, settings.max_regions))
                continue
            key = int.from_bytes(hashlib.sha256(row.key.encode()).digest()[:8], "big")
            generator = torch.Generator().manual_seed(step_seed(self.seed, key))
            found.append(random_boxes(row.width, row.height, settings.grid_scales, settings.max_regions, generator))
        return found


class NetworkBoxes:
    """The proposal network."""

    needs_pixels = True

    def __init__(self, config: Config, rpn: Folder, device: str) -> None:
        self.settings = config.proposals
        self.rpn = config.rpn
        self.device = device
        self.network = load_network(rpn, config.rpn).to(device)

    def __call__(self, rows: Sequence[IndexRow], images: Sequence[Tensor]) -> list[Proposals]:
        """Propose for a few images at once."""
        batch = batch_images(images, self.rpn.image_size, self.rpn.max_size, self.network.mean, self.network.std)
        proposed = self.network.propose(
            batch.tensor.to(self.device),
            batch.sizes,
            self.settings.pre_nms,
            self.settings.max_regions,
            self.settings.nms,
        )
        kept = [min_objectness(p, self.settings.min_objectness) for p in proposed]
        return [Proposals(batch.to_original(i, p.boxes.cpu()), p.logits.cpu()) for i, p in enumerate(kept)]


def proposer_row(pixels: np.ndarray) -> IndexRow:
    """An index row for an image that stands outside of any split: uint8[H, W, 3]."""
    return IndexRow(key="image", image_id=0, height=pixels.shape[0], width=pixels.shape[1])


def make_proposer(config: Config, rpn: Folder | None, device: str) -> GivenBoxes | PatternBoxes | NetworkBoxes:
    """The proposer that `proposals.method` names."""
    if config.proposals.method == "given":
        return GivenBoxes()
    if config.proposals.method in ("grid", "random"):
        return PatternBoxes(config)
    assert rpn is not None  # the stage needs rpn for this method
    return NetworkBoxes(config, rpn, device)


def propose_shard(
    proposer: GivenBoxes | PatternBoxes | NetworkBoxes, data: Folder, shard: int
) -> tuple[Counter[str], pa.Table]:
    """Counts by status and one PROPOSALS row for each index row of the shard, in its order."""
    reader = ImageReader(data)
    rows = read_index(data, shard)
    results: list[dict[str, Any]] = [
        {"key": r.key, "status": r.status, "reason": r.reason, "boxes": [], "objectness_logit": []} for r in rows
    ]
    usable = [number for number, row in enumerate(rows) if row.status == "ok"]
    for start in range(0, len(usable), _IMAGES_AT_ONCE):
        _propose_some(proposer, rows, usable[start : start + _IMAGES_AT_ONCE], reader, results)
    counts = Counter(result["status"] for result in results)
    counts["proposals"] = sum(len(result["boxes"]) for result in results)
    return counts, pa.Table.from_pylist(results, schema=PROPOSALS)


def _propose_some(
    proposer: GivenBoxes | PatternBoxes | NetworkBoxes,
    rows: list[IndexRow],
    numbers: list[int],
    reader: ImageReader,
    results: list[dict[str, Any]],
) -> None:
    images: list[Tensor] = []
    good = []
    for number in numbers:
        if proposer.needs_pixels:
            try:
                pixels = reader.read(rows[number])
            except BadImage as error:
                results[number] |= {"status": error.status, "reason": str(error)}
                continue
            images.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
        good.append(number)
    if not good:
        return
    for number, found in zip(good, proposer([rows[n] for n in good], images), strict=True):
        results[number] |= {"boxes": found.boxes.tolist(), "objectness_logit": found.logits.tolist()}


def read_proposals(proposals: Folder, shard: int) -> dict[str, Proposals]:
    """Proposals of a shard's good images by key: float32[P, 4] original pixels, and logits."""
    with proposals.open(f"proposals-{shard:05d}.parquet") as file:
        rows = pq.read_table(file).to_pylist()
    return {
        row["key"]: Proposals(
            torch.tensor(row["boxes"], dtype=torch.float32).reshape(-1, 4), torch.tensor(row["objectness_logit"])
        )
        for row in rows
        if row["status"] == "ok"
    }


def recall_of_splits(data: Folder, proposals: Folder, splits: Iterable[str]) -> dict[str, dict[str, float]]:
    """Recall at IoU 0.5 by split, for boxes of base and of novel categories; splits without boxes are left out."""
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    groups = {"base": set(vocabulary.base_ids), "novel": set(vocabulary.novel_ids)}
    result: dict[str, dict[str, float]] = {}
    for split in splits:
        found: list[Tensor] = []
        truth: dict[str, list[Tensor]] = {group: [] for group in groups}
        for shard in split_shards(data, (split,)):
            proposed = read_proposals(proposals, shard)
            for row in read_index(data, shard):
                if row.key not in proposed:
                    continue
                found.append(proposed[row.key].boxes)
                for group, ids in groups.items():
                    truth[group].append(labelled_boxes(row, ids)[0])
        for group, boxes in truth.items():
            if any(len(b) for b in boxes):
                scores = recall(found, boxes)
                result.setdefault(split, {}).update({f"{group}_{name}": value for name, value in scores.items()})
    return result
