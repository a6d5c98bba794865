"""How time and memory grow with the regions of an image, the concepts of the pool, and the images of a run."""

from __future__ import annotations

import tempfile

import torch
from bench_scale import in_process
from made_inputs import Scale, make_boxes, make_clip, make_embeddings, make_image
from measuring import Cost, Growth, cost_of
from torch import Tensor

from regionclip_core.models.towers import region_encoder
from regionclip_core.pretraining.losses import region_concept_contrastive, region_distillation
from regionclip_core.pretraining.pseudo_labels import pseudo_labels


@torch.inference_mode()
def grow_regions(scale: Scale) -> Growth:
    """Encode more and more regions of one image, backbone included."""
    encoder = region_encoder(make_clip(scale.toy)).to(memory_format=torch.channels_last).eval()
    image = make_image(scale).contiguous(memory_format=torch.channels_last)
    encoder(image, [make_boxes(2, scale.height, scale.width)])
    costs = [
        cost_of(lambda count=count: encoder(image, [make_boxes(count, scale.height, scale.width)]))[0]
        for count in scale.region_steps
    ]
    return Growth("backbone and regions of an image", scale.region_steps, costs)


def grow_concepts(scale: Scale) -> Growth:
    """Label regions, and take both region losses with their gradients, with larger and larger pools."""
    regions = make_embeddings(scale.regions[0], seed=0)

    def step(concepts: Tensor) -> None:
        labels = pseudo_labels(regions, concepts, 0.01, 0.0, top_k=64)
        student = regions.clone().requires_grad_(True)
        contrast = region_concept_contrastive(student, concepts, labels.concept_id, 0.01)
        top = labels.top_concepts, labels.top_probabilities, labels.residual_mass
        (contrast + region_distillation(student, concepts, *top, 0.01)).backward()

    step(make_embeddings(scale.concept_steps[0]))
    pools = [make_embeddings(count) for count in scale.concept_steps]
    costs = [cost_of(lambda pool=pool: step(pool))[0] for pool in pools]
    return Growth(f"labels and losses of {scale.regions[0]} regions, concepts", scale.concept_steps, costs)


def grow_images(scale: Scale) -> list[Growth]:
    """Run every stage over few images and ten times as many, on the embedded world with tiny images.

    Seconds are of the clock here, memory is the process's own (`own` of bench_scale.py). Trainings take two steps.
    """
    counts, size, found = (scale.stage_images, 10 * scale.stage_images), scale.stage_images // 2, []
    with tempfile.TemporaryDirectory() as place:
        for stage in scale.stages:
            costs = []
            for images in counts:
                run = in_process("stage", workspace=f"{place}/{images}", stage=stage, images=images, shard_size=size)
                costs.append(Cost(run["seconds"], run["own"]))
            found.append(Growth(f"{stage}, images", counts, costs))
    return found
