"""Training images with boxes, and the batches of a step; `boxed_images` finds them in a split.

B images, G annotated boxes of one image.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow
from regionclip_core.ops.boxes import flip_horizontal
from regionclip_core.ops.image_batch import ImageBatch, batch_images
from regionclip_core.ops.masks import ImageMasks
from regionclip_core.training.fit import step_seed
from regionclip_core.training.image_tally import ImageTally
from regionclip_core.training.sampling import EpochOrder, RepeatOrder, first_readable


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
    masks: Sequence[bytes] | None = None
    """COCO's compressed run lengths, one mask a box, original pixels; None where they weren't asked for."""


@dataclass(frozen=True)
class BoxBatch:
    """One rank's part of a step, boxes in pixels of the network's input."""

    images: ImageBatch
    boxes: list[Tensor]
    labels: list[Tensor]
    extra: list[Tensor]
    seeds: list[int]
    """One an image; seeds whatever the losses sample."""
    masks: list[ImageMasks] | None = None
    """One an image, where the images have masks."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its tensors on `device`; masks stay coded until a loss draws them."""
        return replace(
            self,
            images=self.images.to(device),
            boxes=[boxes.to(device) for boxes in self.boxes],
            labels=[labels.to(device) for labels in self.labels],
            extra=[boxes.to(device) for boxes in self.extra],
        )


def labelled_boxes(row: IndexRow, allowed: Collection[int]) -> tuple[Tensor, Tensor]:
    """float32[G, 4] boxes and int64[G] labels of the row's objects of the allowed categories, crowds left out."""
    kept = usable_boxes(row, allowed)
    return torch.from_numpy(row.boxes[kept]), torch.from_numpy(row.box_labels[kept]).long()


def usable_boxes(row: IndexRow, allowed: Collection[int]) -> npt.NDArray[np.bool_]:
    """bool[n]: the row's objects of the allowed categories, crowds left out."""
    return np.isin(row.box_labels, list(allowed)) & ~row.box_crowd


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
    train_sizes: Sequence[int] = (),
    factors: npt.NDArray[np.float64] | None = None,
    tally: ImageTally | None = None,
) -> Callable[[int], BoxBatch]:
    """A function of the step: this rank's share of a global batch, drawn epoch by epoch from permutations.

    What is drawn for an image depends on its place in the global batch, not on the rank that has it.

    Args:
        image_size: shorter side of the input, pixels; with `train_sizes` it is drawn from these, image by image.
        factors: how often each image comes in an epoch, see `repeat_factors`; None is once.
        tally: counts the images that are read, and those that can't be.

    Raises:
        ValueError: if `batch_size`, images of all ranks together, is no multiple of `world_size`.
    """
    if batch_size % world_size:
        raise ValueError(f"batch_size {batch_size} does not divide among {world_size} workers")
    share = batch_size // world_size
    order = EpochOrder(len(images), seed) if factors is None else RepeatOrder(factors, seed)

    def at(step: int) -> BoxBatch:
        positions = range(rank * share, (rank + 1) * share)
        numbers = [order[step * batch_size + position] for position in positions]
        chosen = [first_readable(images, number, lambda image: reader.read(image.row), tally) for number in numbers]
        pixels, boxes, extra, flips, sizes = [], [], [], [], []
        for position, (image, array) in zip(positions, chosen, strict=True):
            rng = np.random.default_rng(step_seed(seed, step, position))
            tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))
            flipped = bool(rng.uniform() < flip)
            flips.append(flipped)
            sizes.append(int(rng.choice(train_sizes)) if train_sizes else image_size)
            pixels.append(torch.flip(tensor, [2]) if flipped else tensor)
            boxes.append(flip_horizontal(image.boxes, tensor.shape[2]) if flipped else image.boxes)
            extra.append(flip_horizontal(image.extra, tensor.shape[2]) if flipped else image.extra)
        batch = batch_images(pixels, sizes, max_size, mean, std)
        return BoxBatch(
            images=batch,
            boxes=[batch.to_input(i, b) for i, b in enumerate(boxes)],
            labels=[image.labels for image, _ in chosen],
            extra=[batch.to_input(i, b) for i, b in enumerate(extra)],
            seeds=[step_seed(seed + 1, step, position) for position in positions],
            masks=_batch_masks([image for image, _ in chosen], batch, flips),
        )

    return at


def _batch_masks(images: Sequence[BoxedImage], batch: ImageBatch, flips: Sequence[bool]) -> list[ImageMasks] | None:
    masks = [
        ImageMasks(image.masks, batch.original_sizes[i], batch.sizes[i], flips[i])
        for i, image in enumerate(images)
        if image.masks is not None
    ]
    return masks if len(masks) == len(images) else None
