"""Region-text pretraining: the student and its three losses (paper section 3.3).

B images, R regions (all images together), C concepts, D embedding, K stored teacher probabilities per region.
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
from regionclip_core.pretraining.losses import image_text_contrastive, region_concept_contrastive, region_distillation
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
        temperature: divides every cosine; the same for the three losses.
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
        """Return the three losses (paper section 3.3, equations 2-4), each with its weight applied."""
        settings, concepts_CD = self.settings, self.concept_embeddings_CD

        # One pass of the image encoder for regions and whole images: the box of the image is one more region, so its
        # feature comes from the same RoIAlign and pooling.
        images = common_canvas(batch.images)  # padding changes features, so it has to be that of the global batch
        whole = images.global_boxes(settings.global_box)
        boxes = [torch.cat([regions, image]) for regions, image in zip(batch.boxes, whole, strict=True)]
        features = self.student(images.tensor, boxes, images.sizes)
        is_global = torch.cat([torch.tensor([False] * (len(b) - 1) + [True]) for b in boxes]).to(features.device)
        regions_RD, images_BD = features[~is_global], features[is_global]

        # The text encoder stays the teacher's: student regions keep being comparable with the pool's embeddings.
        with torch.no_grad():
            texts_BD = self.clip.encode_text(batch.captions)

        # Over all ranks: regions per concept of the global batch, and the mean number of regions per rank. A column of
        # the contrast is the embedding of a concept, which every rank has, so no features need to be exchanged.
        # Without `gather_regions` each rank contrasts its own regions only, as the official code does.
        counts_C = divisor = None
        if settings.gather_regions:
            counts_C = sum_ranks(torch.bincount(batch.concept_id_R, minlength=len(concepts_CD)))
            divisor = counts_C.sum() / rank_count()

        # Hard pseudo labels: each region with its concept, against the other concepts of the batch (equation 2).
        contrastive = region_concept_contrastive(
            regions_RD, concepts_CD, batch.concept_id_R, self.temperature, counts_C, divisor
        )
        # Soft labels: the teacher's probabilities over the whole pool (equation 3).
        distill = region_distillation(
            regions_RD,
            concepts_CD,
            batch.top_concepts_RK,
            batch.top_probabilities_RK,
            batch.residual_mass_R,
            self.temperature,
            divisor,
        )
        # Whole images with their captions, as in CLIP, keep what the teacher knew (equation 4).
        image_text = image_text_contrastive(images_BD, texts_BD, self.temperature, gather=gather_rows)
        return {
            "loss_region_contrastive": settings.contrastive_weight * contrastive,
            "loss_region_distill": settings.distill_weight * distill,
            "loss_image_text": settings.image_text_weight * image_text,
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
        ValueError: if pairs and embeddings are of different concept pools, or there are no pairs.
        ErrorRateExceeded: if too many images can't be read.
    """
    settings = config.pretrain
    pool, embeddings_CD = load_embeddings(labels)
    samples = RegionPairs(pairs, config.seed, pool.digest, max_error_rate=config.execution.max_error_rate)
    temperature = settings.temperature or 1 / clip.logit_scale
    trainer = RegionPretrainer(student, clip, embeddings_CD, temperature, settings).to(device)
    student.train()
    student.recompute_activations = config.execution.recompute_activations
    result = fit(
        trainer,
        RegionBatches(samples, settings, clip.mean, clip.std, config.seed, rank, world_size),
        optim=settings.optim,
        steps=settings.steps,
        seed=config.seed,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        rank=rank,
        world_size=world_size,
        loader_workers=loader_workers,
        unreadable=samples.unreadable,
    )
    student.cpu().eval()
    clip.model.cpu()
    return result, samples
