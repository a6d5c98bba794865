"""A model of regions in use: it finds objects by name, and gives features of boxes and embeddings of names.

`assembly.py` makes one from a workspace, a detector folder or a CLIP folder.

Legend: K names, R regions, D embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from regionclip_core.datasets.images import to_tensor
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.given_images import ImageLike, pixels_of, several_of
from regionclip_core.detection.inference import Detections, Fusion, InferenceSettings, rival_logits
from regionclip_core.detection.results import NamedDetections
from regionclip_core.models.clip import ClipModel, Triple
from regionclip_core.models.crops import CropEncoder
from regionclip_core.models.text_embeddings import NamePrompts
from regionclip_core.ops.image_batch import ImageBatch, batch_resized, by_input_size, resize_image
from regionclip_core.precision import networks
from regionclip_core.proposals.proposers import NetworkBoxes, proposer_row

_T = TypeVar("_T")
_IMAGES_AT_ONCE = 8  # bounds memory


@dataclass(frozen=True)
class Preprocess:
    """How images are resized and normalised for the detector."""

    image_size: int
    """Shorter side of the input, pixels."""
    max_size: int
    """Longer side, pixels, at most."""
    mean: Triple
    """Of RGB in 0..1."""
    std: Triple


@dataclass(frozen=True)
class SecondClassifier:
    """A CLIP model that takes part in another model's scores, see `RegionModel.fused`."""

    model: RegionModel
    base: frozenset[str]
    """Names whose exponent is `base_exponent`; all others have `novel_exponent`."""
    base_exponent: float
    novel_exponent: float
    crops: CropEncoder | None
    """Classifies crops; None: the model's region features are classified."""

    def classify(
        self, image: Tensor, boxes: Tensor, names: Sequence[str], rivals: Sequence[str], device: torch.device
    ) -> Fusion:
        """Return the opinion of boxes [R, 4] of an image uint8[3, H, W]; `device`: where the scores are made.

        `rivals`: see `RegionModel.detect`; without any the names are each other's.
        """
        if self.crops is None:
            features = self.model.region_features([image], [boxes])
        else:
            features = F.normalize(self.crops([image], [boxes]).cpu(), dim=1)
        logits = features @ self.model.embed(names).T / self.model.detector.temperature
        probabilities = logits.softmax(dim=1)
        if rivals:
            others = features @ self.model.embed(rivals).T / self.model.detector.temperature
            probabilities = torch.sigmoid(logits - rival_logits(others, rivals, names))
        exponents = torch.tensor([self.base_exponent if n in self.base else self.novel_exponent for n in names])
        return Fusion(probabilities.to(device), exponents.to(device))


@dataclass(frozen=True)
class RegionModel:
    """A region encoder with a classifier by names and, where it has them, a proposal network and a text encoder.

    Its networks are in evaluation mode. Each method takes one image, or several as a list.
    """

    detector: OpenVocabularyDetector
    vocabulary: Vocabulary
    """The names that the detector comes with; none for a CLIP model."""
    embeddings: Tensor
    """[K, D] of the vocabulary, as the classifier has them."""
    preprocess: Preprocess
    inference: InferenceSettings
    """How detections are scored and chosen."""
    clip_name: str
    clip_architecture: dict[str, Any]
    """ClipModel.architecture of the model that the encoder was taken from."""
    proposer: NetworkBoxes | None = None
    text: ClipModel | None = None
    """The CLIP model whose text encoder embeds names."""
    prompts: NamePrompts = field(default_factory=NamePrompts.official)
    finetuned: bool = True
    """Whether the box regressor is trained; the boxes of a bare CLIP model stay as they are proposed."""
    keeps_embeddings: bool = True
    """Whether names of the vocabulary have their stored embeddings; if not, the text encoder embeds them too."""
    second: SecondClassifier | None = None
    """Takes part in the scores; see `fused`."""
    drawings_only: bool = False
    """Whether it was trained on the embedded world alone, as far as is known."""
    _made: dict[str, Tensor] = field(default_factory=dict)  # embeddings [D] by name that the text encoder has made

    def detect(
        self, images: ImageLike | Sequence[ImageLike], classes: Sequence[str] = (), against: Sequence[str] = ()
    ) -> list[NamedDetections]:
        """Find objects by name; returns one NamedDetections per image, boxes in the image's own pixels, on the CPU.

        >>> import regionclip_core
        >>> model = regionclip_core.load("detector")
        >>> from PIL import Image
        >>> several = model.detect(["photo.jpg", Image.open("photo.jpg")], ["cup", "dog"])
        >>> [len(found) > 0 for found in several]
        [True, True]

        Args:
            classes: names to look for, of which labels are rows; none takes the model's own vocabulary.
            against: names that each class is compared with, such as `model.vocabulary.names`. A score is then the
                probability of the class in a softmax with these names (and the background) alone, and doesn't change
                with the other classes. With none, the classes are compared with each other: a word that fits nothing
                still gets a good score where the others fit even less.

        Raises:
            ValueError: as `ready`, and for an image that can't be read.
        """
        names, found, several = self.ready(classes), list[NamedDetections](), several_of(images)
        rivals = dict(zip(against, self._embeddings(against), strict=True))
        for start in range(0, len(several), _IMAGES_AT_ONCE):
            some = [pixels_of(image) for image in several[start : start + _IMAGES_AT_ONCE]]
            found += self._detect_some(some, names, rivals)
        return found

    @torch.no_grad()
    def _detect_some(
        self, pixels: Sequence[npt.NDArray[np.uint8]], names: tuple[str, ...], rivals: Mapping[str, Tensor]
    ) -> list[NamedDetections]:
        """Return what `detect` does, of images uint8[H, W, 3]; only those of one input size share a batch."""
        assert self.proposer is not None
        images = [to_tensor(image) for image in pixels]
        proposals = self.proposer([proposer_row(image) for image in pixels], images)

        def detect_batch(batch: ImageBatch, numbers: list[int]) -> Sequence[Detections]:
            boxes = [batch.to_input(i, proposals[n].boxes).to(self.device) for i, n in enumerate(numbers)]
            logits = [proposals[n].logits.to(self.device) for n in numbers]
            fusion = None
            if (second := self.second) is not None:
                asked = names, list(rivals), self.device
                fusion = [second.classify(images[n], proposals[n].boxes, *asked) for n in numbers]
            return self.detector.detect(
                batch, boxes, logits, self.inference, box_deltas=self.finetuned, fusion=fusion, rivals=rivals
            )

        return [
            NamedDetections(
                *(one.boxes.cpu(), one.scores.cpu(), one.labels.cpu(), one.proposal.cpu(), one.masks),
                classes=names,
                size=image.shape[:2],
            )
            for one, image in zip(self._in_batches(images, detect_batch), pixels, strict=True)
        ]

    @torch.no_grad()
    def region_features(self, images: ImageLike | Sequence[ImageLike], boxes: Sequence[Any]) -> Tensor:
        """Return float32[R, D], rows of unit length, image by image in the order of the boxes, on the CPU.

        >>> import regionclip_core
        >>> model = regionclip_core.load("detector")
        >>> boxes = [[[10, 20, 60, 90]], [[0, 0, 80, 40], [5, 5, 30, 30]]]
        >>> model.region_features(["photo.jpg", "photo.jpg"], boxes).shape[0]
        3

        `boxes`: [R_i, 4] per image (of one image: [R, 4]), absolute xyxy pixels of the image as it comes. The model
        classifies by the cosines `features @ model.embed(names).T`.
        """
        found = [torch.zeros(0, self.detector.encoder.embed_dim)]
        several = several_of(images)
        given = list(zip(several, boxes if several is images else [boxes], strict=True))

        def encode(batch: ImageBatch, numbers: list[int]) -> Sequence[Tensor]:
            regions = [torch.as_tensor(some[n][1], dtype=torch.float32).reshape(-1, 4) for n in numbers]
            inputs = [batch.to_input(i, own).to(self.device) for i, own in enumerate(regions)]
            with networks(self.device):
                features = self.detector.encoder(batch.tensor, inputs, batch.sizes)
            return torch.split(F.normalize(features.float(), dim=1).cpu(), [len(own) for own in regions])

        for start in range(0, len(given), _IMAGES_AT_ONCE):
            some = given[start : start + _IMAGES_AT_ONCE]
            found += self._in_batches([to_tensor(pixels_of(image)) for image, _ in some], encode)
        return torch.cat(found)

    def embed(self, names: Sequence[str]) -> Tensor:
        """Return float32[K, D], rows of unit length, on the CPU.

        >>> import regionclip_core
        >>> regionclip_core.load("detector").embed(["cup", "red umbrella"]).norm(dim=1).round()
        tensor([1., 1.])

        Names of the model's own vocabulary have its embeddings; the text encoder makes the others. ValueError if
        there is none.
        """
        return F.normalize(self._embeddings(names), dim=1)

    def ready(self, classes: Sequence[str] = ()) -> tuple[str, ...]:
        """Set the classes that `detect` finds, and return their names in the order of the labels.

        Raises:
            ValueError: if there is no proposal network or no name, a name comes twice, or nothing can embed a name.
        """
        if self.proposer is None:
            raise ValueError("the model has no proposal network: give the folder of one with --rpn (in Python: rpn=)")
        if classes:
            embeddings = self._embeddings(classes)
            if repeated := [name for name, count in Counter(classes).items() if count > 1]:
                raise ValueError(f"--classes names {repeated[:5]} more than once; each name makes one class")
            self.detector.set_vocabulary(embeddings, classes)
        elif self.vocabulary.names:
            self.detector.names = self.vocabulary.names
            self.detector.class_embeddings = self.embeddings.to(self.device)
        else:
            raise ValueError("a CLIP model has no names of its own: give them with --classes (in Python: classes=)")
        return self.detector.names

    def _embeddings(self, names: Sequence[str]) -> Tensor:
        """Return [K, D] on the CPU, of any norm, as they are stored or as the text encoder makes them."""
        if isinstance(names, str):
            raise ValueError(f"expected a list of names, got the text {names!r}")
        own = zip(self.vocabulary.names, self.embeddings.cpu(), strict=True) if self.keeps_embeddings else ()
        known = dict(own) | self._made
        others = [name for name in names if name not in known]
        if others and self.text is None:
            raise ValueError(
                f"--classes: the model has no embedding of {others[:5]} and no text encoder to make one. Give the CLIP "
                "model whose text encoder it was trained with (--text DIR, in Python text=DIR: a folder from "
                "`regionclip import` or `export`), or keep to its own names, such as "
                f"{list(self.vocabulary.names[:5])}"
            )
        if others and self.text is not None:
            self._made.update(zip(others, self.prompts.embed(self.text, others).cpu(), strict=True))
            known |= self._made
        return torch.stack([known[name] for name in names]) if names else torch.zeros(0, self.embeddings.shape[1])

    # ------------------------------------------------------------ the same with other settings

    @property
    def device(self) -> torch.device:
        """Where the detector is."""
        return self.detector.class_embeddings.device

    def to(self, device: str) -> RegionModel:
        """Move the detector and the proposal network to `device`; the text encoder stays where it is."""
        self.detector.to(device)
        proposer = self.proposer
        if proposer is not None:
            proposer = NetworkBoxes(proposer.network, proposer.rpn, proposer.settings, device)
        return replace(self, proposer=proposer)

    def adjusted(
        self,
        image_size: int | None = None,
        max_size: int | None = None,
        proposals: int | None = None,
        proposal_nms: float | None = None,
        **rules: Any,
    ) -> RegionModel:
        """Return the model with other settings; None keeps one.

        Args:
            image_size, max_size: both networks' shorter side, and longer side at most, pixels.
            proposals: proposals per image, at most; proposal_nms: the IoU of their NMS.
            rules: fields of InferenceSettings.
        """

        def given(**settings: Any) -> dict[str, Any]:
            return {name: value for name, value in settings.items() if value is not None}

        size = given(image_size=image_size, max_size=max_size)
        proposer = self.proposer
        if proposer is not None:
            chosen = proposer.settings.model_copy(update=given(max_regions=proposals, nms=proposal_nms))
            rpn = proposer.rpn.model_copy(update=size)
            proposer = NetworkBoxes(proposer.network, rpn, chosen, proposer.device)
        inference, preprocess = replace(self.inference, **given(**rules)), replace(self.preprocess, **size)
        second = self.second and replace(self.second, model=self.second.model.adjusted(image_size, max_size))
        return replace(self, inference=inference, preprocess=preprocess, proposer=proposer, second=second)

    def fused(
        self, clip: RegionModel, base: float = 0.35, novel: float = 0.65, crop_context: float | None = None
    ) -> RegionModel:
        """Return the model with a second classifier in its scores: p ** (1 - a) * p_clip ** a per proposal and name.

        The objectness, thresholds and NMS come after, and the background takes its share of p alone.

        Args:
            clip: such as the student before it was finetuned; it embeds the names itself.
            base, novel: a for names of the vocabulary's base set, and for all others.
            crop_context: classify crops with this context (see `CropEncoder`); None: region features, of images in the
                size that this model sees.

        Raises:
            ValueError: if `clip` is no CLIP model.
        """
        if clip.finetuned or clip.text is None:
            raise ValueError("expected a CLIP model, such as an exported student, got a finetuned detector")
        crops = None if crop_context is None else CropEncoder(clip.text, crop_context)
        clip.text.model.to(self.device)
        sized = clip.to(str(self.device)).adjusted(self.preprocess.image_size, self.preprocess.max_size)
        return replace(self, second=SecondClassifier(sized, frozenset(self.vocabulary.base), base, novel, crops))

    def _in_batches(
        self, images: Sequence[Tensor], compute: Callable[[ImageBatch, list[int]], Sequence[_T]]
    ) -> list[_T]:
        """Return `compute` of images uint8[3, H, W] and their numbers, batched by the size of the input."""
        to = self.preprocess
        resized = [resize_image(image, to.image_size, to.max_size) for image in images]

        def compute_some(numbers: list[int]) -> Sequence[_T]:
            return compute(batch_resized([resized[n] for n in numbers], to.mean, to.std, self.device), numbers)

        return by_input_size(resized, compute_some)
