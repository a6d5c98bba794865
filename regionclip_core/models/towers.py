"""Which region encoder a CLIP model gets: one per kind of image tower."""

from __future__ import annotations

import torch

from regionclip_core.config.architectures import tower_of
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.region_encoder import RegionEncoder
from regionclip_core.models.resnet_encoder import ResNetEncoder
from regionclip_core.models.siglip_encoder import SiglipEncoder
from regionclip_core.models.vit_encoder import VitEncoder


def region_encoder(clip: ClipModel) -> RegionEncoder:
    """Return the encoder for a CLIP model, with a copy of its visual weights; ValueError for towers that have none.

    In channels-last memory, like the batches: convolutions on a CPU are up to twice as fast.
    """
    tower = tower_of(clip.architecture)
    if tower.no_regions is not None:
        raise ValueError(
            f"{clip.name} gives no region features: {tower.no_regions}. Take an RN, ViT or SigLIP architecture; as a "
            "teacher alone it can label with labels.mode: crop"
        )
    kinds: dict[str, type[ResNetEncoder | VitEncoder | SiglipEncoder]] = {
        "resnet": ResNetEncoder,
        "vit": VitEncoder,
        "siglip": SiglipEncoder,
    }
    return kinds[tower.kind](clip.model.visual).to(memory_format=torch.channels_last)
