"""The detector head against the official one: logits, deltas, losses and gradients; targets; saving."""

import numpy as np
import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from torch import nn

from regionclip_core.config.tree import ClipArchitecture, FinetuneConfig, TeacherConfig
from regionclip_core.detection.detector import (
    FOREGROUND_IOU,
    HeadOutput,
    OpenVocabularyDetector,
    RegionTargets,
    load_detector,
    save_detector,
)
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.detection.losses import box_loss, classification_loss
from regionclip_core.models.clip import create_clip
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.boxes import FOREGROUND, match
from regionclip_core.ops.image_batch import pixel_batch
from regionclip_core.storage.records import Folder

GOLDEN = np.load(GOLDEN_FOLDER / "detector_losses.npz")
VARIANTS = {"coco": (0.2, 0.5), "lvis": (0.8, None), "focal_nobgw": (1.0, 0.5), "plain": (1.0, None)}
ARCHITECTURE = ClipArchitecture(embed_dim=32, vision_width=8, text_width=16, text_heads=2, context_length=16)
CATEGORIES = 12


def golden(name):
    return torch.from_numpy(GOLDEN[name])


class StoredFeatures(nn.Module):
    """Takes the place of the encoder: the same features whatever the image."""

    embed_dim = 32

    def __init__(self):
        super().__init__()
        self.stored = nn.Parameter(golden("features").clone())

    def forward(self, images, boxes, sizes=None):
        return self.stored


@pytest.fixture
def head():
    names = [f"class {i}" for i in range(CATEGORIES)]
    detector = OpenVocabularyDetector(StoredFeatures(), golden("class_emb"), names, temperature=0.01)
    detector.box_regressor.load_state_dict({"weight": golden("w/bbox_pred.weight"), "bias": golden("w/bbox_pred.bias")})
    return detector


@pytest.fixture(scope="module")
def clip():
    return create_clip(TeacherConfig(weights="random", architecture=ARCHITECTURE), seed=0)


@pytest.fixture
def small(clip):
    torch.manual_seed(0)
    embeddings = torch.randn(5, 32)
    return OpenVocabularyDetector(region_encoder(clip), embeddings, list("abcde"), 0.07, "learnable")


def official_targets():
    """The golden proposals, matched by the code that training uses."""
    labels, truth, proposals, rows = [], [], [], []
    for image in (0, 1):
        boxes = golden(f"proposals{image}")
        row, kind = match(box_ops.iou(golden(f"gt_boxes{image}"), boxes), FOREGROUND_IOU, FOREGROUND_IOU)
        labels.append(torch.where(kind == FOREGROUND, golden(f"gt_labels{image}")[row], CATEGORIES))
        truth.append(golden(f"gt_boxes{image}")[row])
        proposals.append(boxes)
        rows.append(row)
    return RegionTargets(proposals, torch.cat(labels), torch.cat(truth), torch.cat(rows))


@pytest.mark.parametrize("image", [0, 1])
def test_matching(image):
    overlap = box_ops.iou(golden(f"gt_boxes{image}"), golden(f"proposals{image}"))
    torch.testing.assert_close(overlap, golden(f"iou{image}"))
    truth, kind = match(overlap, FOREGROUND_IOU, FOREGROUND_IOU)
    assert truth.equal(golden(f"matched_idx{image}"))
    assert kind.equal(golden(f"matched_label{image}"))
    rows = slice(0, 36) if image == 0 else slice(36, 65)
    assert official_targets().labels[rows].equal(golden(f"proposal_classes{image}"))


def test_logits_and_deltas(head):
    output = head(torch.zeros(2, 3, 8, 8), [golden("proposals0"), golden("proposals1")])
    torch.testing.assert_close(output.logits, golden("train_logits"), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(output.deltas, golden("train_deltas"), atol=1e-6, rtol=1e-5)
    # Testing with another vocabulary exchanges the category columns and keeps the background.
    head.set_vocabulary(golden("openset_emb"), [f"open {i}" for i in range(17)])
    logits = head(torch.zeros(2, 3, 8, 8), []).logits
    torch.testing.assert_close(logits, golden("infer_openset/logits"), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients(head, variant):
    weight, gamma = VARIANTS[variant]
    config = FinetuneConfig(background_weight=weight, focal_gamma=gamma)
    targets = official_targets()
    losses = head.target_losses(head(torch.zeros(2, 3, 8, 8), targets.boxes), targets, config)
    for name, value in losses.items():
        torch.testing.assert_close(value, golden(f"train_{variant}/{name}"), atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(losses["loss_cls"], head.encoder.stored, retain_graph=True)
    expected = golden(f"train_{variant}/grad_features__loss_cls")
    certain = expected.isnan().any(dim=1)
    # Where a region's target probability rounds to 1, the official focal gradient is 0 * inf; ours vanishes.
    assert certain.sum() == (4 if gamma is not None else 0)
    p_target = golden("train_logits").softmax(1).gather(1, targets.labels[:, None])
    assert (p_target[certain] == 1).all()
    assert gradient[certain].abs().sum() < 1e-20
    torch.testing.assert_close(gradient[~certain], expected[~certain], atol=1e-5, rtol=1e-4)


def test_box_gradients(head):
    targets = official_targets()
    loss = head.target_losses(head(torch.zeros(2, 3, 8, 8), targets.boxes), targets, FinetuneConfig())["loss_box_reg"]
    regressor = head.box_regressor
    gradients = torch.autograd.grad(loss, (head.encoder.stored, regressor.weight, regressor.bias))
    for gradient, name in zip(gradients, ("features", "bbox_pred_weight", "bbox_pred_bias"), strict=True):
        torch.testing.assert_close(gradient, golden(f"train_coco/grad_{name}__loss_box_reg"), atol=1e-6, rtol=1e-4)


def test_losses_of_no_region_are_zero_and_differentiable():
    logits, deltas = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = classification_loss(logits, none, 0.2, 0.5) + box_loss(deltas, none, 3, torch.zeros(0, 4), torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0.0


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_targets_hold_the_truth_and_the_wanted_share(small):
    config = FinetuneConfig(regions_per_image=8, positive_fraction=0.25)
    corner = torch.rand(40, 2, generator=torch.Generator().manual_seed(0)) * 60
    proposals = [torch.cat((corner, corner + 20), dim=1), torch.zeros(0, 4), torch.tensor([[0.0, 0, 9, 9]])]
    shifted = corner[:4].repeat(1, 2) + torch.tensor([1.0, 1, 21, 20])
    boxes = [shifted, torch.tensor([[5.0, 5, 30, 30]]), torch.zeros(0, 4)]
    labels = [torch.tensor([4, 1, 0, 2]), torch.tensor([3]), torch.zeros(0, dtype=torch.int64)]
    found = small.targets(proposals, boxes, labels, config, seeded(1, 2, 3))
    first, second, third = found.labels.split([len(b) for b in found.boxes])
    assert len(first) == 8
    assert (first != 5).sum() == 2
    assert second.tolist() == [3]  # without proposals, the ground truth itself
    assert found.boxes[1].equal(boxes[1])
    assert third.tolist() == [5]  # without ground truth, background
    for box, label, truth in zip(found.boxes[0], first.tolist(), found.truth[:8], strict=True):
        overlap = box_ops.iou(box[None], boxes[0])[0]
        assert (label != 5) == bool(overlap.max() >= 0.5)
        if label != 5:
            assert label == labels[0][overlap.argmax()]
            assert truth.equal(boxes[0][overlap.argmax()])


def test_loss_reaches_encoder_regressor_and_background_but_not_the_text(small):
    config = FinetuneConfig(regions_per_image=6)
    small.encoder.freeze(2)
    images = torch.randn(2, 3, 64, 64)
    boxes = [torch.tensor([[5.0, 5, 30, 30]]), torch.tensor([[20.0, 10, 50, 44]])]
    proposals = [torch.tensor([[6.0, 5, 31, 30], [30, 30, 60, 60]])] * 2
    labels = [torch.tensor([0]), torch.tensor([3])]
    losses = small.loss(images, proposals, boxes, labels, config, seeded(0, 1))
    torch.stack(list(losses.values())).sum().backward()
    trained = {name for name, p in small.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"background_logit", "box_regressor.weight", "encoder.attnpool.c_proj.weight"} <= trained
    assert not any(name.startswith(("encoder.conv", "encoder.layer1")) for name in trained)
    assert not small.class_embeddings.requires_grad
    embeddings = small.class_embeddings
    zero = OpenVocabularyDetector(small.encoder, embeddings, small.names, 0.07, "zero")
    assert not zero.background_logit.requires_grad


def test_calibrated_background_is_even_with_the_categories(small):
    boxes = [torch.tensor([[5.0, 5, 30, 30], [10, 20, 60, 60]])]
    images = torch.randn(1, 3, 64, 64)
    logit = small.calibrate_background(images, boxes)
    logits = small(images, boxes).logits
    expected = np.mean([np.log(np.exp(row[:-1]).sum()) for row in logits.detach().double().numpy()])
    assert logit == pytest.approx(expected, abs=1e-5)
    assert (logits[:, -1] == logit).all()


def test_detect_works_in_original_pixels_image_by_image(small):
    small.eval()
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((60, 80), (64, 48))]
    batch = pixel_batch(images, 96, 1333, (0.5,) * 3, (0.25,) * 3).to("cpu")
    original = [torch.tensor([[10.0, 10, 40, 50], [30, 5, 80, 40]]), torch.tensor([[2.0, 3, 40, 60]])]
    proposals = [batch.to_input(i, boxes) for i, boxes in enumerate(original)]
    settings = InferenceSettings(score_threshold=0.0, nms=1.0, objectness="sigmoid")
    objectness = [torch.tensor([1.0, -1.0]), torch.tensor([0.3])]
    found = small.detect(batch, proposals, objectness, settings, box_deltas=False)
    for image, detections in enumerate(found):
        assert len(detections) == len(original[image]) * 5
        torch.testing.assert_close(detections.boxes, original[image][detections.proposal], atol=1e-3, rtol=0)
    with torch.no_grad():
        probability = small(batch.tensor, proposals).logits.softmax(1)
        nn.init.constant_(small.box_regressor.bias, 1.0)
        small.box_regressor.weight.zero_()
    best = found[1]
    expected = (probability[2, best.labels] * torch.sigmoid(objectness[1])) ** 0.5
    torch.testing.assert_close(best.scores, expected)
    moved = small.detect(batch, proposals, objectness, settings, box_deltas=True)[0]
    wanted = box_ops.decode(original[0], torch.ones(2, 4), (10.0, 10.0, 5.0, 5.0))
    wanted = box_ops.clip(wanted, (60, 80))[moved.proposal]
    torch.testing.assert_close(moved.boxes, wanted, atol=1e-2, rtol=0)


def test_wrong_vocabularies_are_refused(small):
    with pytest.raises(ValueError, match=r"expected shape \(2, 32\) for 2 names"):
        small.set_vocabulary(torch.randn(3, 32), ["x", "y"])
    with pytest.raises(ValueError, match=r"got \(2, 16\)"):
        small.set_vocabulary(torch.randn(2, 16), ["x", "y"])


def test_saved_detector_is_the_same_detector(small, clip, tmp_path):
    with torch.no_grad():
        small.background_logit.fill_(1.5)
    small.set_vocabulary(torch.randn(3, 32), ["x", "y", "z"])
    folder = Folder(str(tmp_path))
    save_detector(small.eval(), folder, clip.architecture)
    loaded = load_detector(folder)
    assert (loaded.names, loaded.temperature, loaded.background) == (("x", "y", "z"), 0.07, "learnable")
    images, boxes = torch.randn(1, 3, 64, 64), [torch.tensor([[5.0, 5, 30, 30]])]
    with torch.no_grad():
        ours, theirs = small(images, boxes), loaded(images, boxes)
    assert isinstance(theirs, HeadOutput)
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(ours.deltas, theirs.deltas, atol=1e-6, rtol=1e-6)
    other = ARCHITECTURE.model_copy(update={"vision_width": 16})
    save_detector(small, folder, create_clip(TeacherConfig(weights="random", architecture=other), 0).architecture)
    with pytest.raises(ValueError, match="don't fit the architecture"):
        load_detector(folder)
