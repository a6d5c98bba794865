"""Open-vocabulary detector: region embeddings classified by the embeddings of category names (paper section 3.4).

Legend: B images, R regions of the batch, K categories of the vocabulary in use (label K is the background),
D embedding. Boxes are xyxy pixels of the network's input; sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip_core import boxes as box_ops
from regionclip_core.assignment import FOREGROUND, match, sample
from regionclip_core.clip import build_clip
from regionclip_core.config import FinetuneConfig
from regionclip_core.detection_losses import box_loss, classification_loss
from regionclip_core.encoders import RegionEncoder, region_encoder
from regionclip_core.image_batch import ImageBatch
from regionclip_core.inference import Detections, InferenceSettings, detect_image

if TYPE_CHECKING:
    from regionclip_core.artifacts import Folder

Background = Literal["zero", "learnable"]

FOREGROUND_IOU = 0.5


@dataclass(frozen=True)
class RegionTargets:
    """The regions that a loss looks at, and what they should be.

    `boxes`: per image [R_i, 4]; `labels` [R] (K is background) and `truth` [R, 4] (meaningful for the foreground)
    run over all images, in order.
    """

    boxes: list[Tensor]
    labels: Tensor
    truth: Tensor


class HeadOutput(NamedTuple):
    """`logits` [R, K + 1], background last; `deltas` [R, 4]."""

    logits: Tensor
    deltas: Tensor


class OpenVocabularyDetector(nn.Module):
    """A region encoder, a fixed text classifier that can be exchanged, and a class-agnostic box regressor."""

    class_embeddings: Tensor

    def __init__(
        self,
        encoder: RegionEncoder,
        class_embeddings: Tensor,
        names: Sequence[str],
        temperature: float,
        background: Background = "zero",
    ) -> None:
        """`class_embeddings` [K, D] of `names`, of any norm; `temperature` divides the cosines."""
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        self.encoder = encoder
        self.temperature = temperature
        self.background = background
        self.register_buffer("class_embeddings", torch.empty(0, encoder.embed_dim))
        self.set_vocabulary(class_embeddings, names)
        self.background_logit = nn.Parameter(torch.zeros(()), requires_grad=background == "learnable")
        self.box_regressor = nn.Linear(encoder.embed_dim, 4)
        nn.init.normal_(self.box_regressor.weight, std=0.001)
        nn.init.zeros_(self.box_regressor.bias)

    def set_vocabulary(self, embeddings: Tensor, names: Sequence[str]) -> None:
        """Classify into `names` from now on; `embeddings` [K, D] are normalised here."""
        wanted = (len(names), self.encoder.embed_dim)
        if tuple(embeddings.shape) != wanted:
            raise ValueError(
                f"class embeddings: expected shape {wanted} for {len(names)} names and this encoder, "
                f"got {tuple(embeddings.shape)}; embed the names with the CLIP model that the encoder comes from"
            )
        self.names = tuple(names)
        device = self.class_embeddings.device
        self.class_embeddings = F.normalize(embeddings.detach().float(), dim=1).to(device)

    def classify(self, features: Tensor) -> Tensor:
        """Region embeddings [R, D] (any norm) -> logits [R, K + 1]: cosine / temperature, then the background's."""
        cosines = F.normalize(features, dim=1) @ self.class_embeddings.T
        background = self.background_logit.expand(len(features), 1)
        return torch.cat((cosines / self.temperature, background), dim=1)

    def forward(self, images: Tensor, boxes: Sequence[Tensor]) -> HeadOutput:
        """Images [B, 3, H, W] and per image boxes [R_i, 4] -> logits and deltas of all regions, image by image."""
        features = self.encoder(images, boxes)
        # The regressor sees the raw embedding, as in the official code: its norm carries signal.
        return HeadOutput(self.classify(features), self.box_regressor(features))

    # ------------------------------------------------------------ training

    @torch.no_grad()
    def targets(
        self,
        proposals: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        config: FinetuneConfig,
        generator: torch.Generator | None = None,
    ) -> RegionTargets:
        """Per image: proposals and ground truth together, matched at IoU 0.5, and a sample of them.

        Args:
            proposals: per image [P, 4]; boxes: per image [G, 4]; labels: per image [G] rows of the vocabulary.
        """
        chosen, chosen_labels, chosen_truth = [], [], []
        for image_proposals, image_boxes, image_labels in zip(proposals, boxes, labels, strict=True):
            self._check_labels(image_labels)
            candidates = torch.cat((image_proposals, image_boxes))
            truth_row, kind = match(box_ops.iou(image_boxes, candidates), FOREGROUND_IOU, FOREGROUND_IOU)
            rows = sample(kind, config.regions_per_image, config.positive_fraction, generator)
            label = torch.full_like(rows, len(self.names))
            truth = candidates[rows].clone()
            hit = kind[rows] == FOREGROUND
            label[hit] = image_labels[truth_row[rows[hit]]]
            truth[hit] = image_boxes[truth_row[rows[hit]]]
            chosen.append(candidates[rows])
            chosen_labels.append(label)
            chosen_truth.append(truth)
        return RegionTargets(chosen, torch.cat(chosen_labels), torch.cat(chosen_truth))

    def _check_labels(self, labels: Tensor) -> None:
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(self.names)):
            raise ValueError(
                f"labels: expected rows of the vocabulary, 0..{len(self.names) - 1}, got {int(labels.min())}.."
                f"{int(labels.max())}; leave boxes of other categories out"
            )

    def target_losses(self, output: HeadOutput, targets: RegionTargets, config: FinetuneConfig) -> dict[str, Tensor]:
        """`loss_cls` and `loss_box_reg` of the head's output on the sampled regions."""
        loss_cls = classification_loss(output.logits, targets.labels, config.background_weight, config.focal_gamma)
        regions = torch.cat(targets.boxes)
        loss_box = box_loss(output.deltas, targets.labels, len(self.names), regions, targets.truth)
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box}

    def loss(
        self,
        images: Tensor,
        proposals: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        config: FinetuneConfig,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Training losses `loss_cls` and `loss_box_reg` of a batch, to be summed; see :meth:`targets`."""
        targets = self.targets(proposals, boxes, labels, config, generator)
        return self.target_losses(self(images, targets.boxes), targets, config)

    @torch.no_grad()
    def calibrate_background(self, images: Tensor, boxes: Sequence[Tensor]) -> float:
        """Start the learnable background logit where it neither wins nor loses against the K categories.

        Sets it to the mean log-sum-exp of the category logits of the given regions, so that a typical region is
        background with probability 1/2 before training. From 0, the official value, it would have to travel many
        units at a temperature well above 0.01, and would drag the encoder along meanwhile. Returns the logit.
        """
        if self.background != "learnable":
            raise ValueError(f"background: {self.background} is fixed; only a learnable background can be calibrated")
        logits = self(images, boxes).logits[:, :-1]
        if not len(logits):
            raise ValueError("calibrate_background: got no region; give it at least one box")
        self.background_logit.copy_(logits.logsumexp(dim=1).mean())
        return float(self.background_logit)

    # ------------------------------------------------------------ inference

    @torch.no_grad()
    def detect(
        self,
        batch: ImageBatch,
        proposals: Sequence[Tensor],
        objectness_logits: Sequence[Tensor] | None,
        settings: InferenceSettings,
        box_deltas: bool,
    ) -> list[Detections]:
        """Detections of each image, in ORIGINAL pixels (call eval() before).

        Args:
            proposals: per image [P, 4] in input pixels; objectness_logits: per image [P], see InferenceSettings.
            box_deltas: refine the boxes with the regressor; False (zero-shot: it isn't trained) keeps the proposals.
        """
        output = self(batch.tensor, proposals)
        counts = [len(boxes) for boxes in proposals]
        result = []
        for i, (logits, deltas) in enumerate(
            zip(output.logits.split(counts), output.deltas.split(counts), strict=True)
        ):
            detections = detect_image(
                logits,
                deltas if box_deltas else None,
                proposals[i],
                None if objectness_logits is None else objectness_logits[i],
                batch.sizes[i],
                settings,
            )
            result.append(detections.rescaled(batch.sizes[i], batch.original_sizes[i]))
        return result


def save_detector(
    detector: OpenVocabularyDetector, folder: Folder, architecture: dict[str, Any], stem: str = "detector"
) -> None:
    """Write `<stem>.safetensors` (all weights) and `<stem>.json` (what rebuilds the module around them).

    `architecture` is the ClipModel.architecture of the model that the encoder was taken from.
    """
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    description = {
        "names": list(detector.names),
        "temperature": detector.temperature,
        "background": detector.background,
        "clip_architecture": architecture,
    }
    folder.write_bytes(f"{stem}.safetensors", save(state))
    folder.write_json(f"{stem}.json", description)


def load_detector(folder: Folder, stem: str = "detector") -> OpenVocabularyDetector:
    """What save_detector wrote, on the CPU, in eval mode. ValueError if the two files don't fit each other."""
    from safetensors.torch import load

    description = folder.read_json(f"{stem}.json")
    state = load(folder.read_bytes(f"{stem}.safetensors"))
    encoder = region_encoder(build_clip(description["clip_architecture"], f"{stem}.json", seed=0))
    detector = OpenVocabularyDetector(
        encoder,
        state["class_embeddings"],
        description["names"],
        description["temperature"],
        description["background"],
    )
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{folder.url}: the weights in {stem}.safetensors don't fit the architecture in {stem}.json: {error}"
        ) from error
    return detector.eval()
