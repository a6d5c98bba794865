"""A detector folder opened by transformers finds what `model.detect` does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from small_models import write_small_detector
from transformers import AutoModelForZeroShotObjectDetection, dynamic_module_utils, pipeline

import regionclip_core
from regionclip_core.detection.model_folder import CODE

NAMES = ["cat", "red bus", "kite"]
TASK = "zero-shot-object-detection"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """detector/ and photo.png; what transformers copies of its code stays here too."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    write_small_detector(tmp_path / "detector")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 130, 3)).astype(np.uint8)).save("photo.png")
    return tmp_path


def test_both_ways_into_transformers_find_the_same(place: Path) -> None:
    [expected] = regionclip_core.load("detector").detect("photo.png", NAMES)
    assert len(set(expected.names)) > 1
    model = AutoModelForZeroShotObjectDetection.from_pretrained("detector", trust_remote_code=True)
    assert isinstance(model, transformers.PreTrainedModel) and not model.training
    [found] = model.detect(Image.open("photo.png"), NAMES)
    for one, other in ((found.boxes, expected.boxes), (found.scores, expected.scores), (found.labels, expected.labels)):
        assert torch.equal(one, other)
    find = pipeline(TASK, model="detector", trust_remote_code=True)
    rows = [
        {"score": score, "label": name, "box": dict(zip(("xmin", "ymin", "xmax", "ymax"), map(int, box), strict=True))}
        for score, name, box in zip(expected.scores.tolist(), expected.names, expected.boxes.tolist(), strict=True)
    ]
    assert find("photo.png", candidate_labels=NAMES, threshold=0) == rows
    assert find(Image.open("photo.png"), candidate_labels=",".join(NAMES), threshold=0, top_k=2) == rows[:2]
    least = rows[len(rows) // 2]["score"]
    sure = [row for row in rows if row["score"] >= least]
    assert 0 < len(sure) < len(rows)
    assert find([{"image": "photo.png", "candidate_labels": NAMES}] * 2, threshold=least) == [sure] * 2


def test_what_would_have_no_effect_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(**options: Any) -> Any:
        return AutoModelForZeroShotObjectDetection.from_pretrained("detector", trust_remote_code=True, **options)

    with pytest.raises(ValueError, match=r"dtype=torch\.float16: leave it out"):
        load(dtype=torch.float16)
    with pytest.raises(ValueError, match="copy the folder"):
        load().save_pretrained("other")
    code = (place / "detector" / CODE).read_text()
    monkeypatch.setitem(sys.modules, "regionclip_core.detection.transformers_model", None)
    with pytest.raises(ImportError, match="this model needs the package regionclip"):
        exec(code, {})
