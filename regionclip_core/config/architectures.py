"""What a CLIP architecture can do, judged by its description alone, without importing torch or open_clip.

A description is open_clip's `model_cfg`: `embed_dim`, `vision_cfg`, `text_cfg` and a few switches.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from regionclip_core.config.nearest import nearest

RESNET_STRIDE = 16
"""Input pixels per cell of the stage-3 map, on which a ResNet's regions are aligned."""

_SWITCHES = {"quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
_OTHER_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")

NO_VALUES = "only towers of open_clip's ViTs and of EVA read a class token, which is made of values"
"""Why `teacher.value_blocks` isn't for a tower."""

# timm's names, and how the tower pools. Not EVA's largest (enormous), whose norms come after the blocks' parts.
_EVA = {
    r"eva(?:02)?_(?:giant|base|large|test)_patch(\d+)_(?:clip_)?\d+$": "token",
    r"vit_pe_core_\w+_patch(\d+)_\d+$": "map",
}


@dataclass(frozen=True)
class Tower:
    """An image tower."""

    kind: Literal["resnet", "vit", "eva", "siglip", "timm"]
    """`vit`: open_clip's own. `eva`: timm's of EVA's CLIPs and Perception Encoder. `siglip`: timm's ViT with an
    attention pool. `timm`: any other timm model."""
    stride: int | None
    """Input pixels per cell of its feature map; None where there are no region features."""
    no_regions: str | None
    """Why it can't give features of regions from one pass over an image; None if it can."""
    has_values: bool = False
    """Whether its regions' features can be the values of its last blocks (`teacher.value_blocks`)."""


def model_config(name: str) -> dict[str, Any]:
    """Return the description of a built-in open_clip architecture. Raises ValueError with the nearest names."""
    spec = importlib.util.find_spec("open_clip")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "teacher.model: open_clip, which knows the architectures, is not installed: pip install open_clip_torch"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model_configs"
    file = folder / f"{name}.json"
    if "/" in name or not file.is_file():
        near = nearest(name, ["small", *(path.stem for path in folder.glob("*.json"))], most=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ", such as RN50, RN50x4 or ViT-B-16"
        raise ValueError(f"teacher.model: expected `small` or an open_clip architecture (came: {name!r}){hint}")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def why_not_buildable(config: Mapping[str, Any]) -> str | None:
    """Return why no ClipModel can be built from a description, offline; None if one can."""
    parts = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    if not isinstance(config, dict) or any(type(config.get(key)) is not kind for key, kind in parts.items()):
        return "expected open_clip's embed_dim, a number, and vision_cfg and text_cfg, mappings, in its description"
    if "multimodal_cfg" in config:
        return "it is a captioning model (CoCa), not a plain pair of encoders"
    if unknown := set(config) - _SWITCHES - {"embed_dim", "vision_cfg", "text_cfg"}:
        return f"its description has {sorted(unknown)}, which is not known here"
    if "hf_model_name" in config["text_cfg"]:
        return (
            f"its text tower is Hugging Face's {config['text_cfg']['hf_model_name']}, which can't be built without the "
            "network"
        )
    if config["vision_cfg"].get("output_tokens") or config["text_cfg"].get("output_tokens"):
        return "its towers give tokens beside the embedding"
    if not isinstance(config["vision_cfg"].get("image_size", 224), int):
        return f"it takes images of {config['vision_cfg']['image_size']}, and only square ones are supported"
    return None


def tower_of(config: Mapping[str, Any]) -> Tower:
    """Return the image tower of a description."""
    vision = config["vision_cfg"]
    if timm_name := vision.get("timm_model_name"):
        found = re.match(r"vit_\w+_patch(\d+)_siglip_\d+$", timm_name)
        if found and vision.get("timm_pool") == "map" and vision.get("timm_proj") == "none":
            return Tower("siglip", int(found[1]), None)
        for pattern, pool in _EVA.items():
            found = re.match(pattern, timm_name)
            if found and vision.get("timm_pool") == pool and vision.get("timm_proj") is None:
                return Tower("eva", int(found[1]), None, has_values=pool == "token")
        return Tower(
            "timm", None, f"its image tower is timm's {timm_name}, which has no patch features for regions here"
        )
    if isinstance(vision.get("layers", 12), (list, tuple)):
        return Tower("resnet", RESNET_STRIDE, None)
    reason = None
    if vision.get("attentional_pool") or vision.get("pool_type", "tok") != "tok":
        reason = "it has no class token's path from patches to the embedding (attentional_pool, pool_type)"
    elif vision.get("block_type") not in (None, "default") or any(vision.get(key) for key in _OTHER_BLOCKS):
        reason = "its attention blocks are not those of CLIP's ViT"
    elif vision.get("pos_embed_type", "learnable") != "learnable":
        reason = "its positions are fixed, not learned, and can't be fitted to other image sizes"
    elif not isinstance(vision.get("patch_size", 16), int):
        reason = f"its patches are not square ({vision['patch_size']})"
    return Tower("vit", None if reason else vision.get("patch_size", 16), reason, has_values=reason is None)
