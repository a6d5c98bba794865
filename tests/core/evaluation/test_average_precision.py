"""Average precision by COCO's rules: worked by hand, and against pycocotools."""

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from metrics_layout import COCO_NUMBERS
from places import TINY_COCO
from reference_evaluators import (
    best_of,
    evaluate_detections,
    lvis_evaluation,
    pycocotools_evaluation,
    random_scene,
    result_rows,
    take,
    truth_dict,
    xywh,
)

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation import image_boxes
from regionclip_core.evaluation.average_precision import Evaluator
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections, ImageTruth

ANNOTATIONS = TINY_COCO / "annotations" / "instances_val2017.json"
NAMES = ("cat", "dog", "zebra", "kite")
VOCABULARY = Vocabulary(NAMES, base=("cat", "dog"))
TEN = Vocabulary(
    tuple(f"c{i}" for i in range(10)), tuple(f"c{i}" for i in range(0, 10, 2)), (("odd", ("c9", "c1", "c3")),)
)
FREQUENCIES = (("rare", TEN.names[0::3]), ("common", TEN.names[1::3]), ("frequent", TEN.names[2::3]))
LVIS = Vocabulary(TEN.names, TEN.base, FREQUENCIES)
BOX = np.array([[10.0, 10, 50, 50]])


def truth(image_id, boxes, labels, **more):
    return ImageTruth(image_id, 100, 100, np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels, int), **more)


def found(image_id, boxes, scores, labels):
    boxes = image_boxes.xywh(np.asarray(boxes, float).reshape(-1, 4))
    return ImageDetections(image_id, boxes, np.asarray(scores, float), np.asarray(labels, int))


def test_worked_example():
    shifted = BOX + np.array([8, 0, 8, 0])  # IoU 32/48 = 0.667: right up to the threshold 0.65, 4 of 10
    scene = [truth(1, BOX, [0]), truth(2, BOX, [2]), truth(3, [], [])]
    detections = [found(1, BOX, [0.9], [0]), found(2, np.concatenate((BOX, shifted)), [0.9, 0.8], [1, 2])]
    result = evaluate_detections(scene, detections, VOCABULARY)
    assert result["base"] == {"ap50": 100.0, "ap": 100.0, "categories": 1, "boxes": 1}
    assert result["novel"] == {"ap50": 100.0, "ap": pytest.approx(40.0), "categories": 1, "boxes": 1}
    assert result["all"]["ap"] == pytest.approx(70.0)
    assert result["per_category"] == {"cat": 100.0, "dog": None, "zebra": 100.0, "kite": None}
    assert result["coco"]["AP75"] == pytest.approx(50.0)
    assert result["coco"]["APl"] is None
    assert tuple(result["coco"]) == COCO_NUMBERS
    assert set(result) == {"base", "novel", "all", "per_category", "coco"}
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_a_category_without_detections_is_zero(kind):
    """Where the others have some."""
    scene, detections = random_scene(2)
    some = [take(one, np.flatnonzero(one.labels != 4)) for one in detections]
    before, after = (evaluate_detections(scene, each, TEN, kind=kind)["per_category"] for each in (detections, some))
    assert before["c4"] > 0 == after["c4"]
    assert {**before, "c4": 0} == after


def test_false_positives_cost_and_crowds_do_not():
    elsewhere = [60.0, 60, 90, 90]
    both = np.concatenate((BOX, [elsewhere]))
    detections = [found(1, both, [0.5, 0.9], [0, 0])]
    assert evaluate_detections([truth(1, BOX, [0])], detections, VOCABULARY)["all"]["ap50"] == pytest.approx(50)
    crowd = np.array([False, True])
    with_crowd = evaluate_detections([truth(1, both, [0, 0], crowd=crowd)], detections, VOCABULARY)
    assert with_crowd["all"] == {"ap50": 100.0, "ap": 100.0, "categories": 1, "boxes": 1}


def test_nothing_detected_is_zero_and_nothing_to_detect_is_none():
    assert evaluate_detections([truth(1, BOX, [0])], [], VOCABULARY)["base"]["ap50"] == 0.0
    assert evaluate_detections([truth(1, BOX, [0])], [], VOCABULARY)["novel"]["ap50"] is None
    empty = evaluate_detections([truth(1, BOX, [-1])], [found(1, BOX, [0.5], [0])], VOCABULARY)
    assert empty["all"] == {"ap50": None, "ap": None, "categories": 0, "boxes": 0}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(2))
def test_pycocotools_agrees(seed, kind, capfd):
    """With crowds, size ranges, ties, caps, images without objects or detections, categories without objects."""
    scene, detections = random_scene(seed)
    result = evaluate_detections(scene, detections, TEN, kind=kind)
    captured = capfd.readouterr()
    assert not captured.out
    assert not captured.err
    reference = pycocotools_evaluation(truth_dict(scene, 10), result_rows(scene, detections, kind), kind)
    ours = [-1.0 if value is None else value / 100 for value in result["coco"].values()]
    np.testing.assert_allclose(ours, reference.stats, rtol=0, atol=1e-9)
    assert min(ours) > 0
    assert max(ours) < 0.99
    precision = reference.eval["precision"][..., 0, -1]
    rows = {"base": TEN.base_ids, "novel": TEN.novel_ids, "all": range(10), "odd": [1, 3, 9]}
    assert set(result) == {*rows, "per_category", "coco"}
    for group, members in rows.items():
        for name, part in (("ap50", precision[0][:, members]), ("ap", precision[:, :, members])):
            assert result[group][name] == pytest.approx(100 * part[part > -1].mean(), abs=1e-9)
    assert result["odd"]["categories"] == 2
    assert [name for name, value in result["per_category"].items() if value is None] == ["c8", "c9"]


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("protocol", ["coco", "lvis"])
def test_one_category_at_a_time_is_the_same_as_all_at_once(protocol, kind, in_parts, monkeypatch, tmp_path):
    """Exactly: every digit of every curve, however many rows are written together. The references agree to 1e-12."""
    if in_parts:
        monkeypatch.setattr(image_boxes, "BATCH_ROWS", 90)
    scene, detections = random_scene(5, lvis=protocol == "lvis")
    evaluator, rows = Evaluator(LVIS if protocol == "lvis" else TEN, protocol), CategoryRows()
    for image in scene:
        evaluator.add_truth(image)
    for one in detections:
        evaluator.add(rows, one)
    precision, recall = evaluator.curves(rows, kind, range(10))

    if protocol == "lvis":
        pytest.importorskip("lvis", exc_type=ImportError)
        reference = lvis_evaluation(truth_dict(scene, 10), result_rows(scene, detections, kind), kind, tmp_path).eval
        curves = reference["precision"], reference["recall"][..., None]
    else:
        reference = pycocotools_evaluation(truth_dict(scene, 10), result_rows(scene, detections, kind), kind).eval
        curves = reference["precision"][..., -1], reference["recall"]
    np.testing.assert_allclose(precision, curves[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(recall, curves[1], rtol=0, atol=1e-12)

    if protocol == "lvis":  # what the library leaves to its caller
        scene = [replace(image, labels=np.where(image.area > 0, image.labels, -1)) for image in scene]
        detections = [best_of(one, 300) for one in detections]
    everything = COCO(truth_dict(scene, 10))
    found = everything.loadRes(result_rows(scene, detections, kind))
    if protocol == "lvis":
        found = COCO({**found.dataset, "annotations": [one for one in found.dataset["annotations"] if one["area"] > 0]})
    together = COCOeval_faster(everything, found, kind, lvis_style=protocol == "lvis", print_function=lambda *_: None)
    together.params.maxDets = [300] if protocol == "lvis" else [1, 10, 100]
    together.evaluate()
    together.accumulate()
    assert np.array_equal(precision, together.eval["precision"][..., -1])
    assert np.array_equal(recall, together.eval["recall"])
    assert 0.1 < recall[recall > -1].mean() < 0.9
    some, _ = evaluator.curves(rows, kind, [2, 5])
    assert np.array_equal(some[:, :, [2, 5]], precision[:, :, [2, 5]])
    assert (np.delete(some, [2, 5], axis=2) == -1).all()


def test_objects_are_counted_without_crowds():
    scene, _ = random_scene(3)
    evaluator = Evaluator(TEN, "coco")
    for image in scene:
        evaluator.add_truth(image)
    assert evaluator.counts.tolist() == [
        sum(int((image.labels[~image.crowd] == label).sum()) for image in scene) for label in range(10)
    ]


def test_memory_grows_with_the_largest_category_only(monkeypatch):
    """As Python objects, detections take 1.2 kB each. The largest of ten categories has less than a fifth of them."""
    monkeypatch.setattr(image_boxes, "BATCH_ROWS", 90)
    scene, detections = random_scene(0, images=12, most=40)
    total = sum(len(one.labels) for one in detections)
    largest = int(np.bincount(np.concatenate([one.labels for one in detections])).max())
    assert total > 5 * largest

    def peak(times):
        tracemalloc.start()
        evaluator, rows = Evaluator(TEN, "coco"), CategoryRows()
        for i in range(times):
            for image in scene:
                evaluator.add_truth(replace(image, image_id=image.image_id + 1000 * i))
            for one in detections:
                evaluator.add(rows, replace(one, image_id=one.image_id + 1000 * i))
        evaluator.evaluate(rows)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # caches of the libraries
    few, many = peak(2), peak(16)
    assert 14 * largest * 500 < many - few < 14 * largest * 2000


def test_only_one_group():
    """A model that was asked for the names of one group: no other category enters any number."""
    scene, detections = random_scene(1)
    evaluator, some, whole = Evaluator(TEN, "coco"), CategoryRows(), CategoryRows()
    for image in scene:
        evaluator.add_truth(image)
    for one in detections:
        evaluator.add(whole, one)
        evaluator.add(some, take(one, np.flatnonzero(np.isin(one.labels, TEN.novel_ids))))
    result, everything = evaluator.evaluate(some, only="novel"), evaluator.evaluate(whole)
    assert set(result) == {"novel", "per_category", "coco"}
    assert result["novel"] == everything["novel"]
    assert result["coco"]["AP50"] == result["novel"]["ap50"]
    assert result["per_category"] == {name: everything["per_category"][name] for name in ("c1", "c3", "c5", "c7", "c9")}


@pytest.mark.skipif(not ANNOTATIONS.exists(), reason="tiny COCO is not here; set REGIONCLIP_TINY_COCO")
def test_real_annotations():
    """The reference on the annotation file itself, none of our conversions in between."""
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
        detections.append(ImageDetections(image["id"], image_boxes.xywh(guesses), scores, labels))
        for box, score, label in zip(guesses, scores.tolist(), labels.tolist(), strict=True):
            category = categories[label]["id"]
            results.append({"image_id": image["id"], "category_id": category, "bbox": xywh(box), "score": score})
    result = evaluate_detections(scene, detections, vocabulary)
    reference = pycocotools_evaluation(dataset, results, "bbox")
    ours = [-1.0 if value is None else value / 100 for value in result["coco"].values()]
    assert ours == pytest.approx(reference.stats.tolist(), abs=1e-9)
    ap50 = reference.eval["precision"][0, :, :, 0, -1]
    for group, rows in [("base", vocabulary.base_ids), ("novel", vocabulary.novel_ids)]:
        valid = [ap50[:, r].mean() for r in rows if ap50[0, r] > -1]
        assert result[group]["ap50"] == pytest.approx(100 * np.mean(valid), abs=1e-7)
        assert result[group]["categories"] == len(valid)


def test_lvis_annotations_need_lvis_rules():
    labels = {"neg_labels": np.array([1]), "not_exhaustive_labels": np.array([], int)}
    with pytest.raises(ValueError, match=r"coco: image 1 is annotated for some categories only"):
        evaluate_detections([truth(1, BOX, [0], **labels)], [], VOCABULARY)
