"""The architecture of a CLIP model, read off the names and shapes of its weights (by open_clip's names).

A CLIP ResNet is told by its shapes alone; only the activation of its text tower is not in them. Other image towers
have to be named.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from regionclip_core.config.architectures import model_config, tower_of, why_not_buildable

RESNETS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64")
_QUICK = "-quickgelu"
_TEXT_HEAD = 64  # channels of an attention head, in every text tower of CLIP's own


@dataclass(frozen=True)
class Architecture:
    """A CLIP architecture by name and by description."""

    name: str
    """open_clip's, or that of the description file."""
    config: dict[str, Any]
    """open_clip's `model_cfg`."""

    @property
    def kind(self) -> str:
        """`resnet`, `vit`, `siglip` or `timm`."""
        return tower_of(self.config).kind

    def describe(self) -> str:
        """For messages and reports."""
        return f"{self.name}: {_words(_measures(self.config, text=False))}"


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the image tower is a CLIP ResNet."""
    return "visual.attnpool.positional_embedding" in state or "visual.layer1.0.conv1.weight" in state


def resnet_config(state: Mapping[str, Tensor], text: bool, source: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a CLIP ResNet, read off its weights; with `text` its text tower too.

    ValueError if what tells the architecture is missing or contradicts itself.
    """
    positions = len(_get(state, "visual.attnpool.positional_embedding", source))
    side = math.isqrt(positions - 1)
    if side * side + 1 != positions:
        raise ValueError(f"{source}: {positions} positions in the attention pool are no square and one more")
    config: dict[str, Any] = {
        "embed_dim": _get(state, "visual.attnpool.c_proj.weight", source).shape[0],
        "vision_cfg": {
            "image_size": 32 * side,
            "layers": [_blocks(state, rf"visual\.layer{stage}\.(\d+)\.", source) for stage in (1, 2, 3, 4)],
            "width": _get(state, "visual.layer1.0.conv1.weight", source).shape[0],
            "patch_size": None,
        },
    }
    if text:
        vocabulary, width = _get(state, "token_embedding.weight", source).shape
        config["text_cfg"] = {
            "context_length": _get(state, "positional_embedding", source).shape[0],
            "vocab_size": vocabulary,
            "width": width,
            "heads": max(1, width // _TEXT_HEAD),
            "layers": _blocks(state, r"transformer\.resblocks\.(\d+)\.", source),
        }
    return config


def _get(state: Mapping[str, Tensor], name: str, source: str) -> Tensor:
    if name not in state:
        raise ValueError(f"{source}: {name} is missing, without which the architecture of the CLIP model is unknown")
    return state[name]


def _blocks(state: Mapping[str, Tensor], pattern: str, source: str) -> int:
    numbers = sorted({int(found[1]) for name in state if (found := re.match(pattern, name))})
    if not numbers or numbers != list(range(len(numbers))):
        plain = pattern.replace("\\", "").removesuffix(".(d+).")
        raise ValueError(f"{source}: expected the blocks of {plain} from 0 on, got {numbers}: weights are missing")
    return len(numbers)


def resnet_architecture(
    state: Mapping[str, Tensor], model: str | None, text: bool, source: str, quick_gelu: bool | None
) -> Architecture:
    """The architecture of a file with a CLIP ResNet, checked against `model` where the user gives one.

    Args:
        state: weights by open_clip's names; text: whether the text tower is among them.
        model: an open_clip name, or a JSON file with open_clip's description of an architecture it has no name for.
        quick_gelu: the activation where the file's origin tells it; None takes what `model` says.

    Raises:
        ValueError: if `model` is another architecture, the shapes are of none that open_clip has, or nothing tells
            the activation of the text tower.
    """
    found = resnet_config(state, text, source)
    chosen = read_model(model) if model else _named(found)
    if chosen is None:
        raise ValueError(
            f"{source}: no open_clip architecture has these shapes ({_words(_measures(found, text))}). Check that the "
            "file is whole, or give open_clip's description of the architecture: --model my_model.json"
        )
    wanted, got = _measures(chosen.config, text), _measures(found, text)
    if wanted != got:
        other = _named(found)
        raise ValueError(
            f"{source} is no {chosen.name}: its weights say {_words(got)}, {chosen.name} has {_words(wanted)}. "
            + (f"Use --model {other.name}" if other else "Check --model")
        )
    config = dict(chosen.config)
    if quick_gelu is not None:
        config.setdefault("quick_gelu", quick_gelu)
    elif model is None:
        raise ValueError(
            f"{source} has the shapes of {chosen.name}, but nothing in it tells the activation of its text tower: add "
            f"--model {chosen.name}{_QUICK} (OpenAI's weights, and models trained with QuickGELU) or --model "
            f"{chosen.name} (trained with GELU)"
        )
    return Architecture(chosen.name.removesuffix(_QUICK), config)


def read_model(model: str) -> Architecture:
    """The architecture that `--model` names: open_clip's, or the description in a JSON file.

    ValueError for an unknown name, for a file without a description, and for models that can't be built.
    """
    if model.endswith(".json"):
        path = Path(model)
        if not path.is_file():
            raise FileNotFoundError(f"--model {model}: no such file")
        try:
            described = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--model {model}: not valid JSON ({error})") from None
        config = described.get("model_cfg", described) if isinstance(described, dict) else {}
        if not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
            raise ValueError(f"--model {model}: expected open_clip's embed_dim, vision_cfg and text_cfg in it")
        name = str(described.get("name", path.stem))
    else:
        try:
            name, config = model, model_config(model)
        except ValueError as error:
            raise ValueError(str(error).replace("teacher.model", "--model").replace("`small` or an", "an")) from None
    if reason := why_not_buildable(config):
        raise ValueError(f"--model {model} can't be used: {reason}")
    return Architecture(name, config)


def _named(found: Mapping[str, Any]) -> Architecture | None:
    """The CLIP ResNet of open_clip's with these measures; without a text tower in them only the image tower counts."""
    text = "text_cfg" in found
    for name in RESNETS:
        config = model_config(name)
        if _measures(config, text) == _measures(found, text):
            return Architecture(name, config)
    return None


def _measures(config: Mapping[str, Any], text: bool) -> dict[str, Any]:
    """What shapes can tell of an architecture, in words for messages."""
    vision, words = config["vision_cfg"], config.get("text_cfg", {})
    layers = vision.get("layers", 12)
    measures: dict[str, Any] = {
        "blocks": list(layers) if isinstance(layers, (list, tuple)) else layers,
        "width": vision.get("width"),
        "input": vision.get("image_size"),
        "embedding": config["embed_dim"],
    }
    if text:
        measures |= {f"text {key}": words.get(key) for key in ("layers", "width", "context_length", "vocab_size")}
    return measures


def _words(measures: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in measures.items())
