"""The batches of pretraining: pairs decoded, flipped and resized, with a random subset of regions where there are many.

B images, R regions (all images together), O other regions, which are not kept, K stored teacher probabilities per
region, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from regionclip_core.config.tree import PretrainConfig
from regionclip_core.ops.boxes import flip_horizontal
from regionclip_core.ops.image_batch import Batch, ImageBatch, pixel_batch
from regionclip_core.pretraining.pairs import RegionPairs, RegionSample
from regionclip_core.training.fit import step_seed


@dataclass(frozen=True)
class CropTargets(Batch):
    """What the crop distillation takes beside a batch's regions."""

    other_boxes: list[Tensor]
    """One float32[O_i, 4] per image, as `RegionBatch.boxes`."""
    other_score_O: Tensor
    embeddings: Tensor
    """float16[R + O, D]: of the regions of all images, then of the others."""


@dataclass(frozen=True)
class RegionBatch(Batch):
    """One rank's part of a step: images with their labelled regions and one caption each."""

    images: ImageBatch
    boxes: list[Tensor]
    """One float32[R_i, 4] per image, xyxy, pixels of the network's input."""
    concept_id_R: Tensor
    top_concepts_RK: Tensor
    top_probabilities_RK: Tensor
    residual_mass_R: Tensor
    captions: list[str]
    score_R: Tensor
    crops: CropTargets | None = None


@dataclass(frozen=True)
class RegionBatches:
    """Reads this rank's share of the global batch of a step: `batches(step)`. Small when pickled."""

    samples: RegionPairs
    settings: PretrainConfig
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    rank: int = 0
    world_size: int = 1

    def __call__(self, step: int) -> RegionBatch:
        """Return the batch of a 0-based step."""
        samples = self.samples.batch(step, self.settings.batch_size, self.rank, self.world_size)
        return collate(samples, self.settings, self.mean, self.std, self.seed, step, self.rank, self.world_size)


def collate(
    samples: Sequence[RegionSample],
    settings: PretrainConfig,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    step: int,
    rank: int = 0,
    world_size: int = 1,
) -> RegionBatch:
    """Return a batch of samples: decoded, flipped and resized, with a random subset of regions if there are too many.

    `samples` have every `world_size`-th position of the global batch from `rank` on. What is drawn for a sample
    depends on its position alone, so it is the same for any number of ranks.
    """
    images, picks, captions = [], [], []
    boxes: list[Tensor] = []
    others: list[Tensor] = []
    for number, sample in enumerate(samples):
        rng = np.random.default_rng(step_seed(seed, step, number * world_size + rank))
        image = sample.image
        pick = np.sort(rng.permutation(len(sample.boxes))[: settings.regions_per_image])
        flip = rng.uniform() < settings.flip
        captions.append(sample.captions[rng.integers(len(sample.captions))])
        # The last draw, so that the kept regions are the same without others.
        other = np.sort(rng.permutation(len(sample.other_boxes))[: settings.regions_per_image])
        for found, chosen in ((boxes, sample.boxes[pick]), (others, sample.other_boxes[other])):
            found.append(flip_horizontal(chosen, image.shape[2]) if flip else chosen)
        images.append(torch.flip(image, [2]) if flip else image)
        picks.append((pick, other))
    batch = pixel_batch(images, settings.image_size, settings.max_size, mean, std, settings.resize)

    def regions(name: str) -> Tensor:
        return torch.cat([getattr(s, name)[pick] for s, (pick, _) in zip(samples, picks, strict=True)])

    crops = None
    found_crops = [sample.crops for sample in samples if sample.crops is not None]
    if found_crops:
        rows = [
            (own, pick, len(s.boxes) + other) for s, own, (pick, other) in zip(samples, found_crops, picks, strict=True)
        ]
        crops = CropTargets(
            other_boxes=[batch.to_input(i, b) for i, b in enumerate(others)],
            other_score_O=torch.cat([s.other_score[other] for s, (_, other) in zip(samples, picks, strict=True)]),
            embeddings=torch.cat([own[pick] for own, pick, _ in rows] + [own[other] for own, _, other in rows]),
        )

    return RegionBatch(
        images=batch,
        boxes=[batch.to_input(i, b) for i, b in enumerate(boxes)],
        concept_id_R=regions("concept_id"),
        top_concepts_RK=regions("top_concepts"),
        top_probabilities_RK=regions("top_probabilities"),
        residual_mass_R=regions("residual_mass"),
        captions=captions,
        score_R=regions("score"),
        crops=crops,
    )
