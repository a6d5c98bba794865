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
from regionclip_core.detection.assembly import open_model
from regionclip_core.detection.model_folder import save_model
from regionclip_core.proposals.rpn_folder import rpn_section, write_rpn_folder
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.exporting import export_open_clip
from regionclip_core.weights.model_card import clip_card


@pytest.mark.parametrize("kind", ["detector", "student"])
@pytest.mark.parametrize("drawings_only", [True, False])
def test_one_line_for_all_photographs(drawings_only: bool, kind: str, tmp_path: Path) -> None:
    folder, model = Folder(str(tmp_path / "model")), replace(small_detector(), drawings_only=drawings_only)
    if kind == "detector":
        save_model(folder, model, "# A card")
    else:
        assert model.text is not None and model.proposer is not None
        export_open_clip(folder, model.text, clip_card(model.text, kind, None), None, drawings_only)
        write_rpn_folder(folder.child("rpn"), model.proposer.network.state_dict(), rpn_section(model.proposer.rpn))
    assert open_model(folder.url).drawings_only is drawings_only
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3)).astype(np.uint8)
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    for file, pixels in zip(files, (make_sample("scene", 5, "mine", 0, 96).image, noise, noise), strict=True):
        Image.fromarray(pixels).save(file)
    words = ("--classes", "cat, dog")
    result = free("detect", *files, *words, "--model", folder.url, "--out", str(tmp_path / "found"))
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "trained on drawings" in line]
    expected = f"note: {files[1]} and 1 more look like a photograph, and this model was trained on drawings only: "
    assert said == [expected + "what it finds there means nothing"] * drawings_only
