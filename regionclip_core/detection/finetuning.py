"""Finetuning an open-vocabulary detector on base boxes and precomputed proposals (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from regionclip_core.config.tree import Config, FinetuneConfig
from regionclip_core.datasets.images import ImageReader
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.models.towers import region_encoder
from regionclip_core.storage.records import Folder
from regionclip_core.training.boxed_images import BoxBatch, BoxBatches, BoxedImage, BoxedImages, boxed_images
from regionclip_core.training.distributed import common_canvas
from regionclip_core.training.fit import FitResult, Progress, fit
from regionclip_core.training.sampling import repeat_factors
from regionclip_core.training.unreadable_images import UnreadableImages

BACKGROUND_LR_FACTOR = 10.0  # this one scalar has to change by units, the weights by thousandths


class DetectorTrainer(nn.Module):
    """A detector whose forward is its losses."""

    def __init__(self, detector: OpenVocabularyDetector, settings: FinetuneConfig) -> None:
        super().__init__()
        self.detector = detector
        self.settings = settings

    def forward(self, batch: BoxBatch) -> Mapping[str, Tensor]:
        """Return the detector's losses; the batch's `extra` boxes are the proposals."""
        images = common_canvas(batch.images)
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        boxes = (batch.extra, batch.boxes, batch.labels)
        return self.detector.loss(images.tensor, *boxes, self.settings, generators, batch.masks, images.sizes)


@dataclass(frozen=True)
class FinetuneData:
    """What a detector is finetuned on: images with boxes, their proposals, and the names of the labels."""

    images: BoxedImages | Sequence[BoxedImage]
    names: tuple[str, ...]
    unreadable: UnreadableImages
    """Takes the images that turn out unreadable."""
    factors: npt.NDArray[np.float64] | None = None
    """How often each image comes in an epoch; None is once."""


def finetune_data(config: Config, data: Folder, proposals: Folder, all_categories: bool) -> FinetuneData:
    """Read `finetune.split`: images with the boxes of base categories (or of all: the oracle) and their proposals.

    Labels become rows of `names`. Images without proposals (unreadable ones) are left out. Masks come with
    `finetune.mask_head`.

    Raises:
        ValueError: if no image is left, or a mask head is to be trained and an image has no masks.
    """
    vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
    allowed = list(range(len(vocabulary))) if all_categories else vocabulary.base_ids
    row_of = {label: row for row, label in enumerate(allowed)}
    images = boxed_images(data, config.finetune.split, allowed, config.finetune.mask_head, proposals)
    factors = None
    if config.finetune.sampling == "repeat_factor":
        factors = repeat_factors(images.labels, config.finetune.repeat_threshold)
    images = replace(images, numbers=row_of)
    names = tuple(vocabulary.names[label] for label in allowed)
    return FinetuneData(images, names, UnreadableImages(len(images), config.execution.max_error_rate), factors)


def build_detector(clip: ClipModel, names: tuple[str, ...], config: Config) -> OpenVocabularyDetector:
    """Return an untrained detector with the CLIP model's visual encoder and seeded random weights elsewhere."""
    encoder = region_encoder(clip)
    encoder.freeze(config.finetune.freeze_at)
    encoder.recompute_activations = config.execution.recompute_activations
    encoder.images_at_once = config.execution.images_at_once
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return OpenVocabularyDetector(
            encoder,
            embed_names(clip, names, config.teacher),
            names,
            config.finetune.temperature or 1 / clip.logit_scale,
            config.finetune.background,
            config.finetune.mask_head,
        )


def finetune_detector(
    detector: OpenVocabularyDetector,
    clip: ClipModel,
    training: FinetuneData,
    data: Folder,
    config: Config,
    *,
    device: str,
    checkpoints: Folder,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
) -> FitResult:
    """Train `detector` in place; afterwards it is on the CPU in evaluation mode."""
    settings = config.finetune
    batches = BoxBatches(
        images=training.images,
        reader=ImageReader(data),
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        max_size=settings.max_size,
        flip=settings.flip,
        mean=clip.mean,
        std=clip.std,
        seed=config.seed,
        rank=rank,
        world_size=world_size,
        train_sizes=settings.train_sizes,
        factors=training.factors,
        unreadable=training.unreadable,
    )
    detector.to(device).eval()
    if settings.background == "learnable":  # before training it is as likely as all categories together
        first = batches(0).to(device)
        detector.calibrate_background(common_canvas(first.images).tensor, first.extra, first.images.sizes)
    detector.train()
    result = fit(
        DetectorTrainer(detector, settings),
        batches,
        optim=settings.optim,
        steps=settings.steps,
        seed=config.seed,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        batch_size=settings.batch_size,
        rank=rank,
        world_size=world_size,
        lr_factors={"detector.background_logit": BACKGROUND_LR_FACTOR},
        loader_workers=loader_workers,
        unreadable=training.unreadable,
    )
    detector.cpu().eval()
    return result
