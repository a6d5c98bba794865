"""A detector of a run as one model: its weights, its proposal network, the run's categories and settings."""

from __future__ import annotations

from regionclip_core.config.tree import Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import load_detector
from regionclip_core.detection.finder import NameEncoder
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import LoadedModel, Preprocess, model_config
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.proposals.rpn_folder import load_network, rpn_section
from regionclip_core.storage.records import Folder

DETECTORS = {"regionclip": "pretrain", "clip": "teacher", "oracle": "pretrain"}
"""The finetune stage's detectors, and the stage whose CLIP model each started from."""


def detector_of_run(
    config: Config, detectors: Folder, clip: ClipModel, rpn: Folder | None, vocabulary: Vocabulary, name: str
) -> LoadedModel:
    """The detector `name` as the evaluate stage runs it: all categories, novel ones included, embedded by its CLIP.

    `detectors` and `rpn` are the artifacts of finetune and rpn, `clip` the model in the artifact that DETECTORS names.

    Raises:
        ValueError: if the run has no such detector.
    """
    if not detectors.exists(f"{name}.json"):
        there = [known for known in DETECTORS if detectors.exists(f"{known}.json")]
        raise ValueError(f"this run has no detector {name!r}, only {there}; choose one with --name")
    detector = load_detector(detectors, stem=name)
    detector.set_vocabulary(embed_names(clip, vocabulary.names, config.teacher), vocabulary.names)
    settings = config.evaluate
    description = model_config(
        clip_architecture=clip.architecture,
        clip_name=clip.name,
        names=vocabulary.names,
        temperature=detector.temperature,
        background=detector.background,
        mask_head=detector.mask_head is not None,
        preprocess=Preprocess(settings.image_size, settings.max_size, clip.mean, clip.std),
        inference=InferenceSettings.from_config(settings, finetuned=True),
        rpn=None if rpn is None else rpn_section(config.rpn, config.proposals),
    )
    network = None if rpn is None else load_network(rpn, config.rpn)
    return LoadedModel(detector.eval(), network, description, vocabulary, clip)


def run_encoder(clip: ClipModel, config: Config) -> NameEncoder:
    """Embeds names as the run does: its prompts, and published embeddings where it names them."""
    return lambda names: embed_names(clip, tuple(names), config.teacher)
