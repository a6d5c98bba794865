"""Detection on images of one's own, with any list of names.

K names, R proposals of one image, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regionclip_core.datasets.images import to_tensor
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import Detections, InferenceSettings, Objectness
from regionclip_core.detection.model_folder import TEXT, LoadedModel, Preprocess, is_model_folder, load_model
from regionclip_core.models.clip import ClipModel, load_clip
from regionclip_core.models.prompts import prompt_templates
from regionclip_core.models.text_embeddings import NamePrompts, read_prompts
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import batch_images
from regionclip_core.proposals.proposers import NetworkBoxes, proposer_row
from regionclip_core.proposals.rpn_folder import find_rpn_folder, open_network, rpn_section
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS, clip_folder

NameEncoder = Callable[[Sequence[str]], Tensor]
"""Names to embeddings [K, D] of any norm."""

ZERO_SHOT = InferenceSettings(objectness="raw_logit")
"""The official scoring of a CLIP model without finetuning: sqrt(p * logit), background logit 0, boxes as proposed."""
ZERO_SHOT_PROPOSAL_NMS = 0.9
"""IoU of the proposals' NMS there: the boxes are final, so more of them are kept."""


@dataclass(frozen=True)
class Finder:
    """A detector with its proposer, ready for images."""

    detector: OpenVocabularyDetector
    proposer: NetworkBoxes
    preprocess: Preprocess
    rules: InferenceSettings
    box_deltas: bool = True
    """Refine the proposals with the regressor, where it is trained."""
    device: str = "cpu"

    @classmethod
    def from_model(cls, model: LoadedModel, device: str = "cpu") -> Finder:
        """A detector with its own proposal network, scoring and vocabulary.

        Raises:
            ValueError: if the model has no proposal network: there is nothing to propose with.
        """
        if model.network is None or model.rpn is None:
            raise ValueError("the model has no proposal network: give the folder of one with --rpn")
        proposer = NetworkBoxes(model.network.eval(), *model.rpn, device)
        return cls(model.detector.to(device).eval(), proposer, model.preprocess, model.inference, device=device)

    @classmethod
    def zero_shot(
        cls, clip: ClipModel, proposer: NetworkBoxes, names: Sequence[str], embeddings: Tensor, device: str = "cpu"
    ) -> Finder:
        """A CLIP model's own judgement of the proposals, scored as the official code does without finetuning.

        `embeddings` [K, D] of `names`. The model sees images in the size that the proposal network does.
        """
        detector = OpenVocabularyDetector(region_encoder(clip), embeddings, names, 1 / clip.logit_scale, "zero")
        generous = proposer.settings.model_copy(update={"nms": ZERO_SHOT_PROPOSAL_NMS})
        preprocess = Preprocess(proposer.rpn.image_size, proposer.rpn.max_size, clip.mean, clip.std)
        boxes = NetworkBoxes(proposer.network, proposer.rpn, generous, device)
        return cls(detector.to(device).eval(), boxes, preprocess, ZERO_SHOT, box_deltas=False, device=device)

    @property
    def names(self) -> tuple[str, ...]:
        """What labels are rows of."""
        return self.detector.names

    def adjusted(
        self,
        nms: float | None = None,
        max_detections: int | None = None,
        objectness: Objectness | None = None,
        image_size: int | None = None,
    ) -> Finder:
        """The same with other settings; None keeps one. `image_size`: shorter side of both networks' input, pixels."""
        rules = self.rules
        if nms is not None:
            rules = replace(rules, nms=nms)
        if max_detections is not None:
            rules = replace(rules, max_detections=max_detections)
        if objectness is not None:
            rules = replace(rules, objectness=objectness)
        finder = replace(self, rules=rules)
        if image_size is None:
            return finder
        rpn = self.proposer.rpn.model_copy(update={"image_size": image_size})
        proposer = NetworkBoxes(self.proposer.network, rpn, self.proposer.settings, self.device)
        return replace(finder, proposer=proposer, preprocess=replace(self.preprocess, image_size=image_size))

    def find(self, pixels: np.ndarray) -> Detections:
        """Detections in uint8[H, W, 3] RGB pixels, boxes in its own pixels, best first; tensors on the CPU."""
        image, to = to_tensor(pixels), self.preprocess
        with torch.inference_mode():
            proposals = self.proposer([proposer_row(pixels)], [image])[0]
            batch = batch_images([image], to.image_size, to.max_size, to.mean, to.std)
            boxes = [batch.to_input(0, proposals.boxes).to(self.device)]
            there = batch.to(self.device)
            logits = [proposals.logits.to(self.device)]
            found = self.detector.detect(there, boxes, logits, self.rules, self.box_deltas)[0]
        return replace(
            found,
            boxes=found.boxes.cpu(),
            scores=found.scores.cpu(),
            labels=found.labels.cpu(),
            proposal=found.proposal.cpu(),
        )


# ---------------------------------------------------------------- from folders


def finder_of_folder(
    place: str,
    *,
    names: Sequence[str] = (),
    rpn: str | None = None,
    text: str | None = None,
    prompts: str | None = None,
    device: str = "cpu",
) -> Finder:
    """A Finder from a detector folder, or from a CLIP or pretrained folder (zero-shot).

    Args:
        names: what to look for; none takes the detector's own vocabulary.
        rpn: folder or file of a proposal network, instead of the folder's own.
        text: CLIP or pretrained folder whose text encoder embeds names, instead of the folder's own.
        prompts: templates, see `prompts.prompt_templates`, instead of the folder's own.

    Raises:
        ValueError: if a part is missing, saying how to give it.
    """
    folder = Folder(place)
    if not is_model_folder(folder):
        return _zero_shot_of_folder(place, names, rpn, text, prompts, device)
    model = load_model(folder, with_text=bool(names) and text is None)
    if rpn is not None:
        model = with_network(model, rpn)
    if names:
        source = folder.child(TEXT) if text is None else clip_folder(text, "student")
        clip = model.text if text is None else load_clip(source)
        encode = None if clip is None else name_encoder(clip, read_prompts(source), prompts)
        set_names(model, names, encode, anew=bool(text or prompts))
    return Finder.from_model(model, device)


def _zero_shot_of_folder(
    place: str, names: Sequence[str], rpn: str | None, text: str | None, prompts: str | None, device: str
) -> Finder:
    folder = clip_folder(place, "student")
    if not any(folder.exists(description) for description, _ in CLIP_LAYOUTS):
        raise ValueError(
            f"--model {place}: no model there. Expected a detector folder (config.json), a CLIP folder "
            "(open_clip_config.json) or one with student/, as `regionclip import` and `regionclip export` make them"
        )
    if not names:
        raise ValueError(f"--model {place} is a CLIP model, which has no names of its own: give them with --classes")
    if rpn is None and find_rpn_folder(place) is None:
        raise ValueError(f"--model {place} has no proposal network: give the folder of one with --rpn")
    clip = load_clip(folder)
    speaker = clip if text is None else load_clip(clip_folder(text, "student"))
    source = folder if text is None else clip_folder(text, "student")
    encode = name_encoder(speaker, read_prompts(source), prompts)
    proposer = NetworkBoxes(*open_network(place if rpn is None else rpn), device)
    return Finder.zero_shot(clip, proposer, names, encode(names), device)


def with_network(model: LoadedModel, place: str) -> LoadedModel:
    """The model with the proposal network at `place` instead of its own."""
    network, rpn, proposals = open_network(place)
    return replace(model, network=network, config={**model.config, "rpn": rpn_section(rpn, proposals)})


# ---------------------------------------------------------------- names


def name_encoder(clip: ClipModel, usual: NamePrompts, prompts: str | None) -> NameEncoder:
    """Embeds names by a model's text encoder: with its `usual` prompts, or the templates that `prompts` names."""
    chosen = usual if prompts is None else replace(usual, templates=prompt_templates(prompts))
    return lambda names: chosen.embed(clip, names)


def set_names(model: LoadedModel, names: Sequence[str], encode: NameEncoder | None, anew: bool = False) -> None:
    """Let the detector classify into `names` from now on.

    Names of its own vocabulary keep their stored embedding, unless `anew`; `encode` embeds the others.

    Raises:
        ValueError: if there are others and nothing to embed them with, or a name comes twice.
    """
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise ValueError(f"--classes names {repeated[:5]} more than once; each name makes one class")
    detector = model.detector
    rows = {} if anew else {name: row for row, name in enumerate(detector.names)}
    others = [name for name in names if name not in rows]
    if others and encode is None:
        raise ValueError(
            f"--classes: the model has no embedding of {others[:5]} and no text encoder to make one. Give the CLIP "
            "model whose text encoder it was trained with (--text DIR: a folder from `regionclip import` or `export`), "
            f"or keep to its own names, such as {list(detector.names[:5])}"
        )
    made = dict(zip(others, encode(others), strict=True)) if encode is not None and others else {}
    stored = detector.class_embeddings.cpu()
    embeddings = torch.stack([made[name].cpu() if name in made else stored[rows[name]] for name in names])
    detector.set_vocabulary(embeddings, names)
