"""Assembly of a RegionModel from a run's artifacts, a detector folder, or a CLIP folder with a proposal network."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional as F

from regionclip_core.config.tree import Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector, load_detector
from regionclip_core.detection.drawings import knows_drawings_only, of_drawings_only
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.model_folder import load_model
from regionclip_core.detection.region_model import Preprocess, RegionModel
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.models.prompt_templates import prompt_templates
from regionclip_core.models.text_embeddings import NamePrompts, embed_names, read_embeddings, read_prompts
from regionclip_core.models.towers import region_encoder
from regionclip_core.proposals.proposers import NetworkBoxes
from regionclip_core.proposals.rpn_folder import find_rpn_folder, load_network, open_network
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import clip_folder, holds_detector

ZERO_SHOT = InferenceSettings(objectness="raw_logit")
"""The official scoring of a CLIP model without finetuning: sqrt(p * logit), background logit 0, boxes as proposed."""
ZERO_SHOT_PROPOSAL_NMS = 0.9
"""IoU of the proposals' NMS in zero-shot detection: proposals are final boxes there, so more of them are kept."""
_OFFICIAL_SIZE = (800, 1333)  # input of a CLIP model that comes without a proposal network


def open_model(
    place: str,
    *,
    rpn: str | None = None,
    text: str | None = None,
    prompts: str | None = None,
    embeddings: str | None = None,
    device: str = "cpu",
    with_text: bool = True,
) -> RegionModel:
    """Open a detector folder, a CLIP folder, or the folder of an imported pretraining file.

    A CLIP model (the student of a pretraining file) classifies without having been finetuned: zero-shot. It sees
    images in the size that its proposal network does.

    Args:
        rpn, text, prompts, embeddings: see `with_parts`.
        with_text: False doesn't load a detector's own text encoder, so new names can't be embedded.

    Raises:
        ValueError: if there is no model, or a part of it doesn't fit.
    """
    if holds_detector(place):
        model = load_model(Folder(place), with_text and text is None)
    else:
        folder = clip_folder(place, "student")
        model = zero_shot(load_clip(folder), read_prompts(folder))
        model = replace(model, drawings_only=of_drawings_only(folder))
        if rpn is None and find_rpn_folder(place) is not None:
            rpn = place
    return with_parts(model, rpn, text, prompts, embeddings).to(device)


def zero_shot(clip: ClipModel, prompts: NamePrompts) -> RegionModel:
    """Return a model that classifies regions with CLIP alone, scored as the official code does without finetuning."""
    none = torch.zeros(0, clip.embed_dim)
    return RegionModel(
        OpenVocabularyDetector(region_encoder(clip), none, (), 1 / clip.logit_scale, "zero").eval(),
        Vocabulary(()),
        none,
        Preprocess(*_OFFICIAL_SIZE, clip.mean, clip.std),
        ZERO_SHOT,
        clip.name,
        clip.architecture,
        text=clip,
        prompts=prompts,
        finetuned=False,
    )


def model_of_run(
    config: Config, detectors: Folder, clip: ClipModel, rpn: Folder | None, vocabulary: Vocabulary, name: str
) -> RegionModel:
    """Return the detector `name` as the evaluate stage runs it: all categories, novel ones included.

    Args:
        detectors: the artifact of finetune; rpn: that of rpn, None where boxes are proposed otherwise.
        clip: the model in the artifact that DETECTORS names; it embeds the categories.
    """
    detector = load_detector(detectors, stem=name)
    detector.set_vocabulary(embed_names(clip, vocabulary.names, config.teacher), vocabulary.names)
    settings = config.evaluate
    return RegionModel(
        detector,
        vocabulary,
        detector.class_embeddings,
        Preprocess(settings.image_size, settings.max_size, clip.mean, clip.std),
        InferenceSettings.from_config(settings, finetuned=True),
        clip.name,
        clip.architecture,
        None if rpn is None else NetworkBoxes(load_network(rpn, config.rpn), config.rpn, config.proposals),
        clip,
        NamePrompts.from_config(config.teacher),
        drawings_only=knows_drawings_only(config, "detector"),
    )


def zero_shot_of_run(config: Config, clip: ClipModel, rpn: Folder | None, vocabulary: Vocabulary) -> RegionModel:
    """Return the run's teacher or student as the evaluate stage scores it zero-shot; for `rpn` see `model_of_run`."""
    settings, embeddings = config.evaluate, embed_names(clip, vocabulary.names, config.teacher)
    model = zero_shot(clip, NamePrompts.from_config(config.teacher))
    model.detector.temperature = config.finetune.temperature or model.detector.temperature
    if settings.zero_shot_background == "none":  # all probability goes to the categories
        model.detector.background_logit.data.fill_(float("-inf"))
    return replace(
        model,
        vocabulary=vocabulary,
        embeddings=embeddings,
        preprocess=Preprocess(settings.image_size, settings.max_size, clip.mean, clip.std),
        inference=replace(InferenceSettings.from_config(settings, finetuned=False), nms_kind="hard"),
        proposer=None if rpn is None else NetworkBoxes(load_network(rpn, config.rpn), config.rpn, config.proposals),
    )


def with_parts(
    model: RegionModel,
    rpn: str | None = None,
    text: str | None = None,
    prompts: str | None = None,
    embeddings: str | None = None,
) -> RegionModel:
    """Return the model with other parts; None keeps its own.

    Args:
        rpn: folder or file of a proposal network.
        text: CLIP or pretrained folder whose text encoder embeds all names, also those that the model has embeddings
            of. The prompts are the folder's, or else the model's.
        prompts: templates (see `prompt_templates`) with which all names are embedded.
        embeddings: folder of published class embeddings, which become the model's vocabulary; other names are embedded
            as without it.
    """
    if rpn is not None:
        network, rpn_config, proposals = open_network(rpn)
        if not model.finetuned:
            proposals = proposals.model_copy(update={"nms": ZERO_SHOT_PROPOSAL_NMS})
            size = replace(model.preprocess, image_size=rpn_config.image_size, max_size=rpn_config.max_size)
            model = replace(model, preprocess=size)
        model = replace(model, proposer=NetworkBoxes(network, rpn_config, proposals))
    if text is not None:
        source = clip_folder(text, "student")
        usual = read_prompts(source, default=replace(model.prompts, published=()))
        model = replace(model, text=load_clip(source), prompts=usual, keeps_embeddings=False, _made={})
    if prompts is not None:
        chosen = replace(model.prompts, templates=prompt_templates(prompts, "--prompts"), published=())
        model = replace(model, prompts=chosen, keeps_embeddings=False, _made={})
    if embeddings is not None:
        names, rows = read_embeddings(Folder(embeddings), "--embeddings")
        if (width := model.detector.encoder.embed_dim) != rows.shape[1]:
            raise ValueError(
                f"--embeddings: {embeddings} has embeddings of width {rows.shape[1]}, but {model.clip_name} makes "
                f"{width}; take those of the same architecture (RN50: 1024, RN50x4: 640)"
            )
        rows = F.normalize(rows, dim=1)
        model = replace(model, vocabulary=Vocabulary(names), embeddings=rows, keeps_embeddings=True, _made={})
    return model
