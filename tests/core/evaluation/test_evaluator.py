"""Average precision by COCO's rules: worked by hand, and against pycocotools."""

import json
import tempfile
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from places import TINY_COCO
from reference_evaluators import pycocotools_evaluation, random_scene, result_rows, truth_dict, xywh

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation import curves as average_precision
from regionclip_core.evaluation import matching as detection_matching
from regionclip_core.evaluation import store as detection_store
from regionclip_core.evaluation import verdicts as verdict_file
from regionclip_core.evaluation.curves import category_curves
from regionclip_core.evaluation.evaluator import Evaluator, Top1, evaluate_detections
from regionclip_core.evaluation.lvis import federated, lvis_truth
from regionclip_core.evaluation.matching import COCO_RULES, LVIS_RULES
from regionclip_core.evaluation.metrics import COCO_NUMBERS
from regionclip_core.evaluation.store import DetectionStore, TruthStore
from regionclip_core.evaluation.truth import ImageDetections, ImageTruth

ANNOTATIONS = TINY_COCO / "annotations" / "instances_val2017.json"
NAMES = ("cat", "dog", "zebra", "kite")
VOCABULARY = Vocabulary(NAMES, base=("cat", "dog"))
TEN = Vocabulary(
    tuple(f"c{i}" for i in range(10)), tuple(f"c{i}" for i in range(0, 10, 2)), (("odd", ("c9", "c1", "c3")),)
)
BOX = np.array([[10.0, 10, 50, 50]])


def truth(image_id, boxes, labels, **more):
    return ImageTruth(image_id, 100, 100, np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels, int), **more)


def found(image_id, boxes, scores, labels):
    return ImageDetections(
        image_id, np.asarray(boxes, float).reshape(-1, 4), np.asarray(scores, float), np.asarray(labels, int)
    )


def test_worked_example():
    shifted = BOX + np.array([8, 0, 8, 0])  # IoU 32/48 = 0.667: right up to the threshold 0.65, 4 of 10
    scene = [truth(1, BOX, [0]), truth(2, BOX, [2]), truth(3, [], [])]
    detections = [found(1, BOX, [0.9], [0]), found(2, np.concatenate((BOX, shifted)), [0.9, 0.8], [1, 2])]
    result = evaluate_detections(scene, detections, VOCABULARY)
    assert result.groups["base"] == {"ap50": 100.0, "ap": 100.0, "categories": 1, "boxes": 1}
    assert result.groups["novel"] == {"ap50": 100.0, "ap": pytest.approx(40.0), "categories": 1, "boxes": 1}
    assert result.groups["all"]["ap"] == pytest.approx(70.0)
    assert result.per_category == {"cat": 100.0, "dog": None, "zebra": 100.0, "kite": None}
    assert result.standard["AP75"] == pytest.approx(50.0)
    assert result.standard["APl"] is None
    assert tuple(result.standard) == COCO_NUMBERS
    stored = json.loads(json.dumps(result.to_json()))
    assert set(stored) == {"base", "novel", "all", "per_category", "coco"}
    assert stored["all"]["ap50"] == 100.0


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
    ours = [-1.0 if value is None else value / 100 for value in result.standard.values()]
    np.testing.assert_allclose(ours, reference.stats, rtol=0, atol=1e-9)
    assert min(ours) > 0
    assert max(ours) < 0.99
    precision = reference.eval["precision"][..., 0, -1]
    rows = {"base": TEN.base_ids, "novel": TEN.novel_ids, "all": range(10), "odd": [1, 3, 9]}
    assert set(result.groups) == set(rows)
    for group, members in rows.items():
        for name, part in (("ap50", precision[0][:, members]), ("ap", precision[:, :, members])):
            assert result.groups[group][name] == pytest.approx(100 * part[part > -1].mean(), abs=1e-9)
    assert result.groups["odd"]["categories"] == 2
    assert [name for name, value in result.per_category.items() if value is None] == ["c8", "c9"]


def stored(folder, scene, detections, rules=COCO_RULES):
    """A scene in the stores, its images' detections in the order given."""
    objects, of = TruthStore(10), {image.image_id: image for image in scene}
    for image in scene:
        objects.add(image)
    guesses = DetectionStore(folder / "d", objects, rules)
    for one in detections:
        guesses.add(of[one.image_id], one)
    return objects, guesses


def small_parts(monkeypatch):
    """A few boxes at a time, wherever the evaluation takes some at a time."""
    monkeypatch.setattr(detection_store, "MATCH_ROWS", 90)
    monkeypatch.setattr(verdict_file, "BLOCK_ROWS", 200)
    monkeypatch.setattr(average_precision, "ENTRIES", 300)
    monkeypatch.setattr(average_precision, "PIECE", 7)


@pytest.mark.parametrize("in_parts", [True, False])
@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("protocol", ["coco", "lvis"])
def test_some_images_and_one_category_at_a_time_are_the_same_as_all_at_once(
    protocol, kind, in_parts, tmp_path, monkeypatch
):
    """Exactly: every digit of every curve, whatever is matched, written and accumulated together."""
    from faster_coco_eval import COCO, COCOeval_faster

    if in_parts:
        small_parts(monkeypatch)
    scene, detections = random_scene(5, lvis=protocol == "lvis")
    rules = LVIS_RULES if protocol == "lvis" else COCO_RULES
    if protocol == "lvis":
        scene = [lvis_truth(image) for image in scene]
        of = {image.image_id: image for image in scene}
        detections = [federated(of[one.image_id], one) for one in detections]
    objects, guesses = stored(tmp_path, scene, detections, rules)
    curves = category_curves(objects, guesses, kind, rules)

    everything = COCO(truth_dict(scene, 10))
    found = everything.loadRes(result_rows(scene, detections, kind))
    if rules.drop_empty:
        found = COCO({**found.dataset, "annotations": [one for one in found.dataset["annotations"] if one["area"] > 0]})
    evaluator = COCOeval_faster(everything, found, kind, lvis_style=protocol == "lvis", print_function=lambda *_: None)
    evaluator.params.maxDets = list(rules.caps)
    evaluator.evaluate()
    evaluator.accumulate()
    assert np.array_equal(curves.precision, evaluator.eval["precision"][..., -1])
    assert np.array_equal(curves.recall, evaluator.eval["recall"])
    assert 0.1 < curves.recall[curves.recall > -1].mean() < 0.9
    some = category_curves(objects, guesses, kind, rules, {2, 5})
    assert np.array_equal(some.precision[:, :, [2, 5]], curves.precision[:, :, [2, 5]])
    assert (np.delete(some.precision, [2, 5], axis=2) == -1).all()


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_verdicts_are_those_of_pycocotools(kind, tmp_path, monkeypatch):
    """Detection by detection, at every threshold and in every area range; also how many objects count."""
    small_parts(monkeypatch)
    scene, detections = random_scene(3)
    objects, guesses = stored(tmp_path, scene, detections)
    reference = pycocotools_evaluation(truth_dict(scene, 10), result_rows(scene, detections, kind), kind)
    images = len(scene)
    per_image = np.array(reference.evalImgs, object).reshape(10, 4, images)
    matches = 0
    for label in range(10):
        rows = guesses.verdicts(kind, label)
        counted = np.zeros(4, int)
        for place in range(images):
            mine = rows[rows["image"] == place]
            assert mine["rank"].tolist() == list(range(len(mine)))
            matched, ignored = (
                np.unpackbits(mine[name], axis=1).reshape(-1, 4, 10).astype(bool) for name in ("matched", "ignored")
            )
            for area in range(4):
                expected = per_image[label, area, place]
                if expected is None:  # neither objects nor detections
                    assert not len(mine)
                    continue
                counted[area] += int((np.asarray(expected["gtIgnore"]) == 0).sum())
                assert mine["score"].tolist() == list(expected["dtScores"])
                assert np.array_equal(matched[:, area].T, np.asarray(expected["dtMatches"]).reshape(10, -1) > 0)
                assert np.array_equal(ignored[:, area].T, np.asarray(expected["dtIgnore"]).reshape(10, -1) > 0)
                matches += int(matched[:, area].sum())
        assert objects.counts_by_area[label].tolist() == counted.tolist()
    assert matches > 500
    assert objects.counts.tolist() == [
        sum(int((image.labels[~image.crowd] == label).sum()) for image in scene) for label in range(10)
    ]
    guesses.delete()
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_images(tmp_path, monkeypatch):
    """Eight times the images: less than 200 bytes more a detection of the largest category. As the library's Python
    objects they would take 1,200.
    """
    import faster_coco_eval  # noqa: F401  # imported before anything is measured

    for module, name, few in (
        (detection_store, "MATCH_ROWS", 90),
        (verdict_file, "BLOCK_ROWS", 400),
        (average_precision, "PIECE", 50),
    ):
        monkeypatch.setattr(module, name, few)
    scene, detections = random_scene(0, images=12, most=40)
    of = {one.image_id: one for one in detections}
    largest = int(np.bincount(np.concatenate([one.labels for one in detections])).max())

    def peak(times):
        folder = tmp_path / str(times)
        folder.mkdir()
        tracemalloc.start()
        evaluator = Evaluator(folder, TEN, "coco")
        for i in range(times):
            for image in scene:
                evaluator.add_truth(replace(image, image_id=image.image_id + 1000 * i))
        store = evaluator.detections(("bbox",))
        for i in range(times):
            for image in scene:
                if image.image_id in of:
                    moved = image.image_id + 1000 * i
                    found = replace(of[image.image_id], image_id=moved)
                    evaluator.add(store, replace(image, image_id=moved), found)
        evaluator.evaluate(store)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # caches of the libraries
    few, many = peak(2), peak(16)
    assert many - few < 14 * largest * 200


def test_only_one_group(tmp_path):
    """A model that was asked for the names of one group: no other category enters any number."""
    scene, detections = random_scene(1)
    evaluator = Evaluator(tmp_path, TEN, "coco")
    for image in scene:
        evaluator.add_truth(image)
    store, whole = evaluator.detections(), evaluator.detections()
    novel = set(TEN.novel_ids)
    of = {image.image_id: image for image in scene}
    for one in detections:
        evaluator.add(whole, of[one.image_id], one)
        evaluator.add(store, of[one.image_id], one.take(np.isin(one.labels, list(novel))))
    result, everything = evaluator.evaluate(store, only="novel"), evaluator.evaluate(whole)
    assert list(result.groups) == ["novel"]
    assert result.groups["novel"] == everything.groups["novel"]
    assert result.standard["AP50"] == result.groups["novel"]["ap50"]
    assert result.per_category == {name: everything.per_category[name] for name in ("c1", "c3", "c5", "c7", "c9")}


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
        detections.append(ImageDetections(image["id"], guesses, scores, labels))
        for box, score, label in zip(guesses, scores.tolist(), labels.tolist(), strict=True):
            category = categories[label]["id"]
            results.append({"image_id": image["id"], "category_id": category, "bbox": xywh(box), "score": score})
    result = evaluate_detections(scene, detections, vocabulary)
    reference = pycocotools_evaluation(dataset, results, "bbox")
    ours = [-1.0 if value is None else value / 100 for value in result.standard.values()]
    assert ours == pytest.approx(reference.stats.tolist(), abs=1e-9)
    ap50 = reference.eval["precision"][0, :, :, 0, -1]
    for group, rows in [("base", vocabulary.base_ids), ("novel", vocabulary.novel_ids)]:
        valid = [ap50[:, r].mean() for r in rows if ap50[0, r] > -1]
        assert result.groups[group]["ap50"] == pytest.approx(100 * np.mean(valid), abs=1e-7)
        assert result.groups[group]["categories"] == len(valid)


def test_foreign_images_labels_and_repeated_ids_are_refused(tmp_path):
    with pytest.raises(ValueError, match="image 9"):
        evaluate_detections([truth(1, BOX, [0])], [found(9, BOX, [1.0], [0])], VOCABULARY)
    with pytest.raises(ValueError, match=r"0\.\.3: 4\.\.4"):
        evaluate_detections([truth(1, BOX, [0])], [found(1, BOX, [1.0], [4])], VOCABULARY)
    with pytest.raises(ValueError, match="same image_id 1"):
        evaluate_detections([truth(1, BOX, [0]), truth(3, [], []), truth(1, BOX, [0])], [], VOCABULARY)
    with pytest.raises(ValueError, match="image 1 for the second time"):
        evaluate_detections([truth(1, BOX, [0])], [found(1, BOX, [1.0], [0])] * 2, VOCABULARY)
    store = TruthStore(4)
    store.add(truth(1, BOX, [0]))
    for image_id in (0, 2):
        with pytest.raises(ValueError, match=f"image {image_id}"):
            DetectionStore(tmp_path / "d", store, COCO_RULES).add(
                truth(image_id, [], []), found(image_id, BOX, [1.0], [0])
            )


def test_results_of_another_version_of_the_library_are_not_misread(monkeypatch):
    monkeypatch.setattr(detection_matching, "_STATE", 7)
    with pytest.raises(RuntimeError, match=r"faster-coco-eval: expected .* versions 1\.7 and 1\.8"):
        evaluate_detections([truth(1, BOX, [0])], [found(1, BOX, [1.0], [0])], VOCABULARY)


def test_lvis_annotations_need_lvis_rules():
    labels = {"neg_labels": np.array([1]), "not_exhaustive_labels": np.array([], int)}
    with pytest.raises(ValueError, match=r"coco: image 1 is annotated for some categories only"):
        evaluate_detections([truth(1, BOX, [0], **labels)], [], VOCABULARY)


def test_mask_ap_needs_masks():
    with pytest.raises(ValueError, match="objects of the ground truth have none"):
        evaluate_detections([truth(1, BOX, [0])], [], VOCABULARY, kind="segm")
    scene, detections = random_scene(0, images=5)
    bare = [ImageDetections(d.image_id, d.boxes, d.scores, d.labels) for d in detections]
    with pytest.raises(ValueError, match="detections have none"):
        evaluate_detections(scene, bare, TEN, kind="segm")


def test_scratch_files_are_removed(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    evaluate_detections(*random_scene(0, images=5), TEN)
    assert list(tmp_path.iterdir()) == []


def test_top1_accuracy():
    logits = np.eye(4)[[0, 1, 1, 2, 0]]
    labels = np.array([0, 1, 0, 2, 3])
    top1 = Top1(Vocabulary(NAMES, ("cat", "dog"), (("striped", ("zebra",)),)))
    assert top1.scores() == {"base": None, "novel": None, "all": None, "striped": None}
    top1.add(logits[:2], labels[:2])
    assert top1.scores()["novel"] is None
    top1.add(logits[2:], labels[2:])
    assert top1.scores() == {"base": pytest.approx(200 / 3), "novel": 50.0, "all": 60.0, "striped": 100.0}
    assert top1.boxes == 5
    with pytest.raises(ValueError, match=r"\[5, 4\]"):
        top1.add(logits[:, :3], labels)
