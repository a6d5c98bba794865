"""Files as the official code, OpenAI and open_clip leave them: small ones, and full ones of random numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from places import GOLDEN
from torch import Tensor

from regionclip_core.models.clip import ClipModel, build_clip
from regionclip_core.storage.folder import Folder
from regionclip_core.weights.exporting import save_official

SMALL: dict[str, Any] = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 2, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
"""A CLIP ResNet for which open_clip has no name."""
GOLDEN_MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 224, "layers": [2, 2, 2, 2], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 512, "width": 32, "heads": 2, "layers": 2},
}
"""The architecture behind region_features.npz, and the text tower of text_encoder.npz."""
_HEADS = "roi_heads.box_predictor."


def full_shapes(model: str) -> dict[str, list[int]]:
    """Names and shapes of a full-size official model."""
    shapes: dict[str, list[int]] = json.loads((GOLDEN / "state_dict_keys.json").read_text())[model]["state_dict"]
    return shapes


def full_state(model: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights under all official names of a full-size model; the background embedding is zero, as always."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 << 20, generator=generator)
    state = {}
    for name, shape in full_shapes(model).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
            continue
        count = int(np.prod(shape))
        start = int(torch.randint(0, 1000, (), generator=generator))
        values = noise.repeat(count // len(noise) + 2)[start : start + count].view(shape)
        if name.endswith("running_var"):
            values = values.abs() + 0.5
        state[name] = (values * (0.0 if name.endswith("cls_bg_score.weight") else 0.02)).to(dtype)
    return state


def write_model_json(path: Path, config: Mapping[str, Any] = SMALL) -> str:
    """What `--model` takes for an architecture without a name."""
    path.write_text(json.dumps(config))
    return str(path)


def small_clip(seed: int = 3, config: Mapping[str, Any] = SMALL) -> ClipModel:
    """A CLIP model of the small architecture whose norms are not the identity."""
    clip = build_clip(dict(config), "small_model", seed)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in clip.model.state_dict().items():
        if ".bn" in name or ".downsample.1" in name:
            if name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.normal_(0.0, 0.1, generator=generator)
    return clip


def visual(clip: ClipModel, prefix: str) -> dict[str, Tensor]:
    """The image tower as an official part: under `prefix`, without the norms' counters."""
    return {
        prefix + name: tensor.clone()
        for name, tensor in clip.model.visual.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def text(clip: ClipModel, prefix: str = "lang_encoder.") -> dict[str, Tensor]:
    """The text tower as an official part: no logit_scale."""
    return {
        prefix + name: tensor.clone()
        for name, tensor in clip.model.state_dict().items()
        if not name.startswith("visual.") and name != "logit_scale"
    }


def heads(train: int, test: int | None, width: int = 16, mask_channels: int = 0) -> dict[str, Tensor]:
    """A detector's heads; the test classifier's rows have nothing to do with those of training."""
    generator = torch.Generator().manual_seed(train)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    state = {
        f"{_HEADS}cls_score.weight": draw(train, width) * 3,
        f"{_HEADS}cls_bg_score.weight": torch.zeros(1, width),
        f"{_HEADS}bbox_pred.weight": draw(4, width),
        f"{_HEADS}bbox_pred.bias": draw(4),
    }
    if test is not None:
        state[f"{_HEADS}test_cls_score.weight"] = draw(test, width) * 5
    if mask_channels:
        state |= {
            "roi_heads.mask_head.deconv.weight": draw(mask_channels, 256, 2, 2),
            "roi_heads.mask_head.deconv.bias": draw(256),
            "roi_heads.mask_head.predictor.weight": draw(1, 256, 1, 1),
            "roi_heads.mask_head.predictor.bias": draw(1),
        }
    return state


def detector_state(train: int = 48, test: int | None = 65) -> dict[str, Tensor]:
    """A small official detector without a proposal branch."""
    return visual(small_clip(), "backbone.") | heads(train, test)


def pretrained_state() -> dict[str, Tensor]:
    """A small official pretraining checkpoint without a proposal branch: student, teacher, their text encoder."""
    student = small_clip(3)
    return visual(student, "backbone.") | visual(small_clip(4), "teacher_backbone.") | text(student)


def golden_backbone(prefix: str) -> dict[str, Tensor]:
    """The weights of region_features.npz as a part of a file."""
    stored = np.load(GOLDEN / "region_features.npz")
    return {prefix + key[2:]: torch.from_numpy(stored[key]) for key in stored.files if key.startswith("w/")}


def save(path: Path, state: Any, **beside: Any) -> str:
    """As the official code saves: the weights under `model`."""
    torch.save({"model": state, **beside}, path)
    return str(path)


def same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Equal names, shapes, types and values."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def out(tmp_path: Path) -> str:
    """Where a test's import goes: a folder that isn't there yet, in one that isn't either."""
    return str(tmp_path / "made" / "out")


def official_at(tmp_path: Path) -> dict[str, Tensor]:
    """What is exported from the imported folder, read as the official code would."""
    save_official(Folder(out(tmp_path)), tmp_path / "back.pth")
    loaded = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(loaded) == ["model"]
    state: dict[str, Tensor] = loaded["model"]
    return state
