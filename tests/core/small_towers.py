"""Small CLIP models of each kind of image tower, built as the large ones are."""

from __future__ import annotations

import itertools
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed
from timm.layers.norm import LayerNorm
from timm.models import register_model
from timm.models.eva import Eva
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
EVA: dict[str, Any] = {
    "embed_dim": 24,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 32,
        "timm_model_name": "eva02_test_patch8_clip_32",
        "timm_model_pretrained": False,
        "timm_pool": "token",
        "timm_proj": None,
    },
    "text_cfg": TEXT,
}
EVA1: dict[str, Any] = {**EVA, "vision_cfg": {**EVA["vision_cfg"], "timm_model_name": "eva_test_patch8_32"}}
PE: dict[str, Any] = {
    **EVA,
    "vision_cfg": {**EVA["vision_cfg"], "timm_model_name": "vit_pe_core_test_patch8_32", "timm_pool": "map"},
}
PE_BARE: dict[str, Any] = {**PE, "vision_cfg": {**PE["vision_cfg"], "timm_model_name": "vit_pe_core_bare_patch8_32"}}
WORDS = ["<pad>", "<unk>", "</s>", "a", "photo", "of", "cat", "dog", "red", "bus", "the", "."]


@register_model
def vit_test_patch8_siglip_32(pretrained: bool = False, **options: Any) -> TimmVit:
    """timm's vit_base_patch16_siglip_224, small."""
    assert not pretrained
    kept = {key: options[key] for key in ("num_classes", "global_pool")}
    return TimmVit(img_size=32, patch_size=8, embed_dim=24, depth=4, num_heads=2, class_token=False, **kept)


_EVA: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
_ROPE = {"use_rot_pos_emb": True, "ref_feat_shape": (5, 5)}  # not the grid: EVA-02's isn't either
_GATED = {"mlp_ratio": 8 / 3, "swiglu_mlp": True, "scale_mlp": True, "scale_attn_inner": True}
_PE: dict[str, Any] = {
    "use_rot_pos_emb": True,
    "ref_feat_shape": (4, 4),
    "attn_type": "rope",
    "use_pre_transformer_norm": True,
    "rope_grid_offset": 1.0,
    "rope_grid_indexing": "xy",
    "attn_pool_num_heads": 4,
    "attn_pool_mlp_ratio": 4.0,
    "norm_layer": partial(LayerNorm, eps=1e-5),
}


@register_model
def eva02_test_patch8_clip_32(pretrained: bool = False, **options: Any) -> Eva:
    """timm's eva02_base_patch16_clip_224, small."""
    kept = {key: options[key] for key in ("num_classes", "global_pool")}
    return Eva(**_EVA, **_ROPE, **_GATED, qkv_fused=False, **kept)


@register_model
def eva_test_patch8_32(pretrained: bool = False, **options: Any) -> Eva:
    """timm's eva_giant_patch14_224, small, with layer scale."""
    kept = {key: options[key] for key in ("num_classes", "global_pool")}
    return Eva(**_EVA, mlp_ratio=3, init_values=0.3, **kept)


@register_model
def vit_pe_core_test_patch8_32(pretrained: bool = False, **options: Any) -> Eva:
    """timm's vit_pe_core_base_patch16_224, small."""
    kept = {key: options[key] for key in ("num_classes", "global_pool")}
    return Eva(**_EVA, **_PE, **kept)


@register_model
def vit_pe_core_bare_patch8_32(pretrained: bool = False, **options: Any) -> Eva:
    """timm's vit_pe_core_gigantic_patch14_448, small: no class token, places from 0 on."""
    kept = {key: options[key] for key in ("num_classes", "global_pool")}
    return Eva(**_EVA, **{**_PE, "rope_grid_offset": 0.0}, class_token=False, **kept)


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


def naive_bins(features: Tensor, box: tuple[float, float, float, float], stride: int, bins: int) -> list[Tensor]:
    """RoIAlign of one map [C, h, w], row by row of its bins: bins * bins tensors [C]."""
    x0, y0, x1, y1 = box
    width, height = (x1 - x0) / bins, (y1 - y0) / bins
    corners = [(x0 + c * width, y0 + r * height) for r, c in itertools.product(range(bins), range(bins))]
    return [naive_roi_mean(features, (x, y, x + width, y + height), stride, bins=1) for x, y in corners]


def naive_pool(pool: nn.Module, tokens: list[Tensor]) -> Tensor:
    """The attention pool, one key at a time: [D]."""
    width, heads = len(tokens[0]), pool.num_heads
    query = pool.q.weight @ pool.latent[0, 0] + pool.q.bias
    keys = [pool.kv.weight[:width] @ t + pool.kv.bias[:width] for t in tokens]
    values = [pool.kv.weight[width:] @ t + pool.kv.bias[width:] for t in tokens]
    answer = []
    for head in range(heads):
        own = slice(head * width // heads, (head + 1) * width // heads)
        shares = torch.stack([query[own] @ k[own] for k in keys]).div(math.sqrt(width // heads)).softmax(0)
        answer.append(sum(s * v[own] for s, v in zip(shares, values, strict=True)))
    x = pool.proj.weight @ torch.cat(answer) + pool.proj.bias
    normed = (x - x.mean()) / torch.sqrt(x.var(correction=0) + pool.norm.eps) * pool.norm.weight + pool.norm.bias
    hidden = pool.mlp.fc1.weight @ normed + pool.mlp.fc1.bias
    return x + pool.mlp.fc2.weight @ (hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2) + pool.mlp.fc2.bias
