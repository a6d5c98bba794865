"""Detections against the official head in every inference mode, and suppression against a literal loop."""

import numpy as np
import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from torchvision.ops import batched_nms

from regionclip_core.config.tree import EvaluateConfig
from regionclip_core.detection.inference import InferenceSettings, detect_image, rival_logits, score_proposals
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.nms import suppress

GOLDEN = np.load(GOLDEN_FOLDER / "detector_losses.npz")
RAW = {"objectness": "raw_logit"}
LVIS = {"score_threshold": 0.02, "max_detections": 300}
MODES = {
    "plain_nms": {},
    "soft_nms": {"nms_kind": "gaussian"},
    "soft_linear": {"nms_kind": "linear"},
    "multiply_rpn": RAW,
    "openset": {},
    "openset_soft_nms": {"nms_kind": "gaussian"},
    "no_box_delta": {},
    "top10": {"max_detections": 10},
    "mult_vis": RAW | {"report_probability": True},
    "soft_mult_vis": RAW | {"report_probability": True, "nms_kind": "gaussian"},
    "lvis_openset_mult_soft": RAW | LVIS | {"nms_kind": "gaussian"},
    "zs_lvis": RAW | LVIS,
}
WITHOUT_DELTAS = ("no_box_delta", "zs_lvis")


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def deltas():
    return golden("features") @ golden("w/bbox_pred.weight").T + golden("w/bbox_pred.bias")


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_official_modes(mode, image):
    rows = slice(0, 36) if image == 0 else slice(36, 65)
    objectness = golden(f"objectness_logits{image}")
    found = detect_image(
        golden(f"infer_{mode}/logits")[rows],
        None if mode in WITHOUT_DELTAS else deltas()[rows],
        golden(f"proposals{image}"),
        objectness,
        tuple(golden("image_sizes")[image].tolist()),
        InferenceSettings(**MODES[mode]),
    )
    expected = {k: golden(f"infer_{mode}/{k}{image}") for k in ("boxes", "scores", "classes", "kept_proposal")}
    assert found.labels.equal(expected["classes"])
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.boxes, expected["boxes"], atol=1e-3, rtol=0)
    # The official indices count the rows that are left after proposals with a negative logit went.
    counted = (objectness >= 0).nonzero().flatten() if "objectness" in MODES[mode] else torch.arange(len(objectness))
    assert found.proposal.equal(counted[expected["kept_proposal"]])


def literal_nms(boxes, scores, threshold, kind, nms, sigma, prune):
    """Pick, decay, prune over a flat list of (box, class) pairs, until none is left."""
    pairs = [
        (scores[r, k].item(), r, k)
        for r in range(len(boxes))
        for k in range(scores.shape[1])
        if scores[r, k] > threshold
    ]
    overlap = box_ops.iou(boxes, boxes)
    picked = []
    while pairs:
        best = max(pairs, key=lambda pair: (pair[0], -pair[1], -pair[2]))
        pairs.remove(best)
        picked.append(best)
        left = []
        for score, r, k in pairs:
            iou = overlap[best[1], r].item() if k == best[2] else 0.0
            if kind == "gaussian":
                score *= np.exp(-iou * iou / sigma)
            elif iou > nms:
                score *= 1 - iou if kind == "linear" else 0
            if score > prune:
                left.append((score, r, k))
        pairs = left
    return picked


def crowded(seed, boxes=25, classes=6):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(boxes, 2, generator=generator) * 40
    made = torch.cat((corner, corner + 15 + 20 * torch.rand(boxes, 2, generator=generator)), dim=1)
    return made, torch.rand(boxes, classes, generator=generator) ** 3


@pytest.mark.parametrize("kind", ["gaussian", "linear"])
@pytest.mark.parametrize(("threshold", "prune"), [(0.05, 0.001), (0.05, 0.1), (0.0, 0.02)])
def test_soft_nms_equals_the_literal_loop_cut_short(kind, threshold, prune):
    boxes, scores = crowded(seed=len(kind))
    literal = literal_nms(boxes, scores, threshold, kind, 0.4, 0.5, prune)
    for limit in (1, 17, 1000):
        found = suppress(boxes, scores, threshold, limit, kind, 0.4, 0.5, prune)
        expected = literal[:limit]
        assert found.box.tolist() == [r for _, r, _ in expected]
        assert found.label.tolist() == [k for _, _, k in expected]
        torch.testing.assert_close(
            found.score, torch.tensor([s for s, _, _ in expected], dtype=torch.float32), atol=1e-6, rtol=1e-5
        )


@pytest.mark.parametrize("nms", [0.02, 0.5])
def test_hard_nms_equals_the_literal_loop(nms):
    """With equal scores, boxes of an IoU of exactly 0.5, empty boxes, and many pairs for few detections."""
    boxes, scores = crowded(seed=3, boxes=60)
    boxes[:6] = torch.tensor(
        [[0.0, 0, 40, 20], [0, 0, 20, 20], [0, 0, 40, 20], [7, 7, 7, 9], [7, 7, 7, 9], [1, 1, 2, 2]]
    )
    scores = (scores * 20).round() / 20
    literal = literal_nms(boxes, scores, 0.0, "hard", nms, 0.5, 0.0)
    assert len({score for score, _, _ in literal[:10]}) < 10
    for limit in (1, 5, 25, 30, 1000):
        found = suppress(boxes, scores, 0.0, limit, "hard", nms)
        assert list(zip(found.box.tolist(), found.label.tolist(), strict=True)) == [
            (r, k) for _, r, k in literal[:limit]
        ]
        assert found.score.tolist() == [s for s, _, _ in literal[:limit]]


def test_soft_nms_picks_once_before_it_prunes():
    boxes, _ = crowded(seed=0, boxes=3)
    found = suppress(boxes, torch.tensor([[0.02], [0.03], [0.01]]), 0.0, 10, "gaussian", prune=0.05)
    assert found.box.tolist() == [1]


@pytest.mark.parametrize("seed", range(3))
def test_hard_nms_equals_torchvision(seed):
    boxes, scores = crowded(seed, boxes=40)
    rows, classes = (scores > 0.05).nonzero(as_tuple=True)
    kept = batched_nms(boxes[rows], scores[rows, classes], classes, 0.5)[:30]
    found = suppress(boxes, scores, 0.05, 30, "hard", 0.5)
    assert found.box.equal(rows[kept])
    assert found.label.equal(classes[kept])
    assert found.score.equal(scores[rows, classes][kept])


def test_equal_scores_come_in_the_order_of_the_boxes():
    boxes = torch.tensor([[0.0, 0, 5, 5], [20, 20, 30, 30]])
    found = suppress(boxes, torch.tensor([[0.1, 1.0], [1.0, 0.1]]), 0.5, 10)
    assert list(zip(found.box.tolist(), found.label.tolist(), strict=True)) == [(0, 1), (1, 0)]


def test_objectness_products():
    logits, objectness = torch.randn(4, 3), torch.tensor([2.0, 0.5, -1.0, -3.0])
    probability = logits.softmax(1)
    assert score_proposals(logits, None, "none").equal(probability)
    expected = (probability / (1 + torch.exp(-objectness))[:, None]) ** 0.5
    torch.testing.assert_close(score_proposals(logits, objectness, "sigmoid"), expected)
    raw = score_proposals(logits, objectness, "raw_logit")
    torch.testing.assert_close(raw[:2], (probability[:2] * objectness[:2, None]) ** 0.5)
    assert raw[2:].isnan().all()


def test_rivals_alone_share_a_softmax_with_each_category():
    names, rivals = ["cup", "kite", "dog"], ["dog", "mug", "cat"]
    logits, others = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    logits[:, -1] = others[:, -1]  # the background's
    others[:, 0] = logits[:, 2]  # "dog" is both
    probability = score_proposals(logits, None, "none", rivals=rival_logits(others, rivals, names))
    for region in range(5):
        for k, name in enumerate(names):
            against = [others[region, i].exp() for i, rival in enumerate([*rivals, "background"]) if rival != name]
            own = logits[region, k].exp()
            torch.testing.assert_close(probability[region, k], own / (own + sum(against)))


def test_no_proposals_give_no_detections():
    found = detect_image(
        torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0), (10, 10), InferenceSettings()
    )
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


def test_rescaled_clips_and_drops_what_becomes_empty():
    settings = InferenceSettings(score_threshold=0.0)
    boxes = torch.tensor([[10.0, 10, 30, 30], [90.0, 0, 100, 10]])
    found = detect_image(torch.tensor([[3.0, 0], [2.0, 0]]), None, boxes, None, (100, 100), settings)
    moved = found.rescaled((100, 100), (50, 200))
    assert moved.boxes.tolist() == [[20, 5, 60, 15], [180, 0, 200, 5]]
    gone = found.rescaled((10, 10), (10, 40))
    assert gone.boxes.shape == (0, 4)


def test_settings_follow_the_config():
    config = EvaluateConfig(nms_kind="gaussian", nms=0.6, objectness="raw_logit", finetuned_objectness="none")
    zero_shot = InferenceSettings.from_config(config, finetuned=False)
    assert (zero_shot.nms_kind, zero_shot.nms, zero_shot.objectness) == ("gaussian", 0.6, "raw_logit")
    assert InferenceSettings.from_config(config, finetuned=True).objectness == "none"
