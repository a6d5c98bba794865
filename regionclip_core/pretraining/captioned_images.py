"""Captioned images, from which the teacher is trained: the images of splits, and the batch of a step.

B images, S side of CLIP's input, N images with captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from torch import Tensor

from regionclip_core.config.tree import TeacherTraining
from regionclip_core.datasets.images import ImageReader, to_tensor
from regionclip_core.datasets.index import read_index_table, split_shards
from regionclip_core.ops.image_batch import Batch, normalize_and_pad
from regionclip_core.storage.records import Folder
from regionclip_core.training.fit import step_seed
from regionclip_core.training.row_table import RowTable
from regionclip_core.training.sampling import EpochOrder, first_readable, rank_positions
from regionclip_core.training.unreadable_images import UnreadableImages

CACHE_BYTES = 512 * 1024**2
"""Decoded images kept between epochs by all readers of one training process: all of the embedded world's, a part of
more."""
_COLUMNS = ("key", "status", "reason", "image_id", "url", "offset", "size", "width", "height", "captions")


@dataclass(frozen=True)
class CaptionedImage:
    """One training pair: how to get its pixels, and its captions."""

    key: str
    read: Callable[[], npt.NDArray[np.uint8]]
    """uint8[H, W, 3], RGB. The caller must not write into it."""
    captions: tuple[str, ...]


class CaptionedImages:
    """N images with captions; decoded images are kept up to a budget, rows and captions are read when asked for."""

    def __init__(self, rows: RowTable, reader: ImageReader, cache_bytes: int = CACHE_BYTES) -> None:
        """`rows`: each readable and with a caption."""
        self._rows, self._reader = rows, reader
        self._cache_bytes_left = cache_bytes
        self._cache: dict[int, npt.NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        """N."""
        return len(self._rows)

    def __getitem__(self, number: int) -> CaptionedImage:
        """Return the image of this number, 0 to N - 1."""
        captions = tuple(self._rows.value("captions", number))
        return CaptionedImage(self._rows.value("key", number), partial(self._read, number), captions)

    def _read(self, number: int) -> npt.NDArray[np.uint8]:
        """Return the image. A full cache keeps what it has, so each epoch, in any order, finds the same share in it."""
        image = self._cache.get(number)
        if image is None:
            image = self._reader.read(self._rows[number])
            if image.nbytes <= self._cache_bytes_left:
                self._cache_bytes_left -= image.nbytes
                self._cache[number] = image
        return image


def captioned_images(data: Folder, splits: Sequence[str], readers: int = 1) -> CaptionedImages:
    """Return every readable image of the splits that has a caption, in the order of the index.

    `readers`: processes that get a copy of the result; they share the memory for decoded images.
    """

    def tables() -> Iterator[pa.Table]:
        for shard in split_shards(data, splits):
            table = read_index_table(data, shard, columns=_COLUMNS)
            has_caption = pc.greater(pc.list_value_length(table["captions"]), 0)
            yield table.filter(pc.and_(pc.equal(table["status"], "ok"), has_caption))

    return CaptionedImages(RowTable(tables()), ImageReader(data), CACHE_BYTES // readers)


@dataclass(frozen=True)
class ClipBatch(Batch):
    """One rank's part of a step."""

    images: Tensor  # float32[B, 3, S, S], normalised
    captions: list[str]


@dataclass(kw_only=True)
class ClipBatches:
    """Reads, crops and flips this rank's share of the global batch of a step: `batches(step)`. Small when pickled.

    Every epoch is a new permutation of `images`; a caption is drawn each time an image comes.

    Raises:
        ValueError: if there are fewer images than one batch takes, or a batch is not a multiple of `world_size`.
    """

    images: CaptionedImages | Sequence[CaptionedImage]
    training: TeacherTraining
    image_size: int
    """S."""
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    rank: int = 0
    world_size: int = 1
    unreadable: UnreadableImages = field(default_factory=UnreadableImages)
    """Takes the images that can't be read."""

    def __post_init__(self) -> None:
        size = self.training.batch_size
        if len(self.images) < size:
            raise ValueError(f"teacher.training: batch_size {size} exceeds the {len(self.images)} captioned images")
        self._positions = rank_positions(size, self.rank, self.world_size)
        self._order = EpochOrder(len(self.images), self.seed)

    def __call__(self, step: int) -> ClipBatch:
        """Return the batch of a 0-based step."""
        pixels, captions = [], []
        for position in self._positions:
            image, array = first_readable(
                lambda place: self.images[self._order[place]],
                step * self.training.batch_size + position,
                lambda image: image.read(),
                self.unreadable,
            )
            # Seeded by the position in the global batch: the same for any number of ranks.
            rng = np.random.default_rng(step_seed(self.seed, step, position))
            pixels.append(to_tensor(augment(array, self.image_size, self.training, rng)))
            captions.append(image.captions[rng.integers(len(image.captions))])
        return ClipBatch(normalize_and_pad(pixels, self.mean, self.std), captions)


def augment(
    image: npt.NDArray[np.uint8], side: int, training: TeacherTraining, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Crop at random, resize and flip: uint8[H, W, 3] -> uint8[side, side, 3]."""
    height, width = image.shape[:2]
    area = rng.uniform(training.min_crop, 1.0)
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    crop_w = min(width, math.sqrt(area * ratio) * width)
    crop_h = min(height, math.sqrt(area / ratio) * height)
    left = rng.uniform(0, width - crop_w)
    top = rng.uniform(0, height - crop_h)
    box = (left, top, left + crop_w, top + crop_h)
    resized = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box=box)
    pixels = np.asarray(resized)
    return pixels[:, ::-1] if rng.uniform() < training.flip else pixels
