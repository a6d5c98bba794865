"""The four ways to propose boxes (a network, a grid, random boxes, annotated boxes), applied to a shard of images.

Legend: P proposals of one image. Boxes are in original pixels, best first; logits are raw, and 0 where a method has no
objectness.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from regionclip_core.config.tree import Config, ProposalsConfig, RpnConfig
from regionclip_core.datasets.images import BadImage, ImageReader
from regionclip_core.datasets.index import IndexRow, ragged_column, read_index, split_ragged
from regionclip_core.datasets.read_ahead import read_ahead
from regionclip_core.ops.boxes import grid_boxes
from regionclip_core.ops.image_batch import Resized, batch_resized, by_input_size, resize_image
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.rpn import Proposals
from regionclip_core.proposals.rpn_folder import load_network
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import PROPOSALS, read_proposal_table
from regionclip_core.training.fit import step_seed

_IMAGES_AT_ONCE = 8


class RowBoxes:
    """Boxes from index rows alone: annotated boxes without crowds, a grid, or random boxes."""

    def __init__(self, config: Config) -> None:
        self.settings = config.proposals
        self.seed = config.seed

    def __call__(self, rows: Sequence[IndexRow], images: Sequence[Tensor]) -> list[Proposals]:
        """Return one Proposals per row; the images are not used."""
        scales, most = self.settings.grid_scales, self.settings.max_regions
        found = []
        for row in rows:
            if self.settings.method == "given":
                boxes = torch.from_numpy(row.boxes[~row.box_crowd])
                found.append(Proposals(boxes, torch.zeros(len(boxes))))
            elif self.settings.method == "grid":
                boxes = grid_boxes(row.width, row.height, scales, most)
                found.append(Proposals(boxes, torch.zeros(len(boxes))))
            else:  # seeded by the key, so that an image's boxes don't depend on its place in a shard
                key = int.from_bytes(hashlib.sha256(row.key.encode()).digest()[:8], "big")
                generator = torch.Generator().manual_seed(step_seed(self.seed, key))
                found.append(random_boxes(row.width, row.height, scales, most, generator))
        return found


class NetworkBoxes:
    """Boxes that the proposal network finds in the pixels."""

    def __init__(
        self, network: ProposalNetwork, rpn: RpnConfig, settings: ProposalsConfig, device: str = "cpu"
    ) -> None:
        """`network`: in evaluation mode; `rpn`: the settings that it was built with, and the size of its input."""
        self.settings = settings
        self.rpn = rpn
        self.device = device
        self.network = network.to(device)

    def __call__(self, rows: Sequence[IndexRow], images: Sequence[Tensor]) -> list[Proposals]:
        """Return the proposals in each image, uint8[3, H, W]; only images of one input size share a batch."""
        return self.propose([self.resize(image) for image in images])

    def resize(self, image: Tensor) -> Resized:
        """Return an image, uint8[3, H, W], at the size of the network's input."""
        return resize_image(image, self.rpn.image_size, self.rpn.max_size)

    def propose(self, images: Sequence[Resized]) -> list[Proposals]:
        """Return the proposals in each image, in original pixels."""
        settings = self.settings

        def propose_some(numbers: list[int]) -> list[Proposals]:
            chosen = [images[number] for number in numbers]
            batch = batch_resized(chosen, self.network.mean, self.network.std, self.device)
            proposed = self.network.propose(
                batch.tensor, batch.sizes, settings.pre_nms, settings.max_regions, settings.nms
            )
            found = []
            for i, (boxes, logits) in enumerate(proposed):
                kept = torch.sigmoid(logits) >= settings.min_objectness
                found.append(Proposals(batch.to_original(i, boxes[kept].cpu()), logits[kept].cpu()))
            return found

        return by_input_size(images, propose_some)


def random_boxes(
    width: int, height: int, scales: Sequence[float], max_regions: int, generator: torch.Generator
) -> Proposals:
    """Return `max_regions` boxes inside the image; each side is log-uniform between the extreme scales.

    A scale is a share of the shorter image side.
    """
    shorter = min(width, height)
    low, high = min(scales) * shorter, max(scales) * shorter
    draw = torch.rand(max_regions, 4, generator=generator)
    sides = (low * (high / low) ** draw[:, :2]).clamp(min=1.0, max=float(shorter))
    corner = draw[:, 2:] * (torch.tensor([float(width), float(height)]) - sides)
    return Proposals(torch.cat((corner, corner + sides), dim=1), torch.zeros(max_regions))


def proposer_row(pixels: np.ndarray) -> IndexRow:
    """Return an index row for an image outside of any split: uint8[H, W, 3]."""
    return IndexRow(key="image", image_id=0, height=pixels.shape[0], width=pixels.shape[1])


Proposer = RowBoxes | NetworkBoxes


def make_proposer(config: Config, rpn: Folder | None, device: str) -> Proposer:
    """Return the proposer that `proposals.method` names."""
    if config.proposals.method != "rpn":
        return RowBoxes(config)
    assert rpn is not None  # the stage needs rpn for this method
    return NetworkBoxes(load_network(rpn, config.rpn), config.rpn, config.proposals, device)


def propose_shard(proposer: Proposer, data: Folder, shard: int, readers: int = 0) -> tuple[Counter[str], pa.Table]:
    """Return counts by status, and one PROPOSALS row for each index row of the shard, in its order.

    `readers`: threads that read ahead, see `read_ahead`.
    """
    rows = read_index(data, shard)
    status, reasons = [row.status for row in rows], [row.reason for row in rows]
    # Arrays, not lists: a thousand proposals per image as Python floats would fill gigabytes per shard.
    boxes = [np.zeros((0, 4), np.float32)] * len(rows)
    logits = [np.zeros(0, np.float32)] * len(rows)
    usable = [number for number, row in enumerate(rows) if row.status == "ok"]
    with ImageReader(data) as reader:

        def read(number: int) -> Resized | None:
            return None if isinstance(proposer, RowBoxes) else proposer.resize(reader.read_tensor(rows[number]))

        with closing(read_ahead(read, usable, readers, _IMAGES_AT_ONCE)) as ahead:
            while some := list(islice(ahead, _IMAGES_AT_ONCE)):
                good, images = [], []
                for number, image in some:
                    try:
                        images.append(image())
                        good.append(number)
                    except BadImage as error:
                        status[number], reasons[number] = error.status, str(error)
                if isinstance(proposer, RowBoxes):
                    found = proposer([rows[number] for number in good], [])
                else:
                    found = proposer.propose([image for image in images if image is not None])
                for number, proposals in zip(good, found, strict=True):
                    boxes[number], logits[number] = proposals.boxes.numpy(), proposals.logits.numpy()
    counts = Counter(status)
    counts["proposals"] = sum(map(len, boxes))
    # Given boxes of categories outside the vocabulary propose, too, but nothing is measured on them.
    is_given = isinstance(proposer, RowBoxes) and proposer.settings.method == "given"
    if is_given and (outside := sum(int(((row.box_labels < 0) & ~row.box_crowd).sum()) for row in rows)):
        counts["outside_the_vocabulary"] = outside
    columns = {
        "key": [row.key for row in rows],
        "status": status,
        "reason": reasons,
        "boxes": ragged_column(boxes, PROPOSALS.field("boxes").type),
        "objectness_logit": ragged_column(logits, PROPOSALS.field("objectness_logit").type),
    }
    return counts, pa.table(columns, schema=PROPOSALS)


def read_proposals(proposals: Folder, shard: int) -> dict[str, Proposals]:
    """Return the proposals of a shard's good images by key: float32[P, 4] original pixels, and logits."""
    table = read_proposal_table(proposals, shard, ("key", "status", "boxes", "objectness_logit"))
    boxes = split_ragged(table["boxes"], "boxes")
    logits = split_ragged(table["objectness_logit"], "objectness_logit")
    keys, status = table["key"].to_pylist(), table["status"].to_pylist()
    return {
        key: Proposals(torch.from_numpy(boxes[row]), torch.from_numpy(logits[row]))
        for row, key in enumerate(keys)
        if status[row] == "ok"
    }
