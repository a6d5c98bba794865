"""Region-text pretraining: the student and its losses (paper section 3.3, and the distillation of crops).

B images, R regions (all images together), O other regions, which are not kept, C concepts, D embedding, K stored
teacher probabilities per region.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regionclip_core.config.tree import Config, PretrainConfig
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.text_embeddings import load_embeddings
from regionclip_core.models.towers import region_encoder
from regionclip_core.pretraining.losses import (
    crop_distillation,
    image_text_contrastive,
    region_concept_contrastive,
    region_distillation,
)
from regionclip_core.pretraining.pairs import RegionPairs
from regionclip_core.pretraining.region_batches import RegionBatch, RegionBatches
from regionclip_core.storage.records import Folder
from regionclip_core.training.distributed import common_canvas, gather_rows, rank_count, sum_ranks
from regionclip_core.training.fit import FitResult, Progress, fit


class RegionPretrainer(nn.Module):
    """The student with its losses: only the student's visual encoder is trained.

    Args:
        student: region encoder, starting from the teacher's weights.
        clip: the model whose frozen text encoder embeds the captions.
        concept_embeddings_CD: the pool, float32[C, D], rows of unit length.
        temperature: divides every cosine; the same for the paper's three losses.
    """

    concept_embeddings_CD: Tensor

    def __init__(
        self,
        student: RegionEncoder,
        clip: ClipModel,
        concept_embeddings_CD: Tensor,
        temperature: float,
        settings: PretrainConfig,
    ) -> None:
        super().__init__()
        self.student = student
        self.clip = clip
        self.text_model = clip.model.requires_grad_(False).eval()
        self.register_buffer("concept_embeddings_CD", concept_embeddings_CD, persistent=False)
        self.temperature = temperature
        self.settings = settings

    def forward(self, batch: RegionBatch) -> Mapping[str, Tensor]:
        """Return the losses, each with its weight applied; one of weight 0 is 0, and the fourth one left out.

        Three are the paper's (section 3.3, equations 2-4), the fourth one distils crops.
        """
        settings, concepts_CD, crops = self.settings, self.concept_embeddings_CD, batch.crops

        # One pass of the image encoder for regions and whole images: the box of the image is one more region, so its
        # feature comes from the same RoIAlign and pooling.
        images = common_canvas(batch.images)  # padding changes features, so it has to be that of the global batch
        whole = images.global_boxes(settings.global_box)
        others = [own[:0] for own in batch.boxes] if crops is None else crops.other_boxes
        parts = list(zip(batch.boxes, others, whole, strict=True))
        features = self.student(images.tensor, [torch.cat(part) for part in parts], images.sizes)
        kinds = torch.cat([torch.full((len(boxes),), kind) for part in parts for kind, boxes in enumerate(part)])
        regions_RD, others_OD, images_BD = (features[kinds.to(features.device) == kind] for kind in range(3))

        # Over all ranks: regions per concept of the global batch, and the mean number of regions per rank. A column of
        # the contrast is the embedding of a concept, which every rank has, so no features need to be exchanged.
        # Without `gather_regions` each rank contrasts its own regions only, as the official code does.
        counts_C = divisor = None
        weights_R = batch.score_R if settings.weigh_by_score else None
        if settings.gather_regions:
            counts_C = sum_ranks(torch.bincount(batch.concept_id_R, minlength=len(concepts_CD)))
            divisor = counts_C.sum() / rank_count() if weights_R is None else _per_rank(weights_R)

        # A loss that is not computed keeps its place in the history, and the student its gradient.
        contrastive = distill = image_text = (features.float() * 0.0).sum()
        if settings.contrastive_weight:
            # Hard pseudo labels: each region with its concept, against the other concepts of the batch (equation 2).
            contrastive = region_concept_contrastive(
                regions_RD, concepts_CD, batch.concept_id_R, self.temperature, counts_C, divisor, weights_R
            )
        if settings.distill_weight:
            # Soft labels: the teacher's probabilities over the whole pool (equation 3).
            distill = region_distillation(
                regions_RD,
                concepts_CD,
                batch.top_concepts_RK,
                batch.top_probabilities_RK,
                batch.residual_mass_R,
                self.temperature,
                divisor,
                weights_R,
            )
        if settings.image_text_weight:
            # Whole images with their captions, as in CLIP, keep what the teacher knew (equation 4). The text encoder
            # stays the teacher's: student regions keep being comparable with the pool's embeddings.
            with torch.no_grad():
                texts_BD = self.clip.encode_text(batch.captions)
            image_text = image_text_contrastive(images_BD, texts_BD, self.temperature, gather=gather_rows)
        losses = {
            "loss_region_contrastive": settings.contrastive_weight * contrastive,
            "loss_region_distill": settings.distill_weight * distill,
            "loss_image_text": settings.image_text_weight * image_text,
        }
        if settings.crop_weight:
            # What the teacher sees in each region's own crop, be it kept or not: that needs no name.
            assert crops is not None
            score = torch.cat([batch.score_R, crops.other_score_O])
            weights = score if settings.weigh_by_score else None
            divisor = (
                _per_rank(torch.ones_like(score) if weights is None else weights) if settings.gather_regions else None
            )
            distance = crop_distillation(torch.cat([regions_RD, others_OD]), crops.embeddings, divisor, weights)
            losses["loss_crop"] = settings.crop_weight * distance
        return losses


def _per_rank(weights: Tensor) -> Tensor:
    """Return the mean over ranks of the sum of weights; never 0, by which the losses divide."""
    return sum_ranks(weights.sum()).clamp(min=torch.finfo(weights.dtype).tiny) / rank_count()


def average_weights(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return share * trained + (1 - share) * start of each parameter and floating buffer; others as they are trained.

    What didn't move stays as it is, in every bit.
    """
    return {
        name: torch.lerp(start[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in trained.items()
    }


def make_student(clip: ClipModel, settings: PretrainConfig) -> RegionEncoder:
    """Return the student: a copy of the teacher's visual encoder with its first parts frozen."""
    student = region_encoder(clip)
    student.freeze(settings.freeze_at)
    return student


def pretrain_student(
    student: RegionEncoder,
    clip: ClipModel,
    labels: Folder,
    pairs: Folder,
    config: Config,
    *,
    device: str,
    checkpoints: Folder,
    progress: Progress,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
) -> tuple[FitResult, RegionPairs]:
    """Train `student` in place; afterwards it is on the CPU in evaluation mode. Return the result and the pairs used.

    Raises:
        ValueError: if pairs and embeddings are of different concept pools, there are no pairs, or they lack the crops
            that `crop_weight` needs.
        ErrorRateExceeded: if too many images can't be read.
    """
    settings = config.pretrain
    pool, embeddings_CD = load_embeddings(labels)
    samples = RegionPairs(
        pairs,
        config.seed,
        pool.digest,
        max_error_rate=config.execution.max_error_rate,
        crops=settings.crop_weight > 0,
    )
    temperature = settings.temperature or 1 / clip.logit_scale
    trainer = RegionPretrainer(student, clip, embeddings_CD, temperature, settings).to(device)
    student.train()
    student.recompute_activations = config.execution.recompute_activations
    student.images_at_once = config.execution.images_at_once
    result = fit(
        trainer,
        RegionBatches(samples, settings, clip.mean, clip.std, config.seed, rank, world_size),
        optim=settings.optim,
        steps=settings.steps,
        seed=config.seed,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        batch_size=settings.batch_size,
        rank=rank,
        world_size=world_size,
        loader_workers=loader_workers,
        unreadable=samples.unreadable,
    )
    student.cpu().eval()
    clip.model.cpu()
    return result, samples
