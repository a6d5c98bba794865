"""Detection with given proposals, NMS by itself and average precision, against plain ways and pycocotools."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from bench_scale import scored_image
from made_inputs import Scale, make_boxes, make_clip, make_embeddings, make_image
from measuring import Compared, compare
from plain_reference import TEMPERATURE, PlainEncoder, cosines, detect, suppress
from torch import Tensor

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.detection.detector import ClassifiedProposals, OpenVocabularyDetector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops import nms
from regionclip_core.ops.image_batch import ImageBatch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "core"))

from reference_evaluators import evaluate_detections, pycocotools_evaluation, result_rows, truth_dict

KINDS: dict[str, nms.NmsKind] = {"hard NMS": "hard", "soft-NMS": "gaussian"}


@torch.inference_mode()
def compare_detection(scale: Scale) -> list[Compared]:
    """Return a row for each kind of NMS: the networks, the same for both, and the choice of detections."""
    clip, image, size = make_clip(scale.toy), make_image(scale), (scale.height, scale.width)
    boxes = [make_boxes(scale.proposals, *size)]
    names = tuple(f"class {n}" for n in range(scale.categories))
    embeddings = make_embeddings(scale.categories)
    plain = PlainEncoder(clip.model.visual)
    encoder = region_encoder(clip).to(memory_format=torch.channels_last)
    detector = OpenVocabularyDetector(encoder, embeddings, names, TEMPERATURE).eval()
    batch = ImageBatch(image.contiguous(memory_format=torch.channels_last), [size], [size])

    def plain_networks() -> Tensor:
        features = plain(image, boxes)
        logits = torch.cat((cosines(features, embeddings), features.new_zeros(len(features), 1)), dim=1)
        return torch.cat((logits, detector.box_regressor(features)), dim=1)

    classified: list[ClassifiedProposals] = []

    def our_networks() -> Tensor:
        classified[:] = [detector.classify_proposals(batch, boxes)]
        return torch.cat(classified[0].output, dim=1)

    # Both choose from our networks' output: near ties let soft-NMS make 1e-3 out of their difference of 1e-6.
    networks, _, output = compare("networks", plain_networks, our_networks, scale.rounds)
    logits, deltas = output.split((scale.categories + 1, 4), dim=1)
    # Random weights leave other numbers of pairs than trained ones: the threshold is where as many are left.
    threshold = threshold_of(logits.softmax(dim=1)[:, :-1], scale.pairs[0])
    rows = []
    for name, kind in KINDS.items():
        settings = InferenceSettings(score_threshold=threshold, nms_kind=kind)
        choice, *_ = compare(
            name,
            lambda kind=kind: detect(logits, deltas, boxes[0], size, threshold, soft=kind != "hard"),
            lambda settings=settings: detector.choose(classified[0], batch, boxes, None, settings, True)[0].scores,
            scale.rounds,
        )
        rows.append(choice.after(networks, f"detection, {scale.proposals:,} given proposals, {name}"))
    return rows


def threshold_of(scores: Tensor, pairs: int) -> float:
    """Return a threshold that this many scores are above, half-way to the next."""
    return float(scores.flatten().topk(pairs + 1).values[-2:].mean())


def compare_nms(scale: Scale) -> list[Compared]:
    """Return a row per number of pairs and kind of NMS."""
    rows = []
    boxes = make_boxes(scale.proposals, scale.height, scale.width)
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(scale.proposals, scale.categories, generator=generator)
    for pairs in scale.pairs:
        threshold = threshold_of(scores, pairs)
        for name, kind in KINDS.items():
            row, *_ = compare(
                f"{name}, {pairs:,} pairs",
                lambda threshold=threshold, kind=kind: suppress(boxes, scores, threshold, soft=kind != "hard"),
                lambda threshold=threshold, kind=kind: nms.suppress(boxes, scores, threshold, 100, kind).score,
                scale.rounds * (7 if kind == "hard" else 1),  # milliseconds
            )
            rows.append(row)
    return rows


def compare_evaluation(scale: Scale) -> list[Compared]:
    """Return one row: COCO's average precision of given detections."""
    scenes = [scored_image(number) for number in range(scale.evaluated)]
    truth, detections = (list(part) for part in zip(*scenes, strict=True))
    vocabulary = Vocabulary(tuple(f"c{n}" for n in range(80)))
    dataset, results = truth_dict(truth, 80), result_rows(truth, detections, "bbox")

    def plain() -> Tensor:
        return torch.tensor(pycocotools_evaluation(dataset, results, "bbox").stats[:2] * 100)

    def ours() -> Tensor:
        scores = evaluate_detections(truth, detections, vocabulary)["all"]
        return torch.tensor([scores["ap"], scores["ap50"]], dtype=torch.float64)

    ours()  # imports some
    return [compare(f"average precision, {scale.evaluated:,} images x 100 detections", plain, ours, scale.rounds)[0]]
