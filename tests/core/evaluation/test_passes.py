"""The numbers of the evaluate stage: with an encoder that sees colours, and against loops over images and regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_artifacts import (
    COLOURS,
    TRAIN,
    VOCABULARY,
    Picture,
    naive_iou,
    network_input,
    pillow_crop,
    region_feature,
    rows_of,
    tiny_clip,
    tiny_config,
    write_data,
    write_proposals,
)
from torch import Tensor, nn

from regionclip_core.config.tree import Config
from regionclip_core.datasets.images import ImageReader
from regionclip_core.detection.detector import OpenVocabularyDetector
from regionclip_core.detection.finetuning import build_detector
from regionclip_core.detection.inference import Detections
from regionclip_core.evaluation import passes
from regionclip_core.evaluation.data import EvaluationData
from regionclip_core.evaluation.metrics import measure
from regionclip_core.evaluation.passes import (
    FINETUNED,
    FINETUNED_FUSED,
    GIVEN,
    GIVEN_FUSED,
    PROPOSED,
    PROPOSED_FUSED,
    ImageResult,
    finetuned,
    zero_shot,
)
from regionclip_core.evaluation.second_scores import SecondScores, crop_scores
from regionclip_core.models.clip import ClipModel
from regionclip_core.models.text_embeddings import embed_names
from regionclip_core.proposals.proposers import read_proposals
from regionclip_core.proposals.rpn import Proposals
from regionclip_core.storage.records import Folder

GROUPS = ("base", "novel", "all")
JUNK = [[1.0, 1, 6, 47], [22, 31, 29, 38], [0, 0, 48, 48]]


class ColourEncoder(nn.Module):
    """Embeds a region as the category whose colour its middle has; anything else as 0, which is like no category."""

    embed_dim = len(VOCABULARY)

    def __init__(self, clip: ClipModel) -> None:
        super().__init__()
        self.mean, self.std = torch.tensor(clip.mean).view(3, 1, 1), torch.tensor(clip.std).view(3, 1, 1)

    def features(self, images: Tensor, sizes: Any = None) -> Tensor:
        return images

    def forward(self, images: Tensor, boxes: Sequence[Tensor], sizes: Any = None) -> Tensor:
        return self.embed(images, boxes)

    def embed(self, images: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        colours = torch.from_numpy(COLOURS).float()
        rows = []
        for image, image_boxes in zip(images, boxes, strict=True):
            pixels = (image * self.std + self.mean) * 255
            for x0, y0, x1, y1 in image_boxes.tolist():
                middle = pixels[:, int((y0 + y1) / 2), int((x0 + x1) / 2)]
                distance, label = (colours - middle).abs().amax(dim=1).min(dim=0)
                known = float(distance) < 60 and int(label) < len(VOCABULARY)
                rows.append(torch.eye(len(VOCABULARY))[label] if known else torch.zeros(len(VOCABULARY)))
        return torch.stack(rows) if rows else torch.zeros(0, len(VOCABULARY))


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP replaced by a model that can't be wrong about the painted pictures, however they are resized."""
    monkeypatch.setattr(passes, "region_encoder", ColourEncoder)
    monkeypatch.setattr(passes, "embed_names", lambda clip, names, teacher: torch.eye(len(names)))


def setup(
    url: Path, shards: list[list[Picture]], config: Config | None = None, best: Sequence[Sequence[float]] = ()
) -> tuple[EvaluationData, Config]:
    """Data whose proposals are `best`, all annotated boxes, the crowds' and unknown ones too, and a few of nothing."""
    config = config or tiny_config(evaluate={"split": "val"})
    data = write_data(url / "data", {"val": shards})
    proposals = Folder(str(url / "proposals"))
    boxes = {
        row.key: torch.cat([torch.tensor(best).reshape(-1, 4), torch.from_numpy(row.boxes), torch.tensor(JUNK)])
        for row in rows_of(data, "val")
        if row.status == "ok"
    }
    write_proposals(proposals, data, "val", boxes, torch.linspace(3, -3, 20))
    return EvaluationData(config, data, proposals), config


def passed(evaluation: EvaluationData, config: Config) -> list[ImageResult]:
    """One zero-shot pass with the tiny model."""
    return list(zero_shot(tiny_clip(), config, evaluation, "cpu", lambda images: None))


def scores(evaluation: EvaluationData, config: Config) -> dict[str, dict[str, Any]]:
    return measure(passed(evaluation, config), evaluation.evaluator, (GIVEN, PROPOSED))


def proposals_of(evaluation: EvaluationData) -> dict[str, Proposals]:
    return {k: v for shard in evaluation.shards for k, v in read_proposals(evaluation.proposals, shard).items()}


@pytest.mark.usefixtures("colours")
def test_a_perfect_model_has_full_marks(tmp_path: Path) -> None:
    """Boxes of both kinds meet their pixels at input scale, and come back in original pixels; crowds and unknown
    objects, proposed as well, count neither way."""
    found = scores(*setup(tmp_path, TRAIN))
    objects = {"base": 6, "novel": 3, "all": 9}
    for kind in (GIVEN, PROPOSED):
        for group in GROUPS:
            assert found[kind][group]["ap50"] == pytest.approx(100), (kind, group)
            assert found[kind][group]["ap"] == pytest.approx(100), (kind, group)
            assert found[kind][group]["boxes"] == objects[group]
    for group in GROUPS:
        assert found[GIVEN][group]["top1"] == 100
        assert "top1" not in found[PROPOSED][group]


@pytest.mark.usefixtures("colours")
def test_a_model_that_takes_novel_for_base_fails_on_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped = torch.eye(4)[[0, 3, 2, 1]]  # dog and cup, the novel ones
    monkeypatch.setattr(passes, "embed_names", lambda clip, names, teacher: swapped)
    found = scores(*setup(tmp_path, TRAIN))
    for kind in (GIVEN, PROPOSED):
        assert found[kind]["base"]["ap50"] == pytest.approx(100)
        assert found[kind]["novel"]["ap50"] < 50
    assert found[GIVEN]["base"]["top1"] == 100
    assert found[GIVEN]["novel"]["top1"] == 0
    assert found[GIVEN]["all"]["top1"] == pytest.approx(100 * 6 / 9)


class Unannotated(Picture):
    """A cat that nobody drew a box around."""

    def pixels(self) -> np.ndarray:
        pixels = super().pixels()
        pixels[32:46, 34:54] = COLOURS[0]
        return pixels


@pytest.mark.usefixtures("colours")
def test_images_without_boxes_count(tmp_path: Path) -> None:
    """A false alarm on one, surer than both right finds: the precision of cats is 2/3 at full recall."""
    cats = [Picture(48, 64, ((4, 6, 24, 30),), (0,)), Picture(48, 64, ((30, 8, 60, 30),), (0,))]
    clean, config = setup(tmp_path / "clean", [[*cats, Picture(48, 64)]])
    assert clean.count == 3
    assert scores(clean, config)[PROPOSED]["all"]["ap50"] == pytest.approx(100)
    # The same place, the best proposal of every image, shows nothing on the other two.
    wrong, config = setup(tmp_path / "wrong", [[*cats, Unannotated(48, 64)]], best=[[34.0, 32, 54, 46]])
    found = scores(wrong, config)
    assert found[PROPOSED]["all"]["ap50"] == pytest.approx(200 / 3, abs=0.5)
    assert found[GIVEN]["all"]["ap50"] == pytest.approx(100)


# All of one size, which the loops below have as numbers; the last batch is not full.
EVEN = [
    Picture(48, 72, ((4, 6, 20, 30), (30, 10, 60, 26)), (0, 1)),
    Picture(48, 72),
    Picture(48, 72, ((10, 10, 40, 40), (40, 5, 70, 25), (0, 0, 72, 20)), (3, 2, 0), crowd=(2,)),
    Picture(48, 72, ((0, 0, 64, 20), (8, 24, 28, 44)), (UNKNOWN := -1, 2)),
]
Found = tuple[float, int, tuple[float, ...]]


def naive_detections(
    boxes: list[list[float]], probabilities: list[np.ndarray], factors: list[float], rules: dict[str, float]
) -> list[Found]:
    """(score, label, box) of one image: product, threshold, greedy suppression class by class, the best."""
    found: list[Found] = []
    for label in range(len(VOCABULARY)):
        column = [
            (float(np.sqrt(p[label] * f)) if f else float(p[label]), tuple(box))
            for p, f, box in zip(probabilities, factors, boxes, strict=True)
        ]
        kept: list[tuple[float, tuple[float, ...]]] = []
        for score, box in sorted(column, key=lambda pair: -pair[0]):
            if score > rules["threshold"] and all(naive_iou(box, other) <= rules["nms"] for _, other in kept):
                kept.append((score, box))
        found += [(score, label, box) for score, box in kept]
    return sorted(found, key=lambda one: -one[0])[: int(rules["most"])]


def assert_found(found: Detections, expected: list[Found], tolerance: float = 1e-3) -> None:
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], atol=1e-4)
    assert found.labels.tolist() == [label for _, label, _ in expected]
    np.testing.assert_allclose(found.boxes, np.array([box for *_, box in expected]).reshape(-1, 4), atol=tolerance)


def naive_features(row: Any, boxes: Tensor, evaluation: EvaluationData, visual: nn.Module, clip: ClipModel) -> Tensor:
    canvas = network_input(ImageReader(evaluation.data).read(row), (64, 96), clip.mean, clip.std)
    ratio = torch.tensor([96 / 72, 64 / 48] * 2)
    with torch.no_grad():
        rows = [region_feature(visual, canvas, (box * ratio).tolist()) for box in boxes]
    return torch.stack(rows) if rows else torch.zeros(0, 16)


@pytest.mark.parametrize("background", ["none", "zero"])
@pytest.mark.parametrize("objectness", ["none", "sigmoid"])
def test_zero_shot_against_a_loop(tmp_path: Path, background: str, objectness: str) -> None:
    settings = {"zero_shot_background": background, "objectness": objectness}
    rules = {"threshold": 0.15, "nms": 0.3, "most": 6}
    limits = {"split": "val", "score_threshold": 0.15, "nms": 0.3, "max_detections": 6}
    evaluation, config = setup(tmp_path, [EVEN], tiny_config(evaluate={**limits, **settings}))
    clip, ticks = tiny_clip(), []
    found = list(zero_shot(clip, config, evaluation, "cpu", ticks.append))
    assert ticks == [3, 1]
    with torch.no_grad():
        classes = torch.nn.functional.normalize(embed_names(clip, VOCABULARY.names, config.teacher), dim=1)
    right: list[bool] = []
    number = 0
    given = proposals_of(evaluation)
    for result, row in zip(found, evaluation.rows(), strict=True):
        use = [j for j in range(len(row.boxes)) if row.box_labels[j] >= 0 and not row.box_crowd[j]]
        proposals = given[row.key]
        for kind, boxes in ((GIVEN, torch.from_numpy(row.boxes[use])), (PROPOSED, proposals.boxes)):
            probabilities = []
            for feature in naive_features(row, boxes, evaluation, clip.model.visual, clip):
                logits = (classes @ feature / feature.norm() / 0.07).double().numpy()
                weights = np.exp(logits - logits.max())
                probabilities.append(weights / (weights.sum() + (np.exp(-logits.max()) if background == "zero" else 0)))
            factors = [0.0] * len(boxes)
            if kind == PROPOSED and objectness == "sigmoid":
                factors = [1 / (1 + np.exp(-float(v))) for v in proposals.logits]
            expected = naive_detections(boxes.tolist(), probabilities, factors, rules)
            number += len(expected)
            assert result.image.row.image_id == row.image_id
            assert_found(result.found[kind], expected)
            if kind == GIVEN:
                right += [int(p.argmax()) == row.box_labels[j] for p, j in zip(probabilities, use, strict=True)]
    assert number > 12
    top1 = measure(found, evaluation.evaluator, (GIVEN, PROPOSED))[GIVEN]["all"]["top1"]
    assert top1 == pytest.approx(100 * np.mean(right))


def test_finetuned_against_a_loop(tmp_path: Path) -> None:
    """With box deltas and a background, classified into all names by a detector trained on two of them."""
    limits = {"split": "val", "score_threshold": 0.1, "nms": 0.4, "max_detections": 7}
    evaluation, config = setup(tmp_path, [EVEN], tiny_config(evaluate=limits))
    clip = tiny_clip()
    detector = build_detector(clip, ("cat", "bus"), config)
    generator = torch.Generator().manual_seed(0)
    detector.background_logit.data.fill_(1.5)
    detector.box_regressor.weight.data.normal_(std=2.0, generator=generator)
    ticks: list[int] = []
    found = list(finetuned(detector, clip, config, evaluation, "cpu", ticks.append))
    assert ticks == [3, 1]
    assert detector.names == VOCABULARY.names
    classes = torch.nn.functional.normalize(embed_names(clip, VOCABULARY.names, config.teacher), dim=1)
    moved = 0.0
    subsets = {FINETUNED: [0, 1, 2, 3], "finetuned_base_only": [0, 2], "finetuned_novel_only": [1, 3]}
    seen = dict.fromkeys(subsets, 0)
    given = proposals_of(evaluation)
    for result, row in zip(found, evaluation.rows(), strict=True):
        proposals, boxes, every_logit = given[row.key], [], []
        features = naive_features(row, proposals.boxes, evaluation, clip.model.visual, clip)
        for (x0, y0, x1, y1), feature in zip(proposals.boxes.tolist(), features, strict=True):
            every_logit.append(np.append((classes @ feature / feature.norm() / 0.07).numpy(), 1.5))
            with torch.no_grad():
                dx, dy, dw, dh = (detector.box_regressor(feature) / torch.tensor([10.0, 10, 5, 5])).tolist()
            w, h = x1 - x0, y1 - y0
            x, y = (x0 + x1) / 2 + dx * w, (y0 + y1) / 2 + dy * h
            half_w, half_h = w * np.exp(dw) / 2, h * np.exp(dh) / 2
            box = np.clip([x - half_w, y - half_h, x + half_w, y + half_h], 0, [72, 48, 72, 48]).tolist()
            moved = max(moved, float(np.abs(np.array(box) - [x0, y0, x1, y1]).max()))
            boxes.append(box)
        for setting, labels in subsets.items():
            if not set(labels) & set(row.box_labels.tolist()):
                assert setting == FINETUNED or setting not in result.found
                continue
            seen[setting] += 1
            weights = np.exp([v[[*labels, 4]] - v.max() for v in every_logit])  # 4 is the background
            probabilities = np.zeros((len(boxes), 4))
            probabilities[:, labels] = (weights / weights.sum(axis=1, keepdims=True))[:, :-1]
            rules = {"threshold": 0.1, "nms": 0.4, "most": 7}
            expected = naive_detections(boxes, list(probabilities), [0.0] * len(boxes), rules)
            assert {label for _, label, _ in expected} <= set(labels)
            assert_found(result.found[setting], expected, 0.02)
    assert moved > 3
    assert seen == {FINETUNED: 3, "finetuned_base_only": 3, "finetuned_novel_only": 2}


@pytest.mark.parametrize("source", ["student", "teacher_crops"])
def test_fused_scores_against_a_loop(tmp_path: Path, source: str) -> None:
    """Finetuned and zero-shot, with a second opinion of the student before finetuning, or of the teacher's crops."""
    fusion = {"source": source, "base": 0.2, "novel": 0.7, "zero_shot": 0.4, "temperature": 0.05}
    limits = {"split": "val", "score_threshold": 0.1, "nms": 0.4, "max_detections": 7, "fusion": fusion}
    objectness = {"objectness": "sigmoid", "finetuned_objectness": "sigmoid"}
    config = tiny_config(evaluate={**limits, **objectness}, labels={"context": 1.5})
    evaluation, _ = setup(tmp_path, [EVEN], config)
    teacher, student = tiny_clip(), tiny_clip(1)
    detector = build_detector(student, ("cat", "bus"), config)
    detector.background_logit.data.fill_(1.5)
    crops = crop_scores(teacher, config, evaluation, lambda n: None)
    kept = SecondScores(4)
    zero = list(zero_shot(student, config, evaluation, "cpu", lambda n: None, kept, crops))
    second = kept if source == "student" else crops
    found = list(finetuned(detector, student, config, evaluation, "cpu", lambda n: None, second))

    def softmax(logits: list[np.ndarray]) -> np.ndarray:
        rows = [np.exp(row) / np.exp(row).sum() for row in logits]
        return np.array([row[:4] for row in rows]).reshape(-1, 4)  # without the background

    def cosines(clip: ClipModel, feature: Tensor) -> np.ndarray:
        with torch.no_grad():
            classes = torch.nn.functional.normalize(embed_names(clip, VOCABULARY.names, config.teacher), dim=1)
        return (classes @ feature / feature.norm()).double().numpy()

    own_exponents, rules, number = np.array([0.2, 0.7, 0.2, 0.7]), {"threshold": 0.1, "nms": 0.4, "most": 7}, 0
    given, right = proposals_of(evaluation), []
    for one, result, row in zip(zero, found, evaluation.rows(), strict=True):
        pixels = ImageReader(evaluation.data).read(row)

        def second_of(boxes: Tensor, by: str, row: Any = row, pixels: np.ndarray = pixels) -> np.ndarray:
            if by == "student":
                features = naive_features(row, boxes, evaluation, student.model.visual, student)
            else:
                cut = [pillow_crop(pixels, box, 1.5, teacher) for box in boxes.tolist()]
                with torch.no_grad():
                    features = teacher.model.encode_image(torch.stack(cut)) if cut else torch.zeros(0, 16)
            clip = student if by == "student" else teacher
            return softmax([cosines(clip, feature) / 0.05 for feature in features])

        boxes = given[row.key].boxes
        features = naive_features(row, boxes, evaluation, student.model.visual, student)
        p = softmax([np.append(cosines(student, feature) / 0.07, 1.5) for feature in features])
        p = p ** (1 - own_exponents) * second_of(boxes, source) ** own_exponents
        factors = [1 / (1 + np.exp(-float(v))) for v in given[row.key].logits]
        fused = result.found[FINETUNED_FUSED]
        assert_found(replace(fused, boxes=boxes[fused.proposal]), naive_detections(boxes.tolist(), p, factors, rules))
        number += len(fused)
        for setting, some in ((PROPOSED_FUSED, boxes), (GIVEN_FUSED, one.image.boxes)):
            features = naive_features(row, some, evaluation, student.model.visual, student)
            p = softmax([cosines(student, feature) / 0.07 for feature in features])
            p = p**0.6 * second_of(some, "teacher_crops") ** 0.4
            weights = factors if setting == PROPOSED_FUSED else [0.0] * len(some)
            assert_found(one.found[setting], naive_detections(some.tolist(), list(p), weights, rules))
        right += [int(q.argmax()) == int(label) for q, label in zip(p, one.image.labels, strict=True)]
        assert result.found[FINETUNED].scores.tolist() != fused.scores.tolist()
    assert number > 12
    measured = measure(zero, evaluation.evaluator, tuple(zero[0].found))
    assert measured[GIVEN_FUSED]["all"]["top1"] == pytest.approx(100 * np.mean(right))


def test_second_scores_come_back_as_they_were_kept(tmp_path: Path) -> None:
    evaluation, _ = setup(tmp_path, [EVEN])
    scores = SecondScores(4)
    kept = {}
    *images, last = [image for batch in evaluation.batches(1) for image in batch]
    for image in images:
        count = len(image.boxes) + len(image.proposals.boxes)
        kept[image.row.image_id] = torch.rand(count, 4)
        scores.add(image, kept[image.row.image_id])
    for image in reversed(images):
        given, proposed = scores.read(image)
        assert len(given) == len(image.boxes)
        assert torch.equal(torch.cat((given, proposed)), kept[image.row.image_id])
    with pytest.raises(ValueError, match=f"image {last.row.key} can be read now"):
        scores.read(last)


def test_synonyms_take_the_place_of_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the classifier had been made of them in the first place."""
    (tmp_path / "s.yaml").write_text("cat: [kitten, feline]\ncup: [mug]\nwhale: [orca]\n")
    config = tiny_config(evaluate={"split": "val", "synonyms": str(tmp_path / "s.yaml")})
    evaluation, _ = setup(tmp_path, [EVEN], config)
    assert evaluation.synonyms == ("kitten", "dog", "bus", "mug")
    clip, detector = tiny_clip(), build_detector(tiny_clip(), ("cat", "bus"), config)

    def run() -> list[dict[str, Detections]]:
        both = (
            zero_shot(clip, config, evaluation, "cpu", lambda n: None),
            finetuned(detector, clip, config, evaluation, "cpu", lambda n: None),
        )
        return [{**one.found, **other.found} for one, other in zip(*both, strict=True)]

    found = run()
    monkeypatch.setattr(passes, "embed_names", lambda clip, names, t: embed_names(clip, evaluation.synonyms, t))
    for one, other in zip(found, run(), strict=True):
        for setting, usual in passes.SYNONYMS.items():
            assert torch.equal(one[setting].scores, other[usual].scores)
            assert torch.equal(one[setting].labels, other[usual].labels)
            assert one[setting].scores.tolist() != one[usual].scores.tolist() or not len(one[usual])


def test_an_image_is_measured_as_if_it_were_alone(tmp_path: Path) -> None:
    """Padding to a shared canvas would change the features at the right and lower edge, and with them scores."""
    config = tiny_config(evaluate={"split": "val", "batch_size": 4})
    shapes = [(48, 72), (72, 48), (48, 90), (60, 60)]
    pictures = [Picture(h, w, ((4, 6, 20, 30), (20, 12, w, h)), (n, 2)) for n, (h, w) in enumerate(shapes)]
    together, _ = setup(tmp_path / "together", [pictures], config)
    detector, clip = build_detector(tiny_clip(), ("cat", "bus"), config), tiny_clip()

    def measured(evaluation: EvaluationData) -> list[dict[str, Any]]:
        both = zip(
            zero_shot(clip, config, evaluation, "cpu", lambda n: None),
            finetuned(detector, clip, config, evaluation, "cpu", lambda n: None),
            strict=True,
        )
        return [{**one.found, **other.found, "logits": one.given[GIVEN]} for one, other in both]

    found = measured(together)
    for number, picture in enumerate(pictures):
        alone, _ = setup(tmp_path / str(number), [[picture]], config)
        [expected] = measured(alone)
        assert torch.equal(found[number].pop("logits"), expected.pop("logits"))
        assert found[number].keys() == expected.keys() >= {GIVEN, PROPOSED, FINETUNED}
        for setting, detections in expected.items():
            assert len(detections) > 0
            assert torch.equal(found[number][setting].scores, detections.scores)
            assert torch.equal(found[number][setting].boxes, detections.boxes)


def test_a_loaded_detector_is_measured_as_it_was_trained(tmp_path: Path) -> None:
    from regionclip_core.detection.detector import load_detector, save_detector

    evaluation, config = setup(tmp_path, [EVEN])
    clip = tiny_clip()
    detector = build_detector(clip, ("cat", "bus"), config)
    save_detector(detector, Folder(str(tmp_path / "saved")), clip.architecture, stem="x")
    loaded: OpenVocabularyDetector = load_detector(Folder(str(tmp_path / "saved")), stem="x")
    one, other = (finetuned(d, clip, config, evaluation, "cpu", lambda n: None) for d in (detector, loaded))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a.found[FINETUNED].scores, b.found[FINETUNED].scores, atol=1e-5)
        assert a.found[FINETUNED].labels.tolist() == b.found[FINETUNED].labels.tolist()


def test_zero_shot_rules_are_the_official_ones(tmp_path: Path) -> None:
    """Hard NMS whatever the finetuned detectors use, and annotated boxes may have a threshold of their own."""
    soft = tiny_config(evaluate={"split": "val", "nms_kind": "gaussian", "nms": 0.3, "score_threshold": 0.2})
    hard = tiny_config(evaluate={"split": "val", "nms_kind": "hard", "nms": 0.3, "score_threshold": 0.2})
    evaluation, _ = setup(tmp_path, [EVEN], soft)
    runs = [list(zero_shot(tiny_clip(), config, evaluation, "cpu", lambda n: None)) for config in (soft, hard)]
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.found[PROPOSED].scores, other.found[PROPOSED].scores)
        assert torch.equal(one.found[PROPOSED].boxes, other.found[PROPOSED].boxes)
    low = tiny_config(evaluate={**soft.evaluate.model_dump(), "given_score_threshold": 0.001})
    lower = list(zero_shot(tiny_clip(), low, evaluation, "cpu", lambda n: None))
    fewest = [min(float(r.found[GIVEN].scores.min()) for r in run if len(r.found[GIVEN])) for run in (runs[0], lower)]
    assert fewest[0] > 0.2 > fewest[1]
    assert [len(r.found[PROPOSED]) for r in lower] == [len(r.found[PROPOSED]) for r in runs[0]]


def test_nothing_found_is_zero_and_not_an_error(tmp_path: Path) -> None:
    evaluation, _ = setup(tmp_path, [EVEN])
    settings = (FINETUNED, "finetuned_base_only", "finetuned_novel_only")
    result = measure([], evaluation.evaluator, settings)
    assert [result[FINETUNED][group]["ap50"] for group in GROUPS] == [0, 0, 0]
    assert result["finetuned_novel_only"]["novel"]["ap50"] == 0
    assert "top1" not in result[FINETUNED]["all"]
