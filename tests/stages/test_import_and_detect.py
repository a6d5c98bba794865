"""From a published detector's file to objects in a photograph: random weights under the full official lists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from export_runs import free
from official_files import full_state
from PIL import Image
from places import TINY_COCO
from pycocotools import mask as coco_mask

from regionclip_core.datasets.categories import load_categories
from regionclip_core.weights.importing import import_checkpoint

PHOTOGRAPH = TINY_COCO / "val2017" / "000000006818.jpg"

pytestmark = pytest.mark.skipif(not PHOTOGRAPH.exists(), reason="needs tiny_coco (or REGIONCLIP_TINY_COCO)")


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """Emptied at once: full-size files are large, and pytest keeps the folders of three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def imported(tmp_path: Path, model: str, names: str) -> str:
    """The file of a full-size detector, imported. Heads are scaled so that random scores are not all alike."""
    state = full_state(model)
    for name in ("backbone.attnpool.c_proj.bias", "offline_proposal_generator.rpn_head.objectness_logits.weight"):
        state[name] = state[name] * 20
    torch.save({"model": state}, tmp_path / "weights.pth")
    import_checkpoint(str(tmp_path / "weights.pth"), str(tmp_path / "model"), names=names)
    return str(tmp_path / "model")


@pytest.mark.parametrize("layout", ["coco", "lvis"])
def test_a_detector_in_the_official_layout_is_imported_and_finds(tmp_path: Path, layout: str) -> None:
    names = load_categories("coco_ovd").names
    if layout == "lvis":
        names = tuple(f"thing {n}" for n in range(1203))
        (tmp_path / "names.txt").write_text("\n".join(names))
    spec = "coco_ovd" if layout == "coco" else str(tmp_path / "names.txt")
    model = imported(tmp_path, "coco_ovd_rn50" if layout == "coco" else "lvis_rn50", spec)
    out = tmp_path / "out"
    arguments = ("--model", model, "--image-size", "36", "--score", "0", "--max-detections", "20", "--out", str(out))
    result = free("detect", str(PHOTOGRAPH), *arguments)
    assert result.exit_code == 0, result.output
    [row] = json.loads((out / "detections.json").read_text())
    width, height = Image.open(PHOTOGRAPH).size
    assert (row["width"], row["height"]) == (width, height)
    assert row["detections"] and {found["name"] for found in row["detections"]} <= set(names)
    assert max(found["box"][2] for found in row["detections"]) > width / 2
    for found in row["detections"]:
        assert ("mask" in found) == (layout == "lvis")
        if layout == "lvis":
            mask = coco_mask.decode({**found["mask"], "counts": found["mask"]["counts"].encode()})
            assert mask.shape == (height, width)
