"""Small CLIP models of each kind of image tower, built as the large ones are."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer as TimmVit
from torch import Tensor, nn

from regionclip_core.config.architectures import model_config
from regionclip_core.models.clip import ClipModel, build_clip

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VIT = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": TEXT,
}
SIGLIP: dict[str, Any] = {
    "embed_dim": 24,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "vit_test_patch8_siglip_32",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        **TEXT,
        "vocab_size": 12,
        "hf_tokenizer_name": "nobody/nowhere",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
    },
}
CONVNEXT = {
    "embed_dim": 24,
    "vision_cfg": {
        "image_size": 64,
        "timm_model_name": "test_convnext",
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_drop_path": 0.1,
    },
    "text_cfg": TEXT,
}
WORDS = ["<pad>", "<unk>", "</s>", "a", "photo", "of", "cat", "dog", "red", "bus", "the", "."]


@register_model
def vit_test_patch8_siglip_32(pretrained: bool = False, **options: Any) -> TimmVit:
    """timm's vit_base_patch16_siglip_224, small."""
    assert not pretrained
    kept = {key: options[key] for key in ("num_classes", "global_pool")}
    return TimmVit(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, class_token=False, **kept)


def stirred(module: nn.Module, seed: int = 0) -> Any:
    """The module with its weights enlarged and its biases and norms set to anything: no part may look like another."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            elif "positional" in name or "pos_embed" in name:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            elif parameter.ndim == 2:  # timm's start is so small that hardly anything of the image comes out
                parameter.mul_(parameter.shape[1] ** -0.5 / parameter.std())
    return module.eval()


def tower(name: str, image_size: Any = None, **changes: Any) -> nn.Module:
    """The image tower of an open_clip architecture, with random weights."""
    config = model_config(name)
    vision = {**config["vision_cfg"], **changes} | ({"image_size": image_size} if image_size else {})
    torch.manual_seed(0)
    return stirred(_build_vision_tower(config["embed_dim"], CLIPVisionCfg(**vision), config.get("quick_gelu", False)))


def resized(visual: nn.Module, other: nn.Module) -> nn.Module:
    """`other`, an open_clip ViT for another image size, with the weights of `visual` as open_clip fits them."""
    holder = nn.Module()
    holder.visual = other
    state = {f"visual.{key}": value.clone() for key, value in visual.state_dict().items()}
    resize_pos_embed(state, holder)
    holder.load_state_dict(state)
    return other


def small_clip(description: dict[str, Any], seed: int = 0) -> ClipModel:
    """A small CLIP with nothing at its initial value."""
    clip = build_clip(description, "small test model", seed)
    stirred(clip.model.visual, seed)
    return clip


def write_tokenizer(folder: Path) -> Path:
    """A Hugging Face tokenizer of a dozen words, as `save_pretrained` leaves one."""
    from tokenizers import Tokenizer  # comes with transformers, which is optional
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def naive_roi_mean(features: Tensor, box: tuple[float, float, float, float], stride: int, bins: int) -> Tensor:
    """RoIAlign of one map [C, h, w] and the mean over bins, sample by sample: [C]."""
    x0, y0, x1, y1 = (value / stride - 0.5 for value in box)
    total = torch.zeros(features.shape[0], dtype=features.dtype)
    samples_x, samples_y = math.ceil((x1 - x0) / bins), math.ceil((y1 - y0) / bins)
    if samples_x * samples_y == 0:  # no area, no sample
        return total
    for row in range(bins * samples_y):
        for column in range(bins * samples_x):
            y = y0 + (y1 - y0) * (row + 0.5) / (bins * samples_y)
            x = x0 + (x1 - x0) * (column + 0.5) / (bins * samples_x)
            total += _bilinear(features, y, x)
    return total / (bins * bins * samples_y * samples_x)


def _bilinear(features: Tensor, y: float, x: float) -> Tensor:
    height, width = features.shape[1:]
    if not (-1 <= y <= height and -1 <= x <= width):
        return torch.zeros(features.shape[0], dtype=features.dtype)
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    upper = features[:, top, left] * (1 - x + left) + features[:, top, right] * (x - left)
    lower = features[:, bottom, left] * (1 - x + left) + features[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)
