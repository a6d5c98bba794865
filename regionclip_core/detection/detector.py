"""Open-vocabulary detector: region embeddings classified by the embeddings of category names (paper section 3.4).

Legend: B images, R regions of the batch, K categories of the vocabulary in use (label K is the background), D
embedding, C channels of the encoder's region maps, k their side; of one image: P proposals, G annotated boxes. Boxes
are xyxy pixels of the network's input; sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from regionclip_core.config.tree import FinetuneConfig
from regionclip_core.detection.inference import Detections, Fusion, InferenceSettings, detect_image, rival_logits
from regionclip_core.detection.losses import box_loss, classification_loss, mask_loss
from regionclip_core.models.checkpoint_files import load_strictly, read_safetensors
from regionclip_core.models.clip import lean_clip
from regionclip_core.models.region_encoder import RegionEncoder, Sizes
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.boxes import FOREGROUND, match, sample
from regionclip_core.ops.image_batch import ImageBatch
from regionclip_core.ops.masks import ImageMasks, encode_masks
from regionclip_core.precision import in_float32, networks
from regionclip_core.storage.folder import Folder
from regionclip_core.training.distributed import sum_ranks

Background = Literal["zero", "learnable"]

FOREGROUND_IOU = 0.5
"""A region is an object from this IoU on and background below: unlike the RPN's anchors, none is ignored."""
MASK_CHANNELS = 256
"""Channels between the mask head's two layers, as in Mask R-CNN and the official checkpoints."""


class RegionTargets(NamedTuple):
    """The sampled regions of all images, in order, and what the losses compare them with."""

    boxes: list[Tensor]
    """Per image [R_i, 4]."""
    labels: Tensor
    """[R] int64, K is the background."""
    truth: Tensor
    """[R, 4], the annotated box; only meaningful for the foreground."""
    truth_row: Tensor
    """[R] int64, that box's row among the annotated boxes of its image; only meaningful for the foreground."""


class HeadOutput(NamedTuple):
    """`logits` [R, K + 1], background last; `deltas` [R, 4]."""

    logits: Tensor
    deltas: Tensor


class ClassifiedProposals(NamedTuple):
    """`features`: the encoder's map of the images; `output` of all their proposals, whose `embeddings` are [R, D]."""

    features: Tensor
    output: HeadOutput
    embeddings: Tensor


class MaskHead(nn.Module):
    """Mask R-CNN's smallest head, class-agnostic: a transposed convolution that doubles the side, one logit per cell.

    It works on the maps before attention pooling (`layer4` of a ResNet). One mask per region, independent of its
    category, so that categories without any training mask get masks too.
    """

    def __init__(self, channels: int) -> None:
        """`channels`: C, the encoder's `feature_dim`."""
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, MASK_CHANNELS, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(MASK_CHANNELS, 1, kernel_size=1)
        nn.init.kaiming_normal_(self.deconv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.predictor.weight, std=0.001)
        for layer in (self.deconv, self.predictor):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, region_maps: Tensor) -> Tensor:
        """Return mask logits [R, 2k, 2k] of region maps [R, C, k, k]; R may be 0, which keeps the graph whole."""
        logits: Tensor = self.predictor(torch.relu(self.deconv(region_maps)))
        return logits[:, 0]


class OpenVocabularyDetector(nn.Module):
    """A region encoder, a classifier made of text embeddings, which is not trained, and a class-agnostic box regressor.

    With a mask head (LVIS) also a class-agnostic mask per region.
    """

    class_embeddings: Tensor

    def __init__(
        self,
        encoder: RegionEncoder,
        class_embeddings: Tensor,
        names: Sequence[str],
        temperature: float,
        background: Background = "zero",
        mask_head: bool = False,
    ) -> None:
        """`class_embeddings` [K, D] of `names`, of any norm; `temperature` divides the cosines."""
        super().__init__()
        self.encoder = encoder
        self.temperature = temperature
        self.background = background
        self.register_buffer("class_embeddings", torch.empty(0, encoder.embed_dim))
        self.set_vocabulary(class_embeddings, names)
        # The official background is an embedding of zeros, so its cosine and logit are 0.
        self.background_logit = nn.Parameter(torch.zeros(()), requires_grad=background == "learnable")
        self.box_regressor = nn.Linear(encoder.embed_dim, 4)
        nn.init.normal_(self.box_regressor.weight, std=0.001)
        nn.init.zeros_(self.box_regressor.bias)
        self.mask_head = MaskHead(encoder.feature_dim) if mask_head else None

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

    def forward(self, images: Tensor, boxes: Sequence[Tensor], sizes: Sizes | None = None) -> HeadOutput:
        """Return logits and deltas of all regions, image by image.

        Args:
            images: [B, 3, H, W], normalised.
            boxes: per image [R_i, 4].
            sizes: each image without its padding; None: no image is padded.
        """
        return self._head(self.encoder(images, boxes, sizes))

    @in_float32
    def _head(self, features: Tensor) -> HeadOutput:
        # The regressor sees the raw embedding, as in the official code: its norm carries signal.
        return HeadOutput(self.classify(features), self.box_regressor(features))

    @in_float32
    def classify(self, features: Tensor, class_embeddings: Tensor | None = None) -> Tensor:
        """Return logits [R, K + 1] of region embeddings [R, D] (any norm): cosine / temperature, then the background's.

        The text embeddings are the classifier's weights, so everything that has a name can be a class.
        `class_embeddings`: [K, D] of any norm, to take instead of the vocabulary's.
        """
        classes = self.class_embeddings if class_embeddings is None else F.normalize(class_embeddings, dim=1)
        cosines = F.normalize(features, dim=1) @ classes.T
        background = self.background_logit.expand(len(features), 1)
        return torch.cat((cosines / self.temperature, background), dim=1)

    # ------------------------------------------------------------ training

    @torch.no_grad()
    def targets(
        self,
        proposals: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        config: FinetuneConfig,
        generators: Sequence[torch.Generator | None] | None = None,
    ) -> RegionTargets:
        """Match regions with annotated boxes, and draw a sample of them for the losses.

        Args:
            proposals: per image [P, 4].
            boxes: per image [G, 4].
            labels: per image [G] rows of the vocabulary.
            generators: of the sampling, one per image; None draws from torch's own.
        """
        found = []
        generators = generators or [None] * len(proposals)
        for proposed, truth, label, generator in zip(proposals, boxes, labels, generators, strict=True):
            # Annotated boxes are candidates too, so that every object has a region that covers it.
            candidates = torch.cat((proposed, truth))
            truth_row, kind = match(box_ops.iou(truth, candidates), FOREGROUND_IOU, FOREGROUND_IOU)
            rows = sample(kind, config.regions_per_image, config.positive_fraction, generator)
            # All start as background, with their own box as a placeholder for the truth, which no loss looks at.
            region_labels, region_truth = torch.full_like(rows, len(self.names)), candidates[rows]
            hit = kind[rows] == FOREGROUND
            region_labels[hit] = label[truth_row[rows[hit]]]
            region_truth[hit] = truth[truth_row[rows[hit]]]
            found.append((candidates[rows], region_labels, region_truth, truth_row[rows]))
        regions, all_labels, all_truth, all_rows = zip(*found, strict=True)
        return RegionTargets(list(regions), torch.cat(all_labels), torch.cat(all_truth), torch.cat(all_rows))

    def target_losses(self, output: HeadOutput, targets: RegionTargets, config: FinetuneConfig) -> dict[str, Tensor]:
        """Return `loss_cls` and `loss_box_reg` of the head's output on the sampled regions."""
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
        generators: Sequence[torch.Generator | None] | None = None,
        masks: Sequence[ImageMasks] | None = None,
        sizes: Sizes | None = None,
    ) -> dict[str, Tensor]:
        """Return a batch's training losses, to be summed: `loss_cls`, `loss_box_reg`; with a mask head `loss_mask`.

        See `targets` and `forward` for the arguments. `masks`: one per image, for a mask head.
        """
        targets = self.targets(proposals, boxes, labels, config, generators)
        encoder = self.encoder

        def region_maps(images: Tensor, boxes: Sequence[Tensor], sizes: Sizes | None) -> Tensor:
            return encoder.regions(encoder.features(images, sizes), boxes)

        if self.mask_head is None:
            embeddings = encoder.by_images(lambda *some: encoder.pool(region_maps(*some)), images, targets.boxes, sizes)
            return self.target_losses(self._head(embeddings), targets, config)
        maps = encoder.by_images(region_maps, images, targets.boxes, sizes)  # the mask head works on them too
        losses = self.target_losses(self._head(encoder.pool(maps)), targets, config)
        assert masks is not None  # `boxed_images` refuses images without them
        # A background region shows no object that a mask could outline.
        foreground = targets.labels != len(self.names)
        logits = self.mask_head(maps[foreground])
        counts = [len(regions) for regions in targets.boxes]
        per_image = zip(
            masks, targets.boxes, torch.split(targets.truth_row, counts), torch.split(foreground, counts), strict=True
        )
        wanted = [image.crop(rows[hit], regions[hit], logits.shape[-1]) for image, regions, rows, hit in per_image]
        return losses | {"loss_mask": mask_loss(logits, torch.cat(wanted))}

    @torch.no_grad()
    def calibrate_background(self, images: Tensor, boxes: Sequence[Tensor], sizes: Sizes | None = None) -> float:
        """Start the learnable background logit where it neither wins nor loses against the K categories.

        Set it to the mean log-sum-exp of the category logits of the given regions (over all ranks), and return it: a
        typical region is then background with probability 1/2 before training. At a temperature well above 0.01 the
        official value, 0, would be many units away from that, and the encoder would change a lot to make up for it.
        """
        assert self.background == "learnable"
        logits = self(images, boxes, sizes).logits[:, :-1]
        sums = sum_ranks(torch.stack((logits.logsumexp(dim=1).double().sum(), logits.new_tensor(len(logits)).double())))
        if not sums[1]:
            raise ValueError("calibrate_background: got no region; give it at least one box")
        self.background_logit.copy_(sums[0] / sums[1])
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
        masks: bool = True,
        fusion: Sequence[Fusion] | None = None,
        rivals: Mapping[str, Tensor] | None = None,
    ) -> list[Detections]:
        """Return the detections of each image, in ORIGINAL pixels (call eval() before).

        Args:
            proposals: per image [P, 4] in input pixels.
            objectness_logits: per image [P], see InferenceSettings.
            box_deltas: refine the boxes with the regressor; False (zero-shot: it isn't trained) keeps the proposals.
            masks: where there is a mask head, make masks; boxes alone are faster.
            fusion: a second classifier's probabilities of the same proposals, one per image.
            rivals: embeddings [D] by name. Each category is then in a softmax with these and the background alone, so
                that its score doesn't depend on which other categories there are.
        """
        classified, others = self.classify_proposals(batch, proposals), None
        if rivals:
            logits = self.classify(classified.embeddings, torch.stack(list(rivals.values())).to(batch.tensor.device))
            others = torch.split(rival_logits(logits, list(rivals), self.names), [len(boxes) for boxes in proposals])
        return self.choose(
            classified, batch, proposals, objectness_logits, settings, box_deltas, masks, fusion=fusion, rivals=others
        )

    @torch.no_grad()
    def classify_proposals(self, batch: ImageBatch, proposals: Sequence[Tensor]) -> ClassifiedProposals:
        """Run the networks: the first half of `detect`."""
        with networks(batch.tensor.device):
            features = self.encoder.features(batch.tensor, batch.sizes)
            embeddings = self.encoder.embed(features, proposals)
            return ClassifiedProposals(features, self._head(embeddings), embeddings)

    @torch.no_grad()
    def choose(
        self,
        classified: ClassifiedProposals,
        batch: ImageBatch,
        proposals: Sequence[Tensor],
        objectness_logits: Sequence[Tensor] | None,
        settings: InferenceSettings,
        box_deltas: bool,
        masks: bool = True,
        labels: Sequence[int] | None = None,
        fusion: Sequence[Fusion] | None = None,
        rivals: Sequence[Tensor] | None = None,
    ) -> list[Detections]:
        """Score the proposals and choose detections: the second half of `detect`.

        `labels`: classify into these categories and the background only, in a softmax of their own, as if the
        vocabulary had no others; the labels of detections are still rows of the whole vocabulary. `fusion`: see
        `detect`; `rivals`: per image [P, K], see `rival_logits`; neither together with `labels`.
        """
        assert labels is None or (fusion is None and rivals is None)
        features, output, _ = classified
        if labels is not None:
            output = output._replace(logits=output.logits[:, [*labels, len(self.names)]])
        counts = [len(boxes) for boxes in proposals]
        result = []
        for i, (logits, deltas) in enumerate(
            zip(torch.split(output.logits, counts), torch.split(output.deltas, counts), strict=True)
        ):
            objectness = None if objectness_logits is None else objectness_logits[i]
            # NMS and thresholds work in the network's pixels, as in the official code; the result is in original ones.
            moves = deltas if box_deltas else None
            second, others = None if fusion is None else fusion[i], None if rivals is None else rivals[i]
            found = detect_image(logits, moves, proposals[i], objectness, batch.sizes[i], settings, second, others)
            found = found.rescaled(batch.sizes[i], batch.original_sizes[i])
            if labels is not None:
                found = replace(found, labels=found.labels.new_tensor(labels)[found.labels])
            if masks and self.mask_head is not None:
                found = replace(found, masks=self._masks(self.mask_head, features, batch, i, found))
            result.append(found)
        return result

    def _masks(
        self, head: MaskHead, features: Tensor, batch: ImageBatch, image: int, detections: Detections
    ) -> list[bytes]:
        """Return the masks of one image's final boxes, from region maps of these boxes and not of their proposals."""
        # A proposal has one box, and so one mask, however many categories it is reported for.
        first: dict[int, int] = {}
        for row, proposal in enumerate(detections.proposal.tolist()):
            first.setdefault(proposal, row)
        if not first:
            return []
        boxes = detections.boxes[list(first.values())]
        regions = box_ops.clip(batch.to_input(image, boxes), batch.sizes[image])
        with networks(features.device):
            logits = head(self.encoder.regions(features[image : image + 1], [regions])).float()
        probabilities = torch.sigmoid(logits)
        coded = dict(zip(first, encode_masks(probabilities, boxes, batch.original_sizes[image]), strict=True))
        return [coded[proposal] for proposal in detections.proposal.tolist()]


# ---------------------------------------------------------------- files


def describe_detector(detector: OpenVocabularyDetector, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON description from which `rebuild_detector` builds the module.

    `architecture` is the ClipModel.architecture of the model that the encoder was taken from.
    """
    return {
        "names": list(detector.names),
        "temperature": detector.temperature,
        "background": detector.background,
        "mask_head": detector.mask_head is not None,
        "clip_architecture": dict(architecture),
        **({"value_blocks": detector.encoder.value_blocks} if detector.encoder.value_blocks else {}),
    }


def save_detector(
    detector: OpenVocabularyDetector, folder: Folder, architecture: Mapping[str, Any], stem: str = "detector"
) -> None:
    """Write `<stem>.safetensors` (all weights) and `<stem>.json` (see `describe_detector`)."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in detector.state_dict().items()}
    folder.write_bytes(f"{stem}.safetensors", save_tensors(state))
    folder.write_json(f"{stem}.json", describe_detector(detector, architecture))


def load_detector(folder: Folder, stem: str = "detector") -> OpenVocabularyDetector:
    """Load what `save_detector` wrote, on the CPU, in evaluation mode; ValueError if the files don't fit each other."""
    weights = f"{stem}.safetensors"
    return rebuild_detector(folder.read_json(f"{stem}.json"), read_safetensors(folder, weights), folder.path(weights))


def rebuild_detector(description: Mapping[str, Any], state: Mapping[str, Tensor], where: str) -> OpenVocabularyDetector:
    """Build a detector from its description (see `describe_detector`) and weights; `where` names these in messages."""
    if "class_embeddings" not in state:
        raise ValueError(f"{where}: class_embeddings is missing; import or export the model again")
    clip = lean_clip(description["clip_architecture"], "the detector's CLIP", description.get("value_blocks", 0))
    detector = OpenVocabularyDetector(
        region_encoder(clip),
        state["class_embeddings"],
        description["names"],
        description["temperature"],
        description["background"],
        description.get("mask_head", False),
    )
    load_strictly(detector, state, where)
    return detector.eval()
