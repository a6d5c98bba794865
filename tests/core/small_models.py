"""Small whole models in folders, as `regionclip export` writes them, without the run that they would come from."""

from __future__ import annotations

from pathlib import Path

import torch
from small_artifacts import VOCABULARY, tiny_clip

from regionclip_core.config.tree import ProposalsConfig, RpnConfig
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import save_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.network import ProposalNetwork
from regionclip_core.proposals.proposers import NetworkBoxes
from regionclip_core.storage.folder import Folder


def small_detector(clip: ClipModel | None = None) -> RegionModel:
    """A detector of cat, dog, bus and cup with random weights, which finds something; names are embedded by `clip`."""
    clip = clip or tiny_clip()
    rpn = RpnConfig(width=4, image_size=64, anchor_sizes=(8, 16))
    torch.manual_seed(1)
    names = VOCABULARY.names
    detector = OpenVocabularyDetector(region_encoder(clip), torch.randn(len(names), clip.embed_dim), names, 0.05).eval()
    torch.nn.init.normal_(detector.box_regressor.weight, std=0.3)
    return RegionModel(
        detector,
        VOCABULARY,
        detector.class_embeddings,
        Preprocess(64, 120, clip.mean, clip.std),
        InferenceSettings(score_threshold=0.02, max_detections=20),
        clip.name,
        clip.architecture,
        NetworkBoxes(ProposalNetwork(rpn).eval(), rpn, ProposalsConfig(splits=(), max_regions=12)),
        clip,
    )


def write_small_detector(folder: Path, clip: ClipModel | None = None) -> RegionModel:
    """Write `small_detector` into a folder."""
    model = small_detector(clip)
    save_model(Folder(str(folder)), model, "# A card\n")
    return model
