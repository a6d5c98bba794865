"""`detect` says when a model that knows drawings only looks at a photograph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from export_runs import free
from PIL import Image
from small_models import small_detector

from regionclip_core.datasets.world.sample import make_sample
from regionclip_core.detection.model_folder import load_model, save_model
from regionclip_core.storage.folder import Folder


@pytest.mark.parametrize("drawings_only", [True, False])
def test_one_line_for_all_photographs(drawings_only: bool, tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "model"))
    save_model(folder, replace(small_detector(), drawings_only=drawings_only), "# A card")
    assert load_model(folder).drawings_only is drawings_only
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file, pixels in zip(files, (make_sample("scene", 5, "mine", 0, 96).image, noise, noise), strict=True):
        Image.fromarray(pixels).save(file)
    result = free("detect", *files, "--model", folder.url, "--out", str(tmp_path / "found"))
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "trained on drawings" in line]
    expected = f"note: {files[1]} and 1 more look like a photograph, and this model was trained on drawings only: "
    assert said == [expected + "what it finds there means nothing"] * drawings_only
