"""One shard of images to one table of proposals, by any of the four methods; and their recall."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from regionclip_core.config.tree import Config, ProposalsConfig, RpnConfig
from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import IndexRow, ragged_column, read_index, split_ragged, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops.image_batch import batch_images, by_input_size
from regionclip_core.proposals.network import ProposalNetwork, RecallCount, grid_boxes, min_objectness, random_boxes
from regionclip_core.proposals.rpn_folder import load_network
from regionclip_core.proposals.selection import Proposals
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import PROPOSALS, read_proposal_table
from regionclip_core.training.box_batches import labelled_boxes
from regionclip_core.training.fit import step_seed

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

    def __init__(
        self, network: ProposalNetwork, rpn: RpnConfig, settings: ProposalsConfig, device: str = "cpu"
    ) -> None:
        """`network` in evaluation mode, built with `rpn`, whose input size counts here too."""
        self.settings = settings
        self.rpn = rpn
        self.device = device
        self.network = network.to(device)

    def __call__(self, rows: Sequence[IndexRow], images: Sequence[Tensor]) -> list[Proposals]:
        """Propose for a few images, those of one input size together."""
        return by_input_size(
            images,
            self.rpn.image_size,
            self.rpn.max_size,
            lambda numbers: self._propose([images[number] for number in numbers]),
        )

    def _propose(self, images: Sequence[Tensor]) -> list[Proposals]:
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
    return NetworkBoxes(load_network(rpn, config.rpn), config.rpn, config.proposals, device)


def propose_shard(
    proposer: GivenBoxes | PatternBoxes | NetworkBoxes, data: Folder, shard: int
) -> tuple[Counter[str], pa.Table]:
    """Counts by status and one PROPOSALS row for each index row of the shard, in its order."""
    reader = ImageReader(data)
    rows = read_index(data, shard)
    status, reasons = [row.status for row in rows], [row.reason for row in rows]
    boxes = [np.zeros((0, 4), np.float32)] * len(rows)
    logits = [np.zeros(0, np.float32)] * len(rows)
    usable = [number for number, row in enumerate(rows) if row.status == "ok"]
    for start in range(0, len(usable), _IMAGES_AT_ONCE):
        for number, found in _propose_some(proposer, rows, usable[start : start + _IMAGES_AT_ONCE], reader):
            if isinstance(found, BadImage):
                status[number], reasons[number] = found.status, str(found)
            else:
                # Arrays, not lists: a thousand proposals an image as Python floats would fill gigabytes a shard.
                boxes[number], logits[number] = found.boxes.numpy(), found.logits.numpy()
    counts = Counter(status)
    counts["proposals"] = sum(map(len, boxes))
    columns = {
        "key": [row.key for row in rows],
        "status": status,
        "reason": reasons,
        "boxes": ragged_column(boxes, "boxes", PROPOSALS.field("boxes").type),
        "objectness_logit": ragged_column(logits, "objectness_logit", PROPOSALS.field("objectness_logit").type),
    }
    return counts, pa.table(columns, schema=PROPOSALS)


def _propose_some(
    proposer: GivenBoxes | PatternBoxes | NetworkBoxes, rows: list[IndexRow], numbers: list[int], reader: ImageReader
) -> Iterator[tuple[int, Proposals | BadImage]]:
    """Each number with its row's proposals, or with what is wrong with its image."""
    images: list[Tensor] = []
    good = []
    for number in numbers:
        if proposer.needs_pixels:
            try:
                pixels = reader.read(rows[number])
            except BadImage as error:
                yield number, error
                continue
            images.append(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))))
        good.append(number)
    if good:
        yield from zip(good, proposer([rows[n] for n in good], images), strict=True)


def read_proposals(proposals: Folder, shard: int) -> dict[str, Proposals]:
    """Proposals of a shard's good images by key: float32[P, 4] original pixels, and logits."""
    table = read_proposal_table(proposals, shard, ("key", "status", "boxes", "objectness_logit"))
    boxes = split_ragged(table["boxes"], "boxes")
    logits = split_ragged(table["objectness_logit"], "objectness_logit")
    keys, status = table["key"].to_pylist(), table["status"].to_pylist()
    return {
        key: Proposals(torch.from_numpy(boxes[row]), torch.from_numpy(logits[row]))
        for row, key in enumerate(keys)
        if status[row] == "ok"
    }


def recall_of_splits(data: Folder, proposals: Folder, splits: Iterable[str]) -> dict[str, dict[str, float]]:
    """Recall at IoU 0.5 by split, for boxes of base and of novel categories; splits without boxes are left out.

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
