"""All numbers of the evaluate stage: zero-shot with given boxes, zero-shot with proposals, finetuned.

R regions of one image, G annotated boxes of one image, K categories, D embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regionclip_core.artifacts import Folder
from regionclip_core.clip import ClipModel
from regionclip_core.config import Config
from regionclip_core.detector import OpenVocabularyDetector
from regionclip_core.encoders import region_encoder
from regionclip_core.evaluation import ImageDetections, ImageTruth, evaluate_detections, top1_accuracy
from regionclip_core.finetuning import class_embeddings
from regionclip_core.image_batch import ImageBatch, batch_images
from regionclip_core.images import BadImage, ImageReader
from regionclip_core.index import IndexRow, read_index, split_shards
from regionclip_core.inference import Detections, InferenceSettings, detect_image
from regionclip_core.proposing import read_proposals
from regionclip_core.selection import Proposals
from regionclip_core.vocabulary import Vocabulary

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationImage:
    """One image of the validation split, boxes in original pixels."""

    row: IndexRow
    pixels: Tensor
    """uint8[3, H, W]"""
    boxes: Tensor
    """float32[G, 4]: annotated, no crowds, categories of the vocabulary only."""
    labels: Tensor
    """int64[G]"""
    proposals: Proposals


@dataclass
class EvaluationData:
    """The validation split: everything but the pixels in memory, pixels read batch by batch."""

    data: Folder
    vocabulary: Vocabulary
    rows: list[IndexRow]
    proposals: dict[str, Proposals]

    @classmethod
    def read(cls, config: Config, data: Folder, proposals: Folder) -> EvaluationData:
        """Rows of `evaluate.split` that have proposals."""
        vocabulary = Vocabulary.from_json(data.read_json("categories.json"))
        rows: list[IndexRow] = []
        found: dict[str, Proposals] = {}
        for shard in split_shards(data, (config.evaluate.split,)):
            found.update(read_proposals(proposals, shard))
            rows += [row for row in read_index(data, shard, vocabulary.digest) if row.key in found]
        if not rows:
            raise ValueError(f"evaluate.split {config.evaluate.split!r} has no readable image with proposals")
        return cls(data, vocabulary, rows, found)

    def truth(self) -> list[ImageTruth]:
        """The annotated boxes in the evaluator's form; crowds are ignored regions."""
        result = []
        for row in self.rows:
            known = row.box_labels >= 0
            result.append(
                ImageTruth(
                    row.image_id,
                    row.width,
                    row.height,
                    row.boxes[known].astype(np.float64),
                    row.box_labels[known].astype(np.int64),
                    row.box_crowd[known],
                    row.box_area[known].astype(np.float64),
                )
            )
        return result

    def batches(self, size: int) -> Iterator[list[EvaluationImage]]:
        """Images with their pixels, at most `size` at a time; one that can't be read is left out."""
        reader = ImageReader(self.data)
        for start in range(0, len(self.rows), size):
            batch = []
            for row in self.rows[start : start + size]:
                try:
                    pixels = torch.from_numpy(np.ascontiguousarray(reader.read(row).transpose(2, 0, 1)))
                except BadImage as error:  # its objects stay in the truth, as missed ones
                    _log.warning("evaluation goes on without %s: %s", row.key, error)
                    continue
                use = (row.box_labels >= 0) & ~row.box_crowd
                boxes, labels = torch.from_numpy(row.boxes[use]), torch.from_numpy(row.box_labels[use]).long()
                batch.append(EvaluationImage(row, pixels, boxes, labels, self.proposals[row.key]))
            if batch:
                yield batch


@dataclass
class Collected:
    """Detections and logits gathered over the split for one model."""

    detections: list[ImageDetections] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, image_id: int, found: Detections) -> None:
        """Keep one image's detections."""
        self.detections.append(
            ImageDetections(
                image_id,
                found.boxes.double().cpu().numpy(),
                found.scores.double().cpu().numpy(),
                found.labels.cpu().numpy(),
            )
        )

    def scores(self, evaluation: EvaluationData) -> dict[str, Any]:
        """AP by group, and top-1 accuracy where given boxes were classified; percent."""
        result = evaluate_detections(evaluation.truth(), self.detections, evaluation.vocabulary).to_json()
        if self.logits:
            top1 = top1_accuracy(
                torch.cat(self.logits).cpu().numpy(), torch.cat(self.labels).numpy(), evaluation.vocabulary
            )
            for group, value in top1.items():
                result[group]["top1"] = value
        return result


Tick = Callable[[int], None]


def _input_boxes(batch: ImageBatch, boxes: Sequence[Tensor], device: str) -> list[Tensor]:
    return [batch.to_input(i, b).to(device) for i, b in enumerate(boxes)]


def zero_shot(
    clip: ClipModel, config: Config, evaluation: EvaluationData, device: str, tick: Tick
) -> dict[str, Collected]:
    """`gt` (annotated boxes classified) and `rpn` (proposals classified) for one init, one pass over the images."""
    settings = config.evaluate
    detector = OpenVocabularyDetector(
        region_encoder(clip),
        class_embeddings(clip, evaluation.vocabulary.names, config),
        evaluation.vocabulary.names,
        config.finetune.temperature or 1 / clip.logit_scale,
    )
    detector.to(device).eval()
    given = InferenceSettings(settings.score_threshold, settings.nms, max_detections=settings.max_detections)
    proposed = InferenceSettings.from_config(settings, finetuned=False)
    collected = {"gt": Collected(), "rpn": Collected()}
    with torch.inference_mode():
        for images in evaluation.batches(settings.batch_size):
            batch = batch_images(
                [i.pixels for i in images], settings.image_size, settings.max_size, clip.mean, clip.std
            )
            both = _input_boxes(batch, [torch.cat([i.boxes, i.proposals.boxes]) for i in images], device)
            logits = detector.classify(detector.encoder(batch.tensor.to(device), both)).cpu()
            if settings.zero_shot_background == "none":
                logits[:, -1] = float("-inf")
            for image, part in zip(images, torch.split(logits, [len(b) for b in both]), strict=True):
                _collect_zero_shot(image, part, given, proposed, collected)
            tick(len(images))
    return collected


def _collect_zero_shot(
    image: EvaluationImage,
    logits: Tensor,
    given: InferenceSettings,
    proposed: InferenceSettings,
    collected: Mapping[str, Collected],
) -> None:
    size = (image.row.height, image.row.width)
    count = len(image.boxes)
    truth, found = logits[:count], logits[count:]
    collected["gt"].add(image.row.image_id, detect_image(truth, None, image.boxes, None, size, given))
    collected["gt"].logits.append(truth[:, :-1])
    collected["gt"].labels.append(image.labels)
    boxes, objectness = image.proposals
    collected["rpn"].add(image.row.image_id, detect_image(found, None, boxes, objectness, size, proposed))


def finetuned(
    detector: OpenVocabularyDetector,
    clip: ClipModel,
    config: Config,
    evaluation: EvaluationData,
    device: str,
    tick: Tick,
) -> Collected:
    """Detections of one finetuned detector with the whole vocabulary, novel names included."""
    settings = config.evaluate
    names = evaluation.vocabulary.names
    detector.set_vocabulary(class_embeddings(clip, names, config), names)
    detector.to(device).eval()
    rules = InferenceSettings.from_config(settings, finetuned=True)
    collected = Collected()
    with torch.inference_mode():
        for images in evaluation.batches(settings.batch_size):
            batch = batch_images(
                [i.pixels for i in images], settings.image_size, settings.max_size, clip.mean, clip.std
            )
            boxes = _input_boxes(batch, [i.proposals.boxes for i in images], device)
            objectness = [i.proposals.logits.to(device) for i in images]
            on_device = ImageBatch(batch.tensor.to(device), batch.sizes, batch.scales, batch.original_sizes)
            for image, found in zip(
                images, detector.detect(on_device, boxes, objectness, rules, box_deltas=True), strict=True
            ):
                collected.add(image.row.image_id, found)
            tick(len(images))
    return collected
