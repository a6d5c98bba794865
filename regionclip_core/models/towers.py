"""Which region encoder a CLIP model gets: one per kind of image tower."""

from __future__ import annotations

import torch

from regionclip_core.config.architectures import NO_VALUES, tower_of
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.eva_encoder import EvaEncoder
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.resnet_encoder import ResNetEncoder
from regionclip_core.models.siglip_encoder import SiglipEncoder
from regionclip_core.models.vit_encoder import VitEncoder


def region_encoder(clip: ClipModel) -> RegionEncoder:
    """Return the encoder for a CLIP model, with a copy of its visual weights; ValueError for towers that have none.

    In channels-last memory, like the batches: convolutions on a CPU are up to twice as fast.
    """
    tower = tower_of(clip.architecture)
    if clip.value_blocks and not tower.has_values:
        raise ValueError(f"teacher.value_blocks: expected 0 for {clip.name} (came: {clip.value_blocks}): {NO_VALUES}")
    if tower.no_regions is not None:
        raise ValueError(
            f"{clip.name} gives no region features: {tower.no_regions}. Take an RN, ViT, EVA02, "
            "PE-Core or SigLIP architecture; as a teacher alone it can label with labels.mode: crop"
        )
    visual = clip.model.visual
    encoder: RegionEncoder
    if tower.kind == "vit":
        encoder = VitEncoder(visual, clip.value_blocks)
    elif tower.kind == "eva":
        encoder = EvaEncoder(visual, clip.value_blocks)
    else:
        encoder = {"resnet": ResNetEncoder, "siglip": SiglipEncoder}[tower.kind](visual)
    return encoder.to(memory_format=torch.channels_last)
