"""Box arithmetic and assignment against naive loops, torchvision and the official decoding."""

import numpy as np
import pytest
import torch
from places import GOLDEN as GOLDEN_FOLDER
from torchvision.models.detection._utils import BoxCoder, Matcher

from regionclip_core.detection.inference import BOX_WEIGHTS
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.boxes import BACKGROUND, FOREGROUND, IGNORED, match, sample

GOLDEN = np.load(GOLDEN_FOLDER / "detector_losses.npz")


def some_boxes(n, seed=0, side=100.0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(n, 2, generator=generator) * side
    return torch.cat((corner, corner + 1 + torch.rand(n, 2, generator=generator) * side / 2), dim=1)


def naive_iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0])
    h = min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0.0) * max(h, 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def test_iou_matches_a_naive_loop_and_is_zero_for_empty_boxes():
    a, b = some_boxes(6), torch.cat((some_boxes(4, seed=1), torch.tensor([[5.0, 5, 5, 5]])))
    expected = [[naive_iou(x, y) for y in b.tolist()] for x in a.tolist()]
    torch.testing.assert_close(box_ops.iou(a, b), torch.tensor(expected))
    empty = torch.tensor([[5.0, 5, 5, 5]])
    assert box_ops.iou(empty, empty).item() == 0.0


def test_clip_nonempty_and_flip():
    boxes = torch.tensor([[-5.0, 2, 30, 80], [10, 10, 10, 40], [3, 4, 13, 10]])
    assert box_ops.clip(boxes, (50, 20))[0].tolist() == [0, 2, 20, 50]
    assert box_ops.nonempty(boxes).tolist() == [True, False, True]
    assert box_ops.nonempty(boxes, 6.0).tolist() == [True, False, False]
    assert box_ops.flip_horizontal(boxes, 40)[2].tolist() == [27, 4, 37, 10]


def test_rescale_goes_by_axis_and_back():
    boxes = some_boxes(5)
    there = box_ops.rescale(boxes, (333, 500), (800, 1201))
    torch.testing.assert_close(there[:, 0::2], boxes[:, 0::2] * (1201 / 500))
    torch.testing.assert_close(there[:, 1::2], boxes[:, 1::2] * (800 / 333))
    torch.testing.assert_close(box_ops.rescale(there, (800, 1201), (333, 500)), boxes)


def test_decode_matches_the_official_clamp():
    decoded = box_ops.decode(torch.from_numpy(GOLDEN["b2b/boxes"]), torch.from_numpy(GOLDEN["b2b/deltas"]), BOX_WEIGHTS)
    torch.testing.assert_close(decoded, torch.from_numpy(GOLDEN["b2b/decoded"]), atol=1e-4, rtol=1e-6)


def test_codec_matches_torchvision_and_inverts():
    sources, targets = some_boxes(20), some_boxes(20, seed=3)
    reference = BoxCoder(BOX_WEIGHTS)
    deltas = box_ops.encode(sources, targets, BOX_WEIGHTS)
    torch.testing.assert_close(deltas, reference.encode_single(targets, sources))
    torch.testing.assert_close(box_ops.decode(sources, deltas, BOX_WEIGHTS), targets, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(box_ops.decode(sources, deltas, BOX_WEIGHTS), reference.decode_single(deltas, sources))


@pytest.mark.parametrize("low_quality", [False, True])
def test_match_agrees_with_torchvision(low_quality):
    overlap = box_ops.iou(some_boxes(5), some_boxes(300, seed=2))
    reference = Matcher(0.6, 0.3, allow_low_quality_matches=low_quality)(overlap)
    truth, kind = match(overlap, 0.6, 0.3, low_quality)
    assert (kind == FOREGROUND).equal(reference >= 0)
    assert (kind == BACKGROUND).equal(reference == Matcher.BELOW_LOW_THRESHOLD)
    assert (kind == IGNORED).equal(reference == Matcher.BETWEEN_THRESHOLDS)
    assert truth[kind == FOREGROUND].equal(reference[reference >= 0])


def test_match_without_truth_or_overlap():
    truth, kind = match(torch.zeros(0, 4), 0.5, 0.5)
    assert truth.tolist() == [0] * 4
    assert kind.tolist() == [BACKGROUND] * 4
    # No anchor touches the second box: that must not make every anchor foreground.
    kind = match(torch.tensor([[0.2, 0.1, 0.0], [0.0, 0.0, 0.0]]), 0.7, 0.3, low_quality=True).kind
    assert kind.tolist() == [FOREGROUND, BACKGROUND, BACKGROUND]


def test_sample_keeps_the_fraction_fills_with_background_and_repeats_by_seed():
    kind = torch.tensor([FOREGROUND] * 20 + [BACKGROUND] * 50 + [IGNORED] * 30, dtype=torch.int8)
    rows = sample(kind, 16, 0.25, torch.Generator().manual_seed(3))
    assert (kind[rows] == FOREGROUND).sum() == 4
    assert (kind[rows] == BACKGROUND).sum() == 12
    assert len(set(rows.tolist())) == 16
    assert rows.equal(sample(kind, 16, 0.25, torch.Generator().manual_seed(3)))
    assert not rows.equal(sample(kind, 16, 0.25, torch.Generator().manual_seed(4)))
    few = sample(kind[:22], 16, 0.25, None)
    assert sorted(kind[:22][few].tolist()) == [BACKGROUND] * 2 + [FOREGROUND] * 4


def test_shortest_decimals_are_those_of_numpys_words():
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    special = np.float32([0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 16777216, 123456.7, 1e21])
    values = np.concatenate([bits.view(np.float32), special])[:20_008].reshape(-1, 4)
    expected = values.astype("U32").astype(np.float64)
    found = box_ops.shortest(values)
    assert found.dtype == np.float64 and found.shape == values.shape
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.astype(np.float32), values)
