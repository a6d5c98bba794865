"""The passes of the evaluate stage over the images: zero-shot with given boxes and with proposals, finetuned.

Each pass yields one image's results at a time and holds one batch. R regions of one image, G annotated boxes of one
image, K categories, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from regionclip_core.config.tree import Config
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import Detections, InferenceSettings, detect_image
from regionclip_core.evaluation.data import EvaluationData, EvaluationImage
from regionclip_core.evaluation.evaluator import Protocol
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import ImageBatch, batch_images, by_input_size

GIVEN, PROPOSED = "zero_shot_gt", "zero_shot_rpn"
FINETUNED = "finetuned"
RESTRICTED = {"finetuned_base_only": "base", "finetuned_novel_only": "novel"}
"""Settings in which the detector is asked for the names of one group only, and that group."""

_T = TypeVar("_T")
Tick = Callable[[int], None]
"""Called with the number of images of a batch that is done."""


@dataclass(frozen=True)
class ImageResult:
    """What one model found in one image, by setting; boxes in original pixels.

    A setting that leaves this image out (see `finetuned`) is missing.
    """

    image: EvaluationImage
    found: Mapping[str, Detections]
    given_logits: Tensor | None = None
    """float32[G, K] of the annotated boxes, background left out, where they were classified."""


def zero_shot(
    clip: ClipModel,
    config: Config,
    evaluation: EvaluationData,
    device: str,
    tick: Tick,
    given_score_threshold: float | None = None,
) -> Iterator[ImageResult]:
    """`zero_shot_gt` (annotated boxes classified) and `zero_shot_rpn` (proposals classified), in one pass.

    Per-class NMS is hard and boxes stay as they are, as in the official zero-shot runs. `given_score_threshold`
    replaces `evaluate.score_threshold` for annotated boxes.
    """
    settings = config.evaluate
    detector = OpenVocabularyDetector(
        region_encoder(clip),
        embed_names(clip, evaluation.vocabulary.names, config.teacher),
        evaluation.vocabulary.names,
        config.finetune.temperature or 1 / clip.logit_scale,
    )
    detector.to(device).eval()
    threshold = settings.score_threshold if given_score_threshold is None else given_score_threshold
    given = InferenceSettings(threshold, settings.nms, max_detections=settings.max_detections)
    proposed = replace(InferenceSettings.from_config(settings, finetuned=False), nms_kind="hard")
    for images in evaluation.batches(settings.batch_size):
        every = _by_size(config, images, lambda some: _zero_shot_logits(detector, clip, config, some, device))
        for image, logits in zip(images, every, strict=True):
            size, count = (image.row.height, image.row.width), len(image.boxes)
            boxes, objectness = image.proposals
            found = {
                GIVEN: detect_image(logits[:count], None, image.boxes, None, size, given),
                PROPOSED: detect_image(logits[count:], None, boxes, objectness, size, proposed),
            }
            yield ImageResult(image, found, logits[:count, :-1])
        tick(len(images))


@torch.inference_mode()
def _zero_shot_logits(
    detector: OpenVocabularyDetector, clip: ClipModel, config: Config, images: Sequence[EvaluationImage], device: str
) -> Sequence[Tensor]:
    """Per image float32[G + R, K + 1] on the CPU: its annotated boxes, then its proposals."""
    batch = _batch(clip, config, images, device)
    both = _input_boxes(batch, [torch.cat([i.boxes, i.proposals.boxes]) for i in images])
    logits = detector.classify(detector.encoder(batch.tensor, both, batch.sizes)).cpu()
    if config.evaluate.zero_shot_background == "none":
        logits[:, -1] = float("-inf")
    return torch.split(logits, [len(boxes) for boxes in both])


def finetuned(
    detector: OpenVocabularyDetector,
    clip: ClipModel,
    config: Config,
    evaluation: EvaluationData,
    device: str,
    tick: Tick,
) -> Iterator[ImageResult]:
    """`finetuned`: detections with the whole vocabulary, novel names included (the generalised setting).

    With COCO's protocol also `finetuned_base_only` and `finetuned_novel_only`: the classifier knows the names of one
    group only, and images without an object of that group are left out. They share the forward pass with the first.
    """
    names = evaluation.vocabulary.names
    detector.set_vocabulary(embed_names(clip, names, config.teacher), names)
    detector.to(device).eval()
    groups = restricted_labels(evaluation.vocabulary, config.evaluate.protocol)
    for images in evaluation.batches(config.evaluate.batch_size):
        found = _by_size(config, images, lambda some: _finetuned_batch(detector, clip, config, some, device, groups))
        yield from (ImageResult(image, one) for image, one in zip(images, found, strict=True))
        tick(len(images))


def restricted_labels(vocabulary: Vocabulary, protocol: Protocol) -> dict[str, list[int]]:
    """Rows of the vocabulary by restricted setting; none in LVIS's protocol, or where there is but one group."""
    labels = {"base": list(vocabulary.base_ids), "novel": list(vocabulary.novel_ids)}
    if protocol != "coco" or not all(labels.values()):
        return {}
    return {setting: labels[group] for setting, group in RESTRICTED.items()}


@torch.inference_mode()
def _finetuned_batch(
    detector: OpenVocabularyDetector,
    clip: ClipModel,
    config: Config,
    images: Sequence[EvaluationImage],
    device: str,
    groups: Mapping[str, Sequence[int]],
) -> list[dict[str, Detections]]:
    """Detections by setting for each image."""
    rules = InferenceSettings.from_config(config.evaluate, finetuned=True)
    batch = _batch(clip, config, images, device)
    boxes = _input_boxes(batch, [i.proposals.boxes for i in images])
    objectness = [i.proposals.logits.to(device) for i in images]
    classified = detector.classify_proposals(batch, boxes)
    found = detector.choose(classified, batch, boxes, objectness, rules, box_deltas=True)
    result: list[dict[str, Detections]] = [{FINETUNED: one} for one in found]
    for setting, labels in groups.items():
        some = detector.choose(classified, batch, boxes, objectness, rules, box_deltas=True, masks=False, labels=labels)
        for image, settings, one in zip(images, result, some, strict=True):
            if set(labels) & set(image.row.box_labels.tolist()):
                settings[setting] = one
    return result


def _by_size(
    config: Config, images: Sequence[EvaluationImage], compute: Callable[[Sequence[EvaluationImage]], Sequence[_T]]
) -> list[_T]:
    """One result an image, in order; only images of one input size are computed together, see `by_input_size`."""
    pixels, settings = [image.pixels for image in images], config.evaluate
    return by_input_size(
        pixels, settings.image_size, settings.max_size, lambda numbers: compute([images[n] for n in numbers])
    )


def _batch(clip: ClipModel, config: Config, images: Sequence[EvaluationImage], device: str) -> ImageBatch:
    settings = config.evaluate
    batch = batch_images([i.pixels for i in images], settings.image_size, settings.max_size, clip.mean, clip.std)
    return replace(batch, tensor=batch.tensor.to(device))


def _input_boxes(batch: ImageBatch, boxes: Sequence[Tensor]) -> list[Tensor]:
    return [batch.to_input(i, b).to(batch.tensor.device) for i, b in enumerate(boxes)]
