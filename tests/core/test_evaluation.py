"""Average precision: worked by hand, and the fast evaluator against pycocotools."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest

from regionclip_core.evaluation import ImageDetections, ImageTruth, evaluate_detections, top1_accuracy
from regionclip_core.vocabulary import Vocabulary

DEFAULT = Path(__file__).parents[2].parent / "shared" / "tiny_coco"
TINY_COCO = Path(os.environ.get("REGIONCLIP_TINY_COCO", DEFAULT))
ANNOTATIONS = TINY_COCO / "annotations" / "instances_val2017.json"
NAMES = ("cat", "dog", "zebra", "kite")
VOCABULARY = Vocabulary(NAMES, base=("cat", "dog"))
BOX = np.array([[10.0, 10, 50, 50]])


def truth(image_id, boxes, labels, **more):
    return ImageTruth(image_id, 100, 100, np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels, int), **more)


def found(image_id, boxes, scores, labels):
    return ImageDetections(
        image_id, np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float), np.asarray(labels, int)
    )


def differences(one, other):
    """Largest difference between two evaluations' numbers; they must have None in the same places."""
    gaps = [0.0]
    for key, value in one.items():
        if isinstance(value, dict):
            gaps.append(differences(value, other[key]))
        elif value is None:
            assert other[key] is None, key
        else:
            gaps.append(abs(value - other[key]))
    return max(gaps)


def test_worked_example():
    shifted = BOX + np.array([8, 0, 8, 0])  # IoU 32/48 = 0.667: right up to the threshold 0.65, 4 of 10
    scene = [truth(1, BOX, [0]), truth(2, BOX, [2]), truth(3, [], [])]
    detections = [found(1, BOX, [0.9], [0]), found(2, np.concatenate((BOX, shifted)), [0.9, 0.8], [1, 2])]
    result = evaluate_detections(scene, detections, VOCABULARY)
    assert result.groups["base"] == {"ap50": 100.0, "ap": 100.0, "categories": 1, "boxes": 1}
    assert result.groups["novel"] == {"ap50": 100.0, "ap": pytest.approx(40.0), "categories": 1, "boxes": 1}
    assert result.groups["all"]["ap"] == pytest.approx(70.0)
    assert result.per_category == {"cat": 100.0, "dog": None, "zebra": 100.0, "kite": None}
    assert result.coco["AP75"] == pytest.approx(50.0)
    assert result.coco["APl"] is None
    assert list(result.coco) == [
        "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
    ]  # fmt: skip
    assert json.loads(json.dumps(result.to_json()))["all"]["ap50"] == 100.0


def test_false_positives_cost_and_crowds_do_not():
    elsewhere = [60.0, 60, 90, 90]
    both = np.concatenate((BOX, [elsewhere]))
    detections = [found(1, both, [0.5, 0.9], [0, 0])]
    assert evaluate_detections([truth(1, BOX, [0])], detections, VOCABULARY).groups["all"]["ap50"] == pytest.approx(50)
    crowd = np.array([False, True])
    with_crowd = evaluate_detections([truth(1, both, [0, 0], crowd=crowd)], detections, VOCABULARY)
    assert with_crowd.groups["all"] == {"ap50": 100.0, "ap": 100.0, "categories": 1, "boxes": 1}


def test_nothing_detected_is_zero_and_nothing_to_detect_is_none():
    assert evaluate_detections([truth(1, BOX, [0])], [], VOCABULARY).groups["base"]["ap50"] == 0.0
    assert evaluate_detections([truth(1, BOX, [0])], [], VOCABULARY).groups["novel"]["ap50"] is None
    empty = evaluate_detections([truth(1, BOX, [-1])], [found(1, BOX, [0.5], [0])], VOCABULARY)
    assert empty.groups["all"] == {"ap50": None, "ap": None, "categories": 0, "boxes": 0}


def random_scene(seed, images=40, names=12):
    rng = np.random.default_rng(seed)
    scene, detections = [], []
    for image in range(images):
        n = int(rng.integers(0, 6))
        corner = rng.uniform(0, 60, (n, 2))
        boxes = np.concatenate((corner, corner + rng.uniform(4, 90, (n, 2))), axis=1)
        labels = rng.integers(-1, names - 2, n)  # the last two have no ground truth, -1 is not in the vocabulary
        crowd, area = rng.random(n) < 0.15, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.uniform(0.4, 1, n)
        scene.append(truth(image * 7, boxes, labels, crowd=crowd, area=area))
        near = np.repeat(boxes, 3, axis=0) + rng.normal(0, 4, (3 * n, 4))
        far = rng.uniform(0, 50, (110, 2))
        every = np.concatenate((near, np.concatenate((far, far + rng.uniform(5, 50, (110, 2))), axis=1)))
        guess = np.where(rng.random(3 * n) < 0.7, np.repeat(labels, 3).clip(0), rng.integers(0, names, 3 * n))
        # Rounded scores give ties; more than 100 detections an image test the cap.
        scores = rng.random(len(every)).round(2)
        if image % 5:
            detections.append(found(image * 7, every, scores, np.concatenate((guess, rng.integers(0, 3, 110)))))
    vocabulary = Vocabulary(tuple(f"c{i}" for i in range(names)), tuple(f"c{i}" for i in range(0, names, 2)))
    return scene, detections, vocabulary


@pytest.mark.parametrize("seed", range(3))
def test_backends_agree(seed, capfd):
    scene, detections, vocabulary = random_scene(seed)
    fast = evaluate_detections(scene, detections, vocabulary).to_json()
    reference = evaluate_detections(scene, detections, vocabulary, backend="pycocotools").to_json()
    assert differences(fast, reference) < 1e-9
    assert 1 < fast["base"]["ap50"] < 99
    assert fast["per_category"]["c11"] is None
    captured = capfd.readouterr()
    assert not captured.out
    assert not captured.err


def pycocotools_directly(path, results):
    """The evaluator on the annotation file itself, none of our conversions in between."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(path))
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="tiny COCO is not here; set REGIONCLIP_TINY_COCO")
@pytest.mark.parametrize("backend", ["faster_coco_eval", "pycocotools"])
def test_real_annotations(backend):
    dataset = json.loads(ANNOTATIONS.read_text())
    categories = sorted(dataset["categories"], key=lambda c: c["id"])
    row = {c["id"]: i for i, c in enumerate(categories)}
    vocabulary = Vocabulary(tuple(c["name"] for c in categories), tuple(c["name"] for c in categories[::3]))
    rng = np.random.default_rng(0)
    scene, detections, results = [], [], []
    for image in dataset["images"]:
        own = [a for a in dataset["annotations"] if a["image_id"] == image["id"]]
        boxes = np.array([a["bbox"] for a in own], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        scene.append(
            ImageTruth(
                image["id"],
                image["width"],
                image["height"],
                boxes,
                np.array([row[a["category_id"]] for a in own], int),
                np.array([a["iscrowd"] for a in own], bool),
                np.array([a["area"] for a in own], float),
            )
        )
        guesses = np.repeat(boxes, 2, axis=0) + rng.normal(0, 6, (2 * len(own), 4))
        guesses[:, 2:] = np.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        labels = np.array([row[a["category_id"]] for a in own for _ in range(2)], int)
        labels[rng.random(len(labels)) < 0.2] = 0
        scores = rng.random(len(labels))
        detections.append(ImageDetections(image["id"], guesses, scores, labels))
        for (x1, y1, x2, y2), score, label in zip(guesses.tolist(), scores.tolist(), labels.tolist(), strict=True):
            bbox, category = [x1, y1, x2 - x1, y2 - y1], categories[label]["id"]
            results.append({"image_id": image["id"], "category_id": category, "bbox": bbox, "score": score})
    result = evaluate_detections(scene, detections, vocabulary, backend)
    reference = pycocotools_directly(ANNOTATIONS, results)
    ours = [-1.0 if value is None else value / 100 for value in result.coco.values()]
    assert ours == pytest.approx(reference.stats.tolist(), abs=1e-9)
    ap50 = reference.eval["precision"][0, :, :, 0, -1]
    for group, rows in [("base", vocabulary.base_ids), ("novel", vocabulary.novel_ids)]:
        valid = [ap50[:, r].mean() for r in rows if ap50[0, r] > -1]
        assert result.groups[group]["ap50"] == pytest.approx(100 * np.mean(valid), abs=1e-7)
        assert result.groups[group]["categories"] == len(valid)


def test_foreign_images_labels_and_repeated_ids_are_refused():
    with pytest.raises(ValueError, match="image 9"):
        evaluate_detections([truth(1, BOX, [0])], [found(9, BOX, [1.0], [0])], VOCABULARY)
    with pytest.raises(ValueError, match=r"0\.\.3: 4\.\.4"):
        evaluate_detections([truth(1, BOX, [0])], [found(1, BOX, [1.0], [4])], VOCABULARY)
    with pytest.raises(ValueError, match="same image_id"):
        evaluate_detections([truth(1, BOX, [0]), truth(1, BOX, [0])], [], VOCABULARY)


def test_top1_accuracy():
    logits = np.eye(4)[[0, 1, 1, 2, 0]]
    labels = np.array([0, 1, 0, 2, 3])
    accuracy = top1_accuracy(logits, labels, VOCABULARY)
    assert accuracy == {"base": pytest.approx(200 / 3), "novel": 50.0, "all": 60.0}
    assert top1_accuracy(logits[:2], labels[:2], VOCABULARY)["novel"] is None
    with pytest.raises(ValueError, match=r"\[5, 4\]"):
        top1_accuracy(logits[:, :3], labels, VOCABULARY)
