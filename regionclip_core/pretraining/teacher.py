"""CLIP from nothing on image-caption pairs: what stands in for a downloaded teacher.

B images, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from regionclip_core.config.tree import TeacherTraining
from regionclip_core.models.clip import ClipModel
from regionclip_core.pretraining.losses import image_text_contrastive
from regionclip_core.training.distributed import gather_rows, use_global_batch_norms
from regionclip_core.training.fit import step_seed
from regionclip_core.training.image_tally import ImageTally
from regionclip_core.training.sampling import EpochOrder, first_readable

_MAX_LOGIT_SCALE = math.log(100)  # CLIP's own ceiling on the learned temperature


@dataclass(frozen=True)
class CaptionedImage:
    """One training pair: how to get its pixels, and its captions."""

    read: Callable[[], np.ndarray]
    """uint8[H, W, 3], RGB."""
    captions: tuple[str, ...]


@dataclass(frozen=True)
class ClipBatch:
    """One rank's part of a step."""

    images: Tensor  # float32[B, 3, S, S], normalised
    captions: list[str]

    def to(self, device: torch.device | str) -> Self:
        """The same batch with its pixels on `device`; captions become tokens there."""
        return replace(self, images=self.images.to(device, non_blocking=True))


class ClipTrainer(nn.Module):
    """CLIP with its symmetric contrastive loss and learned temperature; batch norms are over all ranks."""

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        use_global_batch_norms(clip.model)
        self.clip = clip
        self.model = clip.model

    def forward(self, batch: ClipBatch) -> Mapping[str, Tensor]:
        """Image-text loss of the global batch (CLIP, equation of section 2.3)."""
        image_BD = self.model.encode_image(batch.images)
        text_BD = self.model.encode_text(self.clip.tokenizer(batch.captions).to(image_BD.device))
        scale = self.model.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
        return {"loss_image_text": image_text_contrastive(image_BD, text_BD, 1 / scale, gather=gather_rows)}


def batch_maker(
    pairs: Sequence[CaptionedImage],
    clip: ClipModel,
    training: TeacherTraining,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    tally: ImageTally | None = None,
) -> Callable[[int], ClipBatch]:
    """A function of the step that reads, crops and flips this rank's share of the global batch.

    Every epoch is a new permutation of `pairs`; a caption is drawn anew each time an image comes. `tally` counts the
    images that are read, and those that can't be.

    Raises:
        ValueError: if there are fewer pairs than one batch takes, or a batch is no multiple of `world_size`.
    """
    if len(pairs) < training.batch_size:
        raise ValueError(
            f"teacher.training: batch_size {training.batch_size} exceeds the {len(pairs)} captioned images"
        )
    if training.batch_size % world_size:
        raise ValueError(f"batch_size {training.batch_size} does not divide among {world_size} workers")
    share = training.batch_size // world_size
    order = EpochOrder(len(pairs), seed)

    def at(step: int) -> ClipBatch:
        images, captions = [], []
        for position in range(rank * share, (rank + 1) * share):
            number = order[step * training.batch_size + position]
            pair, pixels = first_readable(pairs, number, lambda pair: pair.read(), tally)
            # Drawn by the place in the global batch: the same for any number of ranks.
            rng = np.random.default_rng(step_seed(seed, step, position))
            images.append(augment(pixels, clip.image_size, training, rng))
            captions.append(pair.captions[rng.integers(len(pair.captions))])
        return ClipBatch(normalise(np.stack(images), clip), captions)

    return at


def augment(image: np.ndarray, side: int, training: TeacherTraining, rng: np.random.Generator) -> np.ndarray:
    """Random resized square crop and flip: uint8[H, W, 3] -> uint8[side, side, 3]."""
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


def normalise(images: np.ndarray, clip: ClipModel) -> Tensor:
    """uint8[B, S, S, 3] -> float32[B, 3, S, S] with the model's mean and standard deviation."""
    tensor = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(255)
    mean = torch.tensor(clip.mean).view(1, 3, 1, 1)
    std = torch.tensor(clip.std).view(1, 3, 1, 1)
    return ((tensor - mean) / std).contiguous(memory_format=torch.channels_last)
