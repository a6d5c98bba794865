"""Training images with boxes: what rpn and finetune learn from, and the batches of a step.

B images, G annotated boxes of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regionclip_core.artifacts import Folder
from regionclip_core.boxes import flip_horizontal
from regionclip_core.image_batch import ImageBatch, batch_images
from regionclip_core.images import ImageReader
from regionclip_core.index import IndexRow, read_index, split_shards
from regionclip_core.sampling import EpochOrder, first_readable
from regionclip_core.training import step_seed
from regionclip_core.vocabulary import Vocabulary


@dataclass(frozen=True)
class BoxedImage:
    """One image with the boxes that training may see."""

    row: IndexRow
    boxes: Tensor
    """float32[G, 4], xyxy, original pixels."""
    labels: Tensor
    """int64[G], rows of the vocabulary."""
    extra: Tensor
    """float32[P, 4]: more boxes that follow the image's transforms (proposals); may be empty."""


@dataclass(frozen=True)
class BoxBatch:
    """One rank's part of a step, boxes in pixels of the network's input."""

    images: ImageBatch
    boxes: list[Tensor]
    labels: list[Tensor]
    extra: list[Tensor]
    seed: int
    """Seeds whatever the losses sample."""


def labelled_boxes(row: IndexRow, allowed: Collection[int]) -> tuple[Tensor, Tensor]:
    """float32[G, 4] boxes and int64[G] labels of the row's objects of the allowed categories, crowds left out."""
    kept = np.isin(row.box_labels, list(allowed)) & ~row.box_crowd
    return torch.from_numpy(row.boxes[kept]), torch.from_numpy(row.box_labels[kept]).long()


def boxed_images(data: Folder, split: str, allowed: set[int]) -> list[BoxedImage]:
    """Readable images of `split` with at least one usable box.

    Only boxes whose label is in `allowed` exist for the caller: objects of other categories stay in the picture,
    unlabelled, as novel ones must. Crowd boxes are left out.

    Raises:
        ValueError: if no image is left, or the index was written with another vocabulary.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    images = []
    for shard in split_shards(data, (split,)):
        for row in read_index(data, shard, vocabulary.digest):
            if row.status != "ok":
                continue
            boxes, labels = labelled_boxes(row, allowed)
            if len(boxes):
                images.append(BoxedImage(row, boxes, labels, torch.zeros(0, 4)))
    if not images:
        raise ValueError(f"split {split!r} has no image with a box of the wanted categories; training needs some")
    return images


def box_batches(
    images: Sequence[BoxedImage],
    reader: ImageReader,
    *,
    batch_size: int,
    image_size: int,
    max_size: int,
    flip: float,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Callable[[int], BoxBatch]:
    """A function of the step: this rank's share of a global batch, drawn epoch by epoch from permutations.

    Raises:
        ValueError: if `batch_size`, images of all ranks together, is no multiple of `world_size`.
    """
    if batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} does not divide among {world_size} workers")
    share = batch_size // world_size
    order = EpochOrder(len(images), seed)

    def at(step: int) -> BoxBatch:
        rng = np.random.default_rng(step_seed(seed, step, rank))
        start = step * batch_size + rank * share
        positions = range(start, start + share)
        chosen = [first_readable(images, order[p], lambda image: reader.read(image.row)) for p in positions]
        pixels, boxes, extra = [], [], []
        for image, array in chosen:
            tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
            flipped = rng.uniform() < flip
            pixels.append(torch.flip(tensor, [2]) if flipped else tensor)
            boxes.append(flip_horizontal(image.boxes, tensor.shape[2]) if flipped else image.boxes)
            extra.append(flip_horizontal(image.extra, tensor.shape[2]) if flipped else image.extra)
        batch = batch_images(pixels, image_size, max_size, mean, std)
        return BoxBatch(
            images=batch,
            boxes=[batch.to_input(i, b) for i, b in enumerate(boxes)],
            labels=[image.labels for image, _ in chosen],
            extra=[batch.to_input(i, b) for i, b in enumerate(extra)],
            seed=step_seed(seed + 1, step, rank),
        )

    return at


def to_device(batch: BoxBatch, device: str) -> BoxBatch:
    """The same batch with its tensors on `device`."""
    if device == "cpu":
        return batch
    images = replace(batch.images, tensor=batch.images.tensor.to(device, non_blocking=True))
    return BoxBatch(
        images=images,
        boxes=[b.to(device) for b in batch.boxes],
        labels=[b.to(device) for b in batch.labels],
        extra=[b.to(device) for b in batch.extra],
        seed=batch.seed,
    )
