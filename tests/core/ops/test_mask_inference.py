"""Masks of detections: pasted as detectron2 does, coded as COCO does, and of the right region in the detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mask_samples import decoded
from small_artifacts import tiny_clip
from small_towers import SIGLIP, VIT, small_clip
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_area

from regionclip_core.detection.detector import OpenVocabularyDetector, load_detector, save_detector
from regionclip_core.detection.inference import InferenceSettings
from regionclip_core.models.towers import region_encoder
from regionclip_core.ops import boxes as box_ops
from regionclip_core.ops.image_batch import ImageBatch, pixel_batch
from regionclip_core.ops.masks import encode_masks
from regionclip_core.storage.records import Folder

SIZE = (47, 60)


def grid_sampled(probability: Tensor, box: list[float], size: tuple[int, int]) -> Tensor:
    """detectron2's rule for the whole image at once: each pixel's centre looked up in the mask. [H, W]"""
    x0, y0, x1, y1 = box
    y = (torch.arange(size[0]) + 0.5 - y0) / (y1 - y0) * 2 - 1
    x = (torch.arange(size[1]) + 0.5 - x0) / (x1 - x0) * 2 - 1
    grid = torch.stack([x.expand(size), y[:, None].expand(size)], dim=2)
    return F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0]


def some_boxes() -> Tensor:
    """Anywhere in the image: usual ones, a sliver, one inside a pixel, the image itself."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(20, 2, generator=generator) * torch.tensor([40.0, 30.0])
    usual = torch.cat([corner, corner + 1 + torch.rand(20, 2, generator=generator) * 16], dim=1)
    special = torch.tensor([[3.2, 1, 3.9, 40], [10.3, 10.3, 10.7, 10.8], [0, 0, 60, 47], [10, 10, 24, 24]])
    return torch.cat([usual, special])


def test_pasting_is_a_lookup_of_every_pixel() -> None:
    boxes = some_boxes()
    probabilities = torch.rand(len(boxes), 14, 14, generator=torch.Generator().manual_seed(1))
    probabilities[:3] = 1.0  # full to the brim: pixels at the border are half of it
    covered = 0
    codes = encode_masks(probabilities, boxes, SIZE)
    for code, probability, box in zip(codes, probabilities, boxes.tolist(), strict=True):
        assert isinstance(code, bytes)
        found = decoded(code, SIZE)
        values = grid_sampled(probability, box, SIZE)
        clear = ((values - 0.5).abs() > 1e-5).numpy()
        assert clear.mean() > 0.99
        assert found.shape == SIZE
        np.testing.assert_array_equal(found[clear], (values >= 0.5).numpy()[clear])
        covered += int(found.sum())
    assert covered > 1000
    assert encode_masks(torch.zeros(0, 14, 14), torch.zeros(0, 4), SIZE) == []


def test_a_mask_of_the_boxs_own_pixels_is_pasted_as_it_is() -> None:
    mask = torch.rand(14, 14, generator=torch.Generator().manual_seed(0))
    [code] = encode_masks(mask[None], torch.tensor([[20.0, 11, 34, 25]]), SIZE)
    expected = np.zeros(SIZE, np.uint8)
    expected[11:25, 20:34] = (mask >= 0.5).numpy()
    np.testing.assert_array_equal(decoded(code, SIZE), expected)


# ---------------------------------------------------------------- the detector


def masked_detector() -> OpenVocabularyDetector:
    """Its masks have structure: an untrained predictor is flat."""
    torch.manual_seed(0)
    clip = tiny_clip(image_size=128)
    detector = OpenVocabularyDetector(
        region_encoder(clip), torch.randn(3, 16), list("abc"), 0.07, "learnable", mask_head=True
    )
    assert detector.mask_head is not None
    torch.nn.init.normal_(detector.mask_head.predictor.weight, std=0.5)
    torch.nn.init.normal_(detector.box_regressor.bias, std=0.5)
    return detector.eval()


def two_images() -> tuple[ImageBatch, list[Tensor]]:
    generator = torch.Generator().manual_seed(3)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in ((60, 80), (64, 48))
    ]
    batch = pixel_batch(images, 96, 1333, (0.5,) * 3, (0.25,) * 3).to("cpu")
    original = [torch.tensor([[10.0, 10, 40, 50], [30, 5, 80, 40]]), torch.tensor([[2.0, 3, 40, 60]])]
    return batch, [batch.to_input(i, boxes) for i, boxes in enumerate(original)]


KEEP_ALL = InferenceSettings(score_threshold=0.0, nms=1.0)


def test_detections_have_the_masks_of_their_own_boxes_in_original_pixels() -> None:
    detector, (batch, proposals) = masked_detector(), two_images()
    objectness = [torch.tensor([-5.0, 5]), torch.zeros(1)]
    settings = replace(KEEP_ALL, objectness="sigmoid")
    found = detector.detect(batch, proposals, objectness, settings, box_deltas=True)
    assert found[0].proposal.tolist() == [1, 1, 0, 1, 0, 0]  # masks must not follow the order of the proposals
    features = detector.encoder.features(batch.tensor)
    covered = []
    for i, one in enumerate(found):
        size = batch.original_sizes[i]
        assert one.masks is not None
        for box, code in zip(one.boxes, one.masks, strict=True):
            regions = [box[:0].reshape(0, 4)] * 2
            regions[i] = box_ops.rescale(box[None], size, batch.sizes[i])
            with torch.no_grad():
                logits = detector.mask_head(detector.encoder.regions(features, regions))
            values = grid_sampled(torch.sigmoid(logits)[0], box.tolist(), size)
            clear = ((values - 0.5).abs() > 1e-3).numpy()
            np.testing.assert_array_equal(decoded(code, size)[clear], (values >= 0.5).numpy()[clear])
            covered.append(float((values >= 0.5).sum() / box_area(box[None])))
    assert 0.05 < np.mean(covered) < 0.95  # neither empty nor full
    of_proposal = {(int(p), code) for p, code in zip(found[0].proposal, found[0].masks, strict=True)}
    assert len(of_proposal) == 2  # whatever the category


def test_masks_are_made_only_where_they_are_wanted() -> None:
    detector, (batch, proposals) = masked_detector(), two_images()
    plain = detector.detect(batch, proposals, None, KEEP_ALL, box_deltas=True, masks=False)
    full = detector.detect(batch, proposals, None, KEEP_ALL, box_deltas=True)
    for without, with_masks in zip(plain, full, strict=True):
        assert without.masks is None
        assert with_masks.boxes.equal(without.boxes)
        assert with_masks.scores.equal(without.scores)
    nothing = detector.detect(batch, proposals, None, replace(KEEP_ALL, score_threshold=1.0), box_deltas=True)
    assert [one.masks for one in nothing] == [[], []]
    detector.mask_head = None
    assert [one.masks for one in detector.detect(batch, proposals, None, KEEP_ALL, box_deltas=True)] == [None, None]


def test_a_saved_detector_keeps_its_mask_head(tmp_path: Path) -> None:
    detector, clip, folder = masked_detector(), tiny_clip(image_size=128), Folder(str(tmp_path))
    assert detector.mask_head is not None
    save_detector(detector, folder, clip.architecture)
    loaded = load_detector(folder)
    assert loaded.mask_head is not None
    for name, tensor in detector.mask_head.state_dict().items():
        assert loaded.mask_head.state_dict()[name].equal(tensor)
    state = load_detector(folder).state_dict()
    assert {n for n in state if n.startswith("mask_head.")} == {
        f"mask_head.{layer}.{kind}" for layer in ("deconv", "predictor") for kind in ("weight", "bias")
    }
    description = folder.read_json("detector.json")
    folder.write_json("detector.json", description | {"mask_head": False})
    with pytest.raises(ValueError, match="don't fit the architecture"):
        load_detector(folder)


@pytest.mark.parametrize("description", [VIT, SIGLIP], ids=["vit", "siglip"])
def test_any_encoder_can_have_a_mask_head(description: dict[str, Any]) -> None:
    """And what else is in the batch changes nothing: a ViT has to know where the padding begins."""
    torch.manual_seed(0)
    encoder = region_encoder(small_clip(description))
    classes = torch.randn(3, encoder.embed_dim)
    detector = OpenVocabularyDetector(encoder, classes, list("abc"), 0.07, mask_head=True).eval()
    assert detector.mask_head is not None
    torch.nn.init.normal_(detector.mask_head.predictor.weight, std=0.5)
    batch, proposals = two_images()
    together = detector.detect(batch, proposals, None, KEEP_ALL, box_deltas=True)
    for i, found in enumerate(together):
        height, width = batch.sizes[i]
        alone = ImageBatch(batch.tensor[i : i + 1, :, :height, :width], [batch.sizes[i]], [batch.original_sizes[i]])
        expected = detector.detect(alone, proposals[i : i + 1], None, KEEP_ALL, box_deltas=True)[0]
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-4)
        assert found.masks is not None and expected.masks is not None
        pixels = [
            np.stack([decoded(code, batch.original_sizes[i]) for code in m]) for m in (found.masks, expected.masks)
        ]
        assert (pixels[0] == pixels[1]).mean() > 0.999
        assert 0 < pixels[0].mean() < 1
