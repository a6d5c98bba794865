"""The passes over the images: zero-shot with annotated boxes and with proposals, and finetuned.

Each pass yields one image's results at a time and holds one batch.

Legend: R proposals and G annotated boxes of one image, K categories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from regionclip_core.config.tree import Config, TeacherConfig
from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.inference import (
    Detections,
    Fusion,
    InferenceSettings,
    class_probabilities,
    detect_image,
)
from regionclip_core.evaluation.average_precision import Protocol, label_groups
from regionclip_core.evaluation.colours import Colours
from regionclip_core.evaluation.data import EvaluationData, EvaluationImage
from regionclip_core.evaluation.second_scores import SecondScores, exponents, second_temperature
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.region_encoder import RegionEncoder, mask_shares
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops.image_batch import ImageBatch, Resized, batch_resized, by_input_size, resize_image
from regionclip_core.ops.masks import ImageMasks
from regionclip_core.precision import networks

GIVEN, PROPOSED = "zero_shot_gt", "zero_shot_rpn"
FINETUNED = "finetuned"
GIVEN_SYNONYMS, PROPOSED_SYNONYMS, FINETUNED_SYNONYMS = (f"{s}_synonyms" for s in (GIVEN, PROPOSED, FINETUNED))
SYNONYMS = {GIVEN_SYNONYMS: GIVEN, PROPOSED_SYNONYMS: PROPOSED, FINETUNED_SYNONYMS: FINETUNED}
"""Settings in which synonyms take the place of the categories' names, and those with the names."""
GIVEN_FUSED, PROPOSED_FUSED, FINETUNED_FUSED = "zero_shot_gt_fused", "zero_shot_rpn_fused", "finetuned_fused"
"""The same with a second classifier in the scores, see `evaluate.fusion`."""
RESTRICTED = {"finetuned_base_only": "base", "finetuned_novel_only": "novel"}
"""Settings in which the detector is asked for the names of one group only, and that group."""

Tick = Callable[[int], None]
"""Called with the number of images of a finished batch."""


@dataclass(frozen=True)
class ImageResult:
    """What one model found in one image, by setting; boxes in original pixels.

    Settings that leave this image out (see `finetuned`) are missing.
    """

    image: EvaluationImage
    found: Mapping[str, Detections]
    given: Mapping[str, Tensor] = field(default_factory=dict)
    """float32[G, K] by setting: logits or probabilities of the annotated boxes, where they were classified; without
    the background's."""
    given_masks: Tensor | None = None
    """float32[G, K]: logits of the annotated masks."""
    colour_right: Tensor | None = None
    """bool[G], see `Colours.right`."""


def zero_shot(
    clip: ClipModel,
    config: Config,
    evaluation: EvaluationData,
    device: str,
    tick: Tick,
    keep: SecondScores | None = None,
    crops: SecondScores | None = None,
) -> Iterator[ImageResult]:
    """Yield `zero_shot_gt` (annotated boxes classified) and `zero_shot_rpn` (proposals classified), in one pass.

    Per-class NMS is hard and boxes stay as they are, as in the official zero-shot runs. Annotated boxes may have
    a score threshold of their own, `evaluate.given_score_threshold`. `keep` gets the probabilities, as the second ones
    of a later pass. `crops` are the second ones here: with them both settings come fused, too. Where the evaluation has
    synonyms, they come a second time by these. With `evaluate.masks` the annotated objects are also classified by their
    masks.
    """
    settings, names = config.evaluate, evaluation.vocabulary.names
    temperature = config.finetune.temperature or 1 / clip.logit_scale
    classes = embed_names(clip, names, config.teacher)
    synonyms = None
    if evaluation.synonyms is not None:
        synonyms = embed_names(clip, evaluation.synonyms, config.teacher).to(device)
    detector = OpenVocabularyDetector(region_encoder(clip), classes, names, temperature).to(device).eval()
    threshold = settings.given_score_threshold
    threshold = settings.score_threshold if threshold is None else threshold
    given = InferenceSettings(threshold, settings.nms, max_detections=settings.max_detections)
    proposed = replace(InferenceSettings.from_config(settings, finetuned=False), nms_kind="hard")
    colours = Colours(clip, config, evaluation) if settings.colours else None
    alike = torch.full((len(names),), settings.fusion.zero_shot)
    sharper = temperature / second_temperature(config, clip)

    @torch.inference_mode()
    def results(images: Sequence[EvaluationImage], batch: ImageBatch) -> list[ImageResult]:
        both = (torch.cat([i.boxes, i.proposals.boxes]) for i in images)  # they share the forward pass
        boxes = [batch.to_input(i, own).to(device) for i, own in enumerate(both)]
        with networks(device):
            maps = detector.encoder.features(batch.tensor, batch.sizes)
            features = detector.encoder.embed(maps, boxes)
            logits = detector.classify(features).cpu()
            masked = _masked(detector.encoder, maps, images, batch) if settings.masks else None
            by_mask = None if masked is None else detector.classify(masked).cpu()
            renamed = None if synonyms is None else detector.classify(features, synonyms).cpu()
        if settings.zero_shot_background == "none":  # all probability goes to the categories
            for some in (logits, *(() if renamed is None else (renamed,))):
                some[:, -1] = float("-inf")
        done, counts = [], [len(b) for b in boxes]
        others = [None] * len(images) if renamed is None else torch.split(renamed, counts)
        masks = [None] * len(images) if by_mask is None else torch.split(by_mask, [len(i.boxes) for i in images])
        every = zip(images, torch.split(logits, counts), others, torch.split(features, counts), masks, strict=True)
        for image, own, other, region_features, of_masks in every:
            size, count = (image.row.height, image.row.width), len(image.boxes)
            found = {
                GIVEN: detect_image(own[:count], None, image.boxes, None, size, given),
                PROPOSED: detect_image(own[count:], None, *image.proposals, size, proposed),
            }
            ranked = {GIVEN: own[:count, :-1]}
            if other is not None:
                found[GIVEN_SYNONYMS] = detect_image(other[:count], None, image.boxes, None, size, given)
                found[PROPOSED_SYNONYMS] = detect_image(other[count:], None, *image.proposals, size, proposed)
                ranked[GIVEN_SYNONYMS] = other[:count, :-1]
            if keep is not None:
                keep.add(image, (own[:, :-1] * sharper).softmax(dim=1))
            if crops is not None:
                of_given, of_proposed = (Fusion(second, alike) for second in crops.read(image))
                found[GIVEN_FUSED] = detect_image(own[:count], None, image.boxes, None, size, given, of_given)
                found[PROPOSED_FUSED] = detect_image(own[count:], None, *image.proposals, size, proposed, of_proposed)
                ranked[GIVEN_FUSED] = class_probabilities(own[:count], of_given)[:, :-1]
            colour_right = None if colours is None else colours.right(image, region_features[:count])
            given_masks = None if of_masks is None else of_masks[:, :-1]
            done.append(ImageResult(image, found, ranked, given_masks, colour_right))
        return done

    yield from _in_batches(results, clip, config, evaluation, device, tick)


def _masked(encoder: RegionEncoder, maps: Tensor, images: Sequence[EvaluationImage], batch: ImageBatch) -> Tensor:
    """Return the embeddings [sum of G, D] of the annotated objects, whose bins take part as far as their masks cover
    them."""
    boxes, covers = [], []
    for number, image in enumerate(images):
        own = batch.to_input(number, image.boxes)
        masks = ImageMasks(image.masks, batch.original_sizes[number], batch.sizes[number])
        covers.append(masks.cover(torch.arange(len(own)), own, encoder.bins))
        boxes.append(own.to(maps.device))
    return encoder.embed(maps, boxes, mask_shares(torch.cat(covers).to(maps.device)))


def require_own_text(detector: OpenVocabularyDetector, clip: ClipModel, teacher: TeacherConfig, name: str) -> None:
    """Raise ValueError if most of a detector's class embeddings are those of another text encoder, or of other names.

    About 16 of its names are embedded: each must be nearest to its own row, up to rounding.
    """
    every = list(range(0, len(detector.names), max(1, len(detector.names) // 16)))
    embedded = embed_names(clip, [detector.names[row] for row in every], teacher).cpu()
    cosines = embedded @ detector.class_embeddings.T
    own = cosines[range(len(every)), every]
    wrong = [row for row, off in zip(every, (cosines.amax(1) > own + 1e-3).tolist(), strict=True) if off]
    if 2 * len(wrong) > len(every):
        raise ValueError(
            f"detector {name}: its class embeddings are not of the text encoder here: of {len(every)} names, "
            f"{len(wrong)} are nearer to another name's row, such as {detector.names[wrong[0]]!r}. Give the CLIP model "
            "that the detector comes from as teacher.weights and pretrain.weights, or import it with the right names"
        )


def finetuned(
    detector: OpenVocabularyDetector,
    clip: ClipModel,
    config: Config,
    evaluation: EvaluationData,
    device: str,
    tick: Tick,
    second: SecondScores | None = None,
) -> Iterator[ImageResult]:
    """Yield `finetuned`: detections with the whole vocabulary, novel names included (the generalised setting).

    With COCO's protocol also `finetuned_base_only` and `finetuned_novel_only`: the classifier knows the names of one
    group only, and images without an object of that group are left out. They share the forward pass with the first,
    as do `finetuned_fused`, where there are `second` probabilities, and `finetuned_synonyms`, where there are any.
    """
    names = evaluation.vocabulary.names
    detector.set_vocabulary(embed_names(clip, names, config.teacher), names)
    detector.to(device).eval()
    groups = restricted_labels(evaluation.vocabulary, config.evaluate.protocol)
    rules = InferenceSettings.from_config(config.evaluate, finetuned=True)
    synonyms = None if evaluation.synonyms is None else embed_names(clip, evaluation.synonyms, config.teacher)
    weights = exponents(config.evaluate.fusion, evaluation.vocabulary).to(device)

    @torch.inference_mode()
    def results(images: Sequence[EvaluationImage], batch: ImageBatch) -> list[ImageResult]:
        boxes = [batch.to_input(i, image.proposals.boxes).to(device) for i, image in enumerate(images)]
        objectness = [i.proposals.logits.to(device) for i in images]
        classified = detector.classify_proposals(batch, boxes)
        every = detector.choose(classified, batch, boxes, objectness, rules, box_deltas=True)
        found = [{FINETUNED: one} for one in every]
        if second is not None:
            fusion = [Fusion(second.read(image)[1].to(device), weights) for image in images]
            fused = detector.choose(classified, batch, boxes, objectness, rules, box_deltas=True, fusion=fusion)
            for settings, one in zip(found, fused, strict=True):
                settings[FINETUNED_FUSED] = one
        if synonyms is not None:
            logits = detector.classify(classified.embeddings, synonyms.to(device))
            by_synonym = classified._replace(output=classified.output._replace(logits=logits))
            for settings, one in zip(
                found, detector.choose(by_synonym, batch, boxes, objectness, rules, box_deltas=True), strict=True
            ):
                settings[FINETUNED_SYNONYMS] = one
        for setting, labels in groups.items():  # the softmax is over these names and the background
            some = detector.choose(
                classified, batch, boxes, objectness, rules, box_deltas=True, masks=False, labels=labels
            )
            for image, settings, one in zip(images, found, some, strict=True):
                if set(labels) & set(image.row.box_labels.tolist()):
                    settings[setting] = one
        return [ImageResult(image, one) for image, one in zip(images, found, strict=True)]

    yield from _in_batches(results, clip, config, evaluation, device, tick)


def restricted_labels(vocabulary: Vocabulary, protocol: Protocol) -> dict[str, list[int]]:
    """Return rows of the vocabulary by restricted setting: none for LVIS, nor where there is only one group."""
    groups = label_groups(vocabulary)
    labels = {setting: groups[group] for setting, group in RESTRICTED.items()}
    return labels if protocol == "coco" and all(labels.values()) else {}


def _in_batches(
    results: Callable[[Sequence[EvaluationImage], ImageBatch], list[ImageResult]],
    clip: ClipModel,
    config: Config,
    evaluation: EvaluationData,
    device: str,
    tick: Tick,
) -> Iterator[ImageResult]:
    """Yield the results of all images in order; only images of one input size share a batch."""
    settings = config.evaluate

    def resize(image: Tensor) -> Tensor:
        return resize_image(image, settings.image_size, settings.max_size).pixels

    for images in evaluation.batches(settings.batch_size, resize):
        resized = [Resized(image.pixels, (image.row.height, image.row.width)) for image in images]

        def some(
            numbers: list[int], images: Sequence[EvaluationImage] = images, resized: Sequence[Resized] = resized
        ) -> list[ImageResult]:
            batch = batch_resized([resized[number] for number in numbers], clip.mean, clip.std, device)
            return results([images[number] for number in numbers], batch)

        yield from by_input_size(resized, some)
        tick(len(images))
