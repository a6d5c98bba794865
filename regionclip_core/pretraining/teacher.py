"""CLIP trained from scratch on captioned images: the teacher where no published one is used.

B images, D embedding, S side of CLIP's input, N images with captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from torch import Tensor, nn

from regionclip_core.config.tree import TeacherTraining
from regionclip_core.datasets.images import ImageReader, to_tensor
from regionclip_core.datasets.index import read_index_table, split_shards
from regionclip_core.models.clip import ClipModel
from regionclip_core.ops.image_batch import Batch, normalize_and_pad
from regionclip_core.pretraining.losses import image_text_contrastive
from regionclip_core.storage.records import Folder
from regionclip_core.training.distributed import gather_rows, use_global_batch_norms
from regionclip_core.training.fit import step_seed
from regionclip_core.training.row_table import RowTable
from regionclip_core.training.sampling import EpochOrder, first_readable
from regionclip_core.training.unreadable_images import UnreadableImages

_MAX_LOGIT_SCALE = math.log(100)  # CLIP's own ceiling on the learned temperature
_CACHE_BYTES = 512 * 1024**2  # decoded images kept between epochs: all of the embedded world's, a part of more
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

    def __init__(self, rows: RowTable, reader: ImageReader, cache_bytes: int = _CACHE_BYTES) -> None:
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


def captioned_images(data: Folder, splits: Sequence[str]) -> CaptionedImages:
    """Return every readable image of the splits that has a caption, in the order of the index."""

    def tables() -> Iterator[pa.Table]:
        for shard in split_shards(data, splits):
            table = read_index_table(data, shard, columns=_COLUMNS)
            has_caption = pc.greater(pc.list_value_length(table["captions"]), 0)
            yield table.filter(pc.and_(pc.equal(table["status"], "ok"), has_caption))

    return CaptionedImages(RowTable(tables()), ImageReader(data))


@dataclass(frozen=True)
class ClipBatch(Batch):
    """One rank's part of a step."""

    images: Tensor  # float32[B, 3, S, S], normalised
    captions: list[str]


class ClipTrainer(nn.Module):
    """CLIP with its symmetric contrastive loss and learned temperature; batch norms are over all ranks."""

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        use_global_batch_norms(clip.model)
        self.clip = clip
        self.model = clip.model

    def forward(self, batch: ClipBatch) -> Mapping[str, Tensor]:
        """Return the image-text loss of the global batch (CLIP, section 2.3)."""
        image_BD = self.model.encode_image(batch.images)
        text_BD = self.model.encode_text(self.clip.tokenizer(batch.captions).to(image_BD.device))
        scale = self.model.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
        return {"loss_image_text": image_text_contrastive(image_BD, text_BD, 1 / scale, gather=gather_rows)}


def clip_batches(
    images: CaptionedImages | Sequence[CaptionedImage],
    clip: ClipModel,
    training: TeacherTraining,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    unreadable: UnreadableImages | None = None,
) -> Callable[[int], ClipBatch]:
    """Return a function of the step that reads, crops and flips this rank's share of the global batch.

    Every epoch is a new permutation of `images`; a caption is drawn each time an image comes. `unreadable` takes the
    images that can't be read.

    Raises:
        ValueError: if there are fewer images than one batch takes, or a batch is not a multiple of `world_size`.
    """
    if len(images) < training.batch_size:
        raise ValueError(
            f"teacher.training: batch_size {training.batch_size} exceeds the {len(images)} captioned images"
        )
    if training.batch_size % world_size:
        raise ValueError(f"batch_size {training.batch_size} does not divide among {world_size} workers")
    positions = range(rank * training.batch_size // world_size, (rank + 1) * training.batch_size // world_size)
    order = EpochOrder(len(images), seed)
    unreadable = unreadable or UnreadableImages(len(images))

    def at(step: int) -> ClipBatch:
        pixels, captions = [], []
        for position in positions:
            image, array = first_readable(
                lambda place: images[order[place]],
                step * training.batch_size + position,
                lambda image: image.read(),
                unreadable,
            )
            # Seeded by the position in the global batch: the same for any number of ranks.
            rng = np.random.default_rng(step_seed(seed, step, position))
            pixels.append(to_tensor(augment(array, clip.image_size, training, rng)))
            captions.append(image.captions[rng.integers(len(image.captions))])
        return ClipBatch(normalize_and_pad(pixels, clip.mean, clip.std), captions)

    return at


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
