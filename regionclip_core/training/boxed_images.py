"""Images with boxes, from which rpn and finetune learn: the images of a split, and the batch of a step.

B images of one rank's batch, n objects of one image, G of them that training may see, P proposals. Boxes are xyxy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.index import IndexRow, read_index_table, require_same_images, split_shards
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.ops.boxes import flip_horizontal
from regionclip_core.ops.image_batch import Batch, ImageBatch, pixel_batch
from regionclip_core.ops.masks import ImageMasks
from regionclip_core.storage.records import Folder
from regionclip_core.storage.tables import INDEX, PROPOSED, read_proposal_table
from regionclip_core.training.fit import step_seed
from regionclip_core.training.row_table import RowTable
from regionclip_core.training.sampling import EpochOrder, RepeatOrder, first_readable, rank_positions
from regionclip_core.training.unreadable_images import UnreadableImages


@dataclass(frozen=True)
class BoxedImage:
    """One image with the boxes that training may see."""

    row: IndexRow
    boxes: Tensor
    """float32[G, 4], original pixels."""
    labels: Tensor
    """int64[G], rows of the vocabulary."""
    extra: Tensor
    """float32[P, 4]: more boxes that follow the image's transforms (proposals); may be empty."""
    masks: Sequence[bytes] | None = None
    """COCO's compressed run lengths, one mask per box, original pixels; None if they weren't asked for."""

    @property
    def key(self) -> str:
        """The image's key in its split."""
        return self.row.key


@dataclass(frozen=True)
class BoxedImages:
    """N images, each made from its row on disk when it is asked for: memory doesn't grow with the split."""

    rows: RowTable
    allowed: tuple[int, ...]
    """Labels of the boxes that training may see, rows of the vocabulary."""
    masks: bool = False
    """Whether the boxes' masks come too."""
    proposals: bool = False
    """Whether the rows have proposals."""
    numbers: Mapping[int, int] | None = None
    """New labels by old ones; None leaves them as in the vocabulary."""

    def __len__(self) -> int:
        """N."""
        return len(self.rows)

    def __getitem__(self, number: int) -> BoxedImage:
        """Return the image of this number, 0 to N - 1."""
        row = self.rows[number]
        boxes, labels = labelled_boxes(row, self.allowed)
        if self.numbers is not None:
            labels = torch.tensor([self.numbers[label] for label in labels.tolist()])
        extra = torch.from_numpy(self.rows.boxes(PROPOSED.name, number)) if self.proposals else torch.zeros(0, 4)
        used = np.flatnonzero(_usable(row.box_labels, row.box_crowd, self.allowed)).tolist()
        masks = [row.box_masks[i] for i in used] if self.masks else None
        return BoxedImage(replace(row, box_masks=()), boxes, labels, extra, masks)

    def labels(self) -> Iterator[npt.NDArray[np.int32]]:
        """Yield int32[G] of each image in order, labels as in the vocabulary."""
        for labels, crowd in zip(self.rows.lists("box_labels"), self.rows.lists("box_crowd"), strict=True):
            yield labels[_usable(labels, crowd, self.allowed)]


def labelled_boxes(row: IndexRow, allowed: Collection[int]) -> tuple[Tensor, Tensor]:
    """Return float32[G, 4] boxes and int64[G] labels of the row's objects of the allowed categories, without crowds."""
    kept = _usable(row.box_labels, row.box_crowd, allowed)
    return torch.from_numpy(row.boxes[kept]), torch.from_numpy(row.box_labels[kept]).long()


def _usable(labels: npt.NDArray[Any], crowd: npt.NDArray[Any], allowed: Collection[int]) -> npt.NDArray[np.bool_]:
    """Return bool[n]: of an allowed category, and one object (a crowd is a region full of them)."""
    usable: npt.NDArray[np.bool_] = np.isin(labels, list(allowed)) & ~crowd
    return usable


def boxed_images(
    data: Folder, split: str, allowed: Collection[int], masks: bool = False, proposals: Folder | None = None
) -> BoxedImages:
    """Return the readable images of `split` with at least one usable box, in the order of the index.

    Only boxes whose label is in `allowed` exist for the caller: objects of other categories stay in the picture
    without a label, as novel ones must. With `proposals`, an image's proposals are its `extra` boxes, and images that
    the proposals stage could not read are left out. One shard's rows and proposals are in memory at a time.

    Raises:
        ValueError: if no image is left, the index was written with another vocabulary, or masks are wanted that the
            data stage has not read.
    """
    digest = Vocabulary.from_json(data.read_json("categories.json")).digest
    # Masks are most of an index; where nobody asks for them, they needn't be read.
    columns = [name for name in INDEX.names if masks or name != "box_masks"]
    with_boxes = crowds = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal with_boxes, crowds
        for shard in split_shards(data, (split,)):
            table = read_index_table(data, shard, digest, columns)
            keys = table["key"].to_pylist()
            labels, crowd = (pc.list_flatten(table[name]).to_numpy() for name in ("box_labels", "box_crowd"))
            image_of_box = pc.list_parent_indices(table["box_labels"]).to_numpy()
            crowds += int((np.isin(labels, list(allowed)) & crowd).sum())
            has_box = np.zeros(table.num_rows, np.bool_)
            has_box[image_of_box[_usable(labels, crowd, allowed)]] = True
            table = table.filter(pc.and_(pc.equal(table["status"], "ok"), pa.array(has_box)))
            with_boxes += table.num_rows
            if masks:
                boxes, coded = (pc.list_value_length(table[name]).to_numpy() for name in ("boxes", "box_masks"))
                for row in np.flatnonzero(boxes != coded).tolist()[:1]:
                    raise ValueError(
                        f"split {split!r}: image {table['key'][row].as_py()!r} has {boxes[row]} boxes and {coded[row]} "
                        f"masks, but a mask head needs one mask per box; set data.splits.{split}.masks: true (coco and "
                        "lvis splits have it) and run the data stage again, or set finetune.mask_head: false"
                    )
            if proposals is not None:
                found = read_proposal_table(proposals, shard, ("key", "status", "boxes"))
                require_same_images(found["key"].to_pylist(), keys, f"the proposals of shard {shard}")
                found = found.filter(pc.equal(found["status"], "ok"))
                place = pc.index_in(table["key"], value_set=found["key"].combine_chunks())  # null if there are none
                table = table.filter(place.is_valid()).append_column(PROPOSED, found["boxes"].take(place.drop_null()))
            yield table

    rows = RowTable(tables())
    if not with_boxes:
        raise ValueError(
            f"split {split!r} has no image with a box of the wanted categories; training needs some"
            + f": all {crowds} of them are crowds (iscrowd), from which nothing is learned" * (crowds > 0)
        )
    if not len(rows):
        raise ValueError(f"split {split!r}: no image with boxes could be read for proposals")
    return BoxedImages(rows, tuple(sorted(allowed)), masks, proposals is not None)


@dataclass(frozen=True)
class BoxBatch(Batch):
    """One rank's part of a step, boxes in pixels of the network's input."""

    images: ImageBatch
    boxes: list[Tensor]
    labels: list[Tensor]
    extra: list[Tensor]
    seeds: list[int]
    """Seeds for the random draws inside the losses, one per image."""
    masks: list[ImageMasks] | None = None
    """One per image, if the images have masks; coded until a loss needs them."""


@dataclass(kw_only=True)
class BoxBatches:
    """Reads this rank's share of the global batch of a step: `batches(step)`. Small when pickled.

    What is drawn for an image depends on its place in the global batch, not on the rank that has it.

    Raises:
        ValueError: if `batch_size`, images of all ranks together, is not a multiple of `world_size`.
    """

    images: BoxedImages | Sequence[BoxedImage]
    reader: ImageReader
    batch_size: int
    image_size: int
    """Shorter side of the input in pixels; with `train_sizes` each image draws one of those instead."""
    max_size: int
    flip: float
    """Probability that an image is mirrored."""
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    rank: int = 0
    world_size: int = 1
    train_sizes: Sequence[int] = ()
    factors: InitVar[npt.NDArray[np.float64] | None] = None
    """How often each image comes in an epoch, see `repeat_factors`; None is once."""
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)
    """Takes the images that can't be read."""

    def __post_init__(self, factors: npt.NDArray[np.float64] | None) -> None:
        self._positions = rank_positions(self.batch_size, self.rank, self.world_size)
        self._order = EpochOrder(len(self.images), self.seed) if factors is None else RepeatOrder(factors, self.seed)

    def __call__(self, step: int) -> BoxBatch:
        """Return the batch of a 0-based step."""
        chosen, pixels, boxes, extra, flips, sizes = [], [], [], [], [], []
        for position in self._positions:
            image, tensor = first_readable(
                lambda place: self.images[self._order[place]],
                step * self.batch_size + position,
                lambda image: self.reader.read_tensor(image.row),
                self.unreadable,
            )
            rng = np.random.default_rng(step_seed(self.seed, step, position))
            flipped = bool(rng.uniform() < self.flip)
            chosen.append(image)
            flips.append(flipped)
            sizes.append(int(rng.choice(self.train_sizes)) if self.train_sizes else self.image_size)
            pixels.append(torch.flip(tensor, [2]) if flipped else tensor)
            boxes.append(flip_horizontal(image.boxes, tensor.shape[2]) if flipped else image.boxes)
            extra.append(flip_horizontal(image.extra, tensor.shape[2]) if flipped else image.extra)
        batch = pixel_batch(pixels, sizes, self.max_size, self.mean, self.std)
        masks = [
            ImageMasks(image.masks, batch.original_sizes[i], batch.sizes[i], flips[i])
            for i, image in enumerate(chosen)
            if image.masks is not None
        ]
        return BoxBatch(
            images=batch,
            boxes=[batch.to_input(i, b) for i, b in enumerate(boxes)],
            labels=[image.labels for image in chosen],
            extra=[batch.to_input(i, b) for i, b in enumerate(extra)],
            # Not the augmentation's seeds, so that a change in what one of them draws leaves the other as it is.
            seeds=[step_seed(self.seed + 1, step, position) for position in self._positions],
            masks=masks if len(masks) == len(chosen) else None,
        )
