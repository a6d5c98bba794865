"""What a CLIP architecture can do, told from its description alone: read without torch or open_clip.

A description is open_clip's `model_cfg`: `embed_dim`, `vision_cfg`, `text_cfg` and a few switches.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regionclip_core.config.nearest import nearest

if TYPE_CHECKING:
    from regionclip_core.config.tree import ClipArchitecture, Config

RESNET_STRIDE = 16
"""Input pixels a cell of the stage-3 map, on which a ResNet's regions are aligned."""

_SWITCHES = {"quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}
_OTHER_BLOCKS = ("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")


@dataclass(frozen=True)
class Tower:
    """An image tower."""

    kind: Literal["resnet", "vit", "siglip", "timm"]
    """`vit`: open_clip's own. `siglip`: timm's ViT with an attention pool. `timm`: any other timm model."""
    stride: int | None
    """Input pixels a cell of its feature map; None where there are no region features."""
    no_regions: str | None
    """Why it can't give features of regions from one pass over an image; None if it can."""


def model_config(name: str) -> dict[str, Any]:
    """The description of a built-in open_clip architecture; ValueError with the nearest names if there is none."""
    folder = _configs_folder()
    file = folder / f"{name}.json"
    if "/" in name or not file.is_file():
        near = nearest(name, ["small", *(path.stem for path in folder.glob("*.json"))], most=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ", such as RN50, RN50x4 or ViT-B-16"
        raise ValueError(f"teacher.model: expected `small` or an open_clip architecture (came: {name!r}){hint}")
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return config


def _configs_folder() -> Path:
    spec = importlib.util.find_spec("open_clip")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "teacher.model: open_clip, which knows the architectures, is not installed: pip install open_clip_torch"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model_configs"


# ---------------------------------------------------------------- what a description allows


def why_not_buildable(config: Mapping[str, Any]) -> str | None:
    """Why no ClipModel can be made of a description, offline; None if one can."""
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
    """The image tower of a description."""
    vision = config["vision_cfg"]
    if vision.get("timm_model_name"):
        return _timm_tower(vision)
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
    return Tower("vit", None if reason else vision.get("patch_size", 16), reason)


def _timm_tower(vision: Mapping[str, Any]) -> Tower:
    name = vision["timm_model_name"]
    found = re.match(r"vit_\w+_patch(\d+)_siglip_\d+$", name)
    if found and vision.get("timm_pool") == "map" and vision.get("timm_proj") == "none":
        return Tower("siglip", int(found[1]), None)
    return Tower("timm", None, f"its image tower is timm's {name}, which has no patch features for regions here")


def check_small(architecture: ClipArchitecture) -> None:
    """ValueError if `teacher.architecture`, whose settings are each in range, can't be built."""
    if architecture.text_width % architecture.text_heads:
        raise ValueError(
            f"teacher.architecture.text_heads: expected a divisor of text_width, which is {architecture.text_width} "
            f"(came: {architecture.text_heads})"
        )


# ---------------------------------------------------------------- what a configuration asks for


def check_config(config: Config) -> None:
    """ValueError where the configuration asks the teacher's architecture for what it can't do, whatever is run."""
    name = config.teacher.model
    if name == "small":
        check_small(config.teacher.architecture)
        _check_sides(config, "small", RESNET_STRIDE)
        return
    description = model_config(name)
    if reason := why_not_buildable(description):
        raise ValueError(f"teacher.model: {name} can't be used: {reason}")
    if config.teacher.weights == "train" and "init_logit_bias" in description:
        raise ValueError(
            f"teacher.weights: {name} is trained with a sigmoid for each pair, and `train` has CLIP's softmax loss "
            "alone; give weights"
        )
    if description["text_cfg"].get("hf_tokenizer_name") and importlib.util.find_spec("transformers") is None:
        raise ValueError(
            f"teacher.model: the tokenizer of {name} needs the package transformers (the extra `siglip`): pip install "
            "transformers"
        )
    tower = tower_of(description)
    if tower.no_regions is None:
        assert tower.stride is not None
        _check_sides(config, name, tower.stride)
        if tower.kind != "resnet" and config.pretrain.global_box == "padded":
            raise ValueError(
                f"pretrain.global_box: `padded` is the official code's box around image and padding, and {name}, a "
                "ViT, is not shown the padding; set image"
            )
    elif config.labels.mode == "roi":
        raise ValueError(
            f"labels.mode: {name} can't label with `roi`: {tower.no_regions}. Set labels.mode: crop, or take an RN, "
            "ViT or SigLIP architecture"
        )


def check_stages(config: Config, stages: Collection[str]) -> None:
    """ValueError if one of `stages` needs region features and the teacher's architecture has none.

    Apart from check_config: with such a teacher the stages up to the pseudo labels can run.
    """
    if config.teacher.model == "small":
        return
    tower = tower_of(model_config(config.teacher.model))
    trained = {"pretrain": config.pretrain.weights == "train", "finetune": config.finetune.weights == "train"}
    blocked = [stage for stage, needs in {**trained, "evaluate": True}.items() if needs and stage in stages]
    if tower.no_regions is not None and blocked:
        raise ValueError(
            f"teacher.model: {config.teacher.model} can label regions with labels.mode: crop, but can't take part in "
            f"{', '.join(blocked)}: {tower.no_regions}. Take an RN, ViT or SigLIP architecture, or stop earlier with "
            "`regionclip run pairs`"
        )


def _check_sides(config: Config, name: str, stride: int) -> None:
    """Inputs must be at least one cell of the feature map high."""
    sides = [("pretrain.image_size", config.pretrain.image_size), ("finetune.image_size", config.finetune.image_size)]
    sides += [("evaluate.image_size", config.evaluate.image_size)]
    sides += [("finetune.train_sizes", side) for side in config.finetune.train_sizes]
    if config.labels.mode == "roi":
        sides.append(("labels.image_size", config.labels.image_size))
    for path, side in sides:
        if side < stride:
            raise ValueError(f"{path}: expected at least a cell of {name}'s feature map, {stride} px (came: {side})")
