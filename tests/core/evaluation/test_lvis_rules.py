"""LVIS's federated evaluation: worked by hand, and against the LVIS reference where it is installed."""

import numpy as np
import pytest
from metrics_layout import LVIS_NUMBERS
from reference_evaluators import (
    best_of,
    evaluate_detections,
    lvis_evaluation,
    random_scene,
    result_rows,
    take,
    truth_dict,
)

from regionclip_core.datasets.vocabulary import Vocabulary
from regionclip_core.evaluation import average_precision
from regionclip_core.evaluation.average_precision import Evaluator
from regionclip_core.evaluation.image_boxes import CategoryRows, ImageDetections, ImageTruth, xywh

NAMES = tuple(f"c{i}" for i in range(10))
GROUPS = (("rare", NAMES[0::3]), ("common", NAMES[1::3]), ("frequent", NAMES[2::3]))
VOCABULARY = Vocabulary(NAMES, tuple(n for i, n in enumerate(NAMES) if i % 3), GROUPS)
BOX, ELSEWHERE = [10.0, 10, 50, 50], [60.0, 60, 90, 90]


def image(image_id, boxes, labels, negative=(), partly=(), **more):
    boxes, labels = np.asarray(boxes, float).reshape(-1, 4), np.asarray(labels, int)
    known = {"neg_labels": np.asarray(negative, int), "not_exhaustive_labels": np.asarray(partly, int)}
    return ImageTruth(image_id, 100, 100, boxes, labels, **known, **more)


def found(image_id, boxes, scores, labels):
    boxes = xywh(np.asarray(boxes, float).reshape(-1, 4))
    return ImageDetections(image_id, boxes, np.asarray(scores, float), np.asarray(labels, int))


def ap50(scene, detections, name):
    return evaluate_detections(scene, detections, VOCABULARY, "lvis")["per_category"][name]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(2))
def test_the_reference_agrees(seed, kind, tmp_path):
    """With ties, more than 300 detections, not exhaustive categories, empty images, categories without objects, and
    objects and detections without area.
    """
    pytest.importorskip("lvis", exc_type=ImportError)
    scene, detections = random_scene(seed, lvis=True)
    result = evaluate_detections(scene, detections, VOCABULARY, "lvis", kind)
    reference = lvis_evaluation(truth_dict(scene, 10), result_rows(scene, detections, kind), kind, tmp_path)
    assert tuple(result["lvis"]) == LVIS_NUMBERS == tuple(reference.results)
    ours = [-1.0 if value is None else value / 100 for value in result["lvis"].values()]
    np.testing.assert_allclose(ours, list(reference.results.values()), rtol=0, atol=1e-9)
    assert min(ours) > 0.001
    assert max(ours) < 0.99
    precision = reference.eval["precision"][..., 0]
    for row, (name, value) in enumerate(result["per_category"].items()):
        expected = precision[0, :, row].mean()
        assert (value is None) == (expected == -1), name
        assert value is None or value == pytest.approx(100 * expected, abs=1e-9)
    assert result["rare"]["ap"] == pytest.approx(result["lvis"]["APr"])
    assert result["novel"] == result["rare"]
    # Each of the rules moves the numbers: without one of them this scene would show it.
    exhaustive = [ImageTruth(**{**vars(one), "not_exhaustive_labels": np.zeros(0, int)}) for one in scene]
    assert evaluate_detections(exhaustive, detections, VOCABULARY, "lvis", kind)["lvis"] != result["lvis"]
    fewer = [best_of(one, 200) for one in detections]
    assert evaluate_detections(scene, fewer, VOCABULARY, "lvis", kind)["lvis"] != result["lvis"]


def test_unknown_categories_do_not_count_and_negative_ones_do():
    scene = [image(1, [BOX], [0]), image(2, [], [], negative=[0]), image(3, [BOX], [1])]
    right = found(1, [BOX], [0.5], [0])
    assert ap50(scene, [right], "c0") == pytest.approx(100)
    alarm = [found(3, [BOX], [0.9], [0])]
    assert ap50(scene, [right, *alarm], "c0") == pytest.approx(100)
    alarm = [found(2, [BOX], [0.9], [0])]
    assert ap50(scene, [right, *alarm], "c0") == pytest.approx(50)


def test_where_not_all_objects_are_annotated_more_detections_are_no_mistake():
    detections = [found(1, [ELSEWHERE, BOX], [0.9, 0.5], [0, 0])]
    assert ap50([image(1, [BOX], [0])], detections, "c0") == pytest.approx(50)
    assert ap50([image(1, [BOX], [0], partly=[0])], detections, "c0") == pytest.approx(100)


def test_the_best_300_of_an_image_count():
    scene = [image(1, [BOX], [0])]
    others = [found(1, [*[ELSEWHERE] * 300, BOX], [*np.linspace(0.9, 0.6, 300), 0.5], [*[1] * 300, 0])]
    assert ap50(scene, others, "c0") == 0
    others[0].scores[17] = 0.1
    assert ap50(scene, others, "c0") == pytest.approx(100)


def test_what_lvis_needs():
    bare = ImageTruth(7, 100, 100, np.array([BOX]), np.array([0]))
    with pytest.raises(ValueError, match=r"lvis: image 7 has no list of absent categories.*source: lvis"):
        evaluate_detections([bare], [], VOCABULARY, "lvis")
    with pytest.raises(ValueError, match=r"no group common, frequent, rare.*LVIS annotation file"):
        evaluate_detections([image(1, [BOX], [0])], [], Vocabulary(NAMES, NAMES[:3]), "lvis")


def fixed_ap(scene, detections, kind="bbox"):
    evaluator, rows = Evaluator(VOCABULARY, "lvis", fixed_ap=True), CategoryRows()
    for one in scene:
        evaluator.add_truth(one)
    for one in detections:
        evaluator.add(rows, one, every=True)
    return evaluator.fixed(rows, kind)


def test_fixed_ap_has_no_cap_on_an_image():
    scene = [image(1, [BOX], [0])]
    others = [found(1, [*[ELSEWHERE] * 300, BOX], [*np.linspace(0.9, 0.6, 300), 0.5], [*[1] * 300, 0])]
    assert fixed_ap(scene, others) == {**dict.fromkeys(("AP", "AP50", "AP75", "APr"), 100.0), "APc": None, "APf": None}


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_fixed_ap_counts_the_best_of_each_category_over_all_images(kind, monkeypatch):
    """Also those on images that don't count for the category take a place; the rest by LVIS's own rules."""
    scene, detections = random_scene(1, lvis=True)
    cap = 40
    monkeypatch.setattr(average_precision, "FIXED_CAP", cap)
    every = [
        (-s, n, i, k)
        for n, one in enumerate(detections)
        for i, (s, k) in enumerate(zip(one.scores, one.labels, strict=True))
    ]
    best = [pair for label in range(10) for pair in sorted(row for row in every if row[3] == label)[:cap]]
    assert len(best) < len(every)
    kept = [take(one, np.array(sorted(i for _, m, i, _ in best if m == n), int)) for n, one in enumerate(detections)]
    assert max(len(one.labels) for one in kept) <= 300  # so that LVIS's own cap does nothing
    expected = evaluate_detections(scene, kept, VOCABULARY, "lvis", kind)["lvis"]
    assert fixed_ap(scene, detections, kind) == {
        name: expected[name] for name in ("AP", "AP50", "AP75", "APr", "APc", "APf")
    }
    uncapped = evaluate_detections(scene, detections, VOCABULARY, "lvis", kind)["lvis"]
    assert uncapped["AP"] != expected["AP"]
