"""The exported graph in onnxruntime against the model that it was made from, and the example in its card."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import small_towers
import torch
from PIL import Image
from safetensors.numpy import load_file
from small_artifacts import tiny_clip
from small_models import small_detector

from regionclip_core.detection.inference import BOX_WEIGHTS
from regionclip_core.ops.boxes import decode
from regionclip_core.ops.image_batch import resize_image
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.onnx_model import export_onnx

TOWERS: dict[str, Any] = {
    "ViT": small_towers.VIT,
    "SigLIP": small_towers.SIGLIP,
    "EVA-02": small_towers.EVA,
    "PE-Core": small_towers.PE,
}
SIZES = ((64, 96), (33, 47), (150, 70))
"""Of images; as the example of the export, below one bin, and no whole patches."""
BOXES = [[1.0, 2, 30, 40], [-5, 2, 30, 40], [0, 0, 60, 30], [3, 3, 3, 3], [20, 20, 10, 10]]


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["ResNet", *TOWERS])
def test_a_graph_has_the_models_features_scores_and_boxes(tower: str, tmp_path: Path) -> None:
    model = small_detector(small_towers.small_clip(TOWERS[tower]) if tower in TOWERS else tiny_clip())
    model.detector.background_logit.data.fill_(1.5)
    export_onnx(Folder(str(tmp_path)), model)
    session = onnxruntime.InferenceSession(tmp_path / "regions.onnx")
    own = load_file(tmp_path / "embeddings.safetensors")["embeddings"]
    others = np.random.default_rng(1).normal(size=(7, own.shape[1])).astype(np.float32)
    for height, width in SIZES:
        pixels = np.random.default_rng(height).integers(0, 256, (2, 3, height, width), np.uint8)
        images = [image.transpose(1, 2, 0) for image in pixels]
        to = model.preprocess
        unsized = model.adjusted(min(height, width), max(height, width))  # the graph's images are resized already
        boxes = np.float32([[number, *box] for number in (1, 0) for box in BOXES])
        for names in (own, others):
            features, scores, refined = session.run(None, {"pixels": pixels, "boxes": boxes, "names": names})
            expected = torch.cat([unsized.region_features([images[n]], [BOXES]) for n in (1, 0)])
            np.testing.assert_allclose(features, expected, atol=1e-4)
            cosines = expected @ torch.nn.functional.normalize(torch.from_numpy(names), dim=1).T
            background = torch.full((len(expected), 1), 1.5)
            logits = torch.cat((cosines / model.detector.temperature, background), dim=1)
            np.testing.assert_allclose(scores, logits.softmax(1), atol=1e-4)
            mean, std = (torch.tensor(triple).view(3, 1, 1) for triple in (to.mean, to.std))
            normal = (torch.from_numpy(pixels) / 255 - mean) / std
            with torch.no_grad():
                both = [torch.tensor(BOXES)] * 2
                deltas = model.detector(normal, both, [(height, width)] * 2).deltas
            moved = decode(torch.cat(both), deltas, BOX_WEIGHTS).split(len(BOXES))
            np.testing.assert_allclose(refined, torch.cat((moved[1], moved[0])), atol=1e-3)  # pixels


@pytest.mark.slow
def test_the_example_of_the_card_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_detector()
    export_onnx(Folder(str(tmp_path)), model)
    picture = np.random.default_rng(2).integers(0, 255, (100, 160, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    card = (tmp_path / "README.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", card, re.M | re.S)
    found: dict[str, Any] = {}
    exec(code.replace("photo.jpg", "photo.png"), found)
    small = resize_image(torch.from_numpy(picture).permute(2, 0, 1), 64, 120)
    assert found["pixels"].shape == (1, *small.pixels.shape)
    given = found["boxes"][:, 1:] / (np.float32([*small.pixels.shape[:0:-1]] * 2) / np.float32([160, 100] * 2))
    np.testing.assert_allclose(found["features"], model.region_features(picture, given), atol=0.01)  # of resizing
    names = json.loads((tmp_path / "description.json").read_text())["names"]
    assert found["scores"].shape == (2, len(names) + 1)
