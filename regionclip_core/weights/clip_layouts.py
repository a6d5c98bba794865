"""CLIP weights of other projects under open_clip's names: Hugging Face's, EVA's own and Perception Encoder's own.

Tensors are renamed, joined, cut or transposed; no number changes. A name that is not known stays, so that the check
against the architecture refuses the file.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.models.eva import checkpoint_filter_fn
from torch import Tensor

from regionclip_core.config.architectures import Tower, tower_of
from regionclip_core.models.clip import build_clip
from regionclip_core.models.official_keys import OPEN_CLIP_TEXT

HUGGING_FACE = "vision_model."
"""How the image tower's names begin in Hugging Face's files."""

# Hugging Face's names and ours. What ends with a dot is a beginning.
_TEXT = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
}
_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # the name is theirs
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    **_TEXT,
}
_SIGLIP = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "text_model.head.": "text.text_projection.",
    **{name: f"text.{own}" for name, own in _TEXT.items()},
}
# Of a transformer block: Hugging Face's, open_clip's and timm's. Queries, keys and values are one tensor in the latter.
_BLOCK = re.compile(r"(vision|text)_model\.encoder\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")
_PARTS = {
    "layer_norm1": ("ln_1.", "norm1."),
    "layer_norm2": ("ln_2.", "norm2."),
    "mlp.fc1": ("mlp.c_fc.", "mlp.fc1."),
    "mlp.fc2": ("mlp.c_proj.", "mlp.fc2."),
    "self_attn.out_proj": ("attn.out_proj.", "attn.proj."),
    **{f"self_attn.{letter}_proj": ("attn.in_proj_", "attn.qkv.") for letter in "qkv"},
}
_POOL = re.compile(r"vision_model\.head\.attention\.in_proj_(weight|bias)")
_TRANSPOSED = ("visual.proj", "text_projection")


@dataclass
class OpenClipWeights:
    """A file's CLIP weights under open_clip's names, and what became of each of its tensors."""

    own: dict[str, Tensor] = field(default_factory=dict)
    """By open_clip's names."""
    renamed: dict[str, str] = field(default_factory=dict)
    """The file's name to open_clip's; to several, with commas, where a tensor was cut."""
    left: dict[str, str] = field(default_factory=dict)
    """Tensors of the file that were not taken, and why."""
    added: dict[str, str] = field(default_factory=dict)
    """Tensors that the file lacks, and how they were made."""
    note: str = ""
    """What the file leaves open."""


def to_open_clip(state: Mapping[str, Tensor], name: str, config: Mapping[str, Any], source: str) -> OpenClipWeights:
    """Return the weights of a file in any layout that is known for the architecture, open_clip's `model_cfg`.

    Raises:
        ValueError: the layout isn't one of this architecture; `source` names the file.
    """
    tower = tower_of(config)
    if any(old.startswith(HUGGING_FACE) for old in state):
        found = _from_hugging_face(state, tower, name, source)
    elif tower.kind == "eva" and not any(old.startswith("visual.trunk.") for old in state):
        found = _by_timm(state, name, config, source)
    else:
        return OpenClipWeights(dict(state), {old: old for old in state})
    taken = sum(tensor.numel() for old, tensor in state.items() if old not in found.left)
    if taken != sum(tensor.numel() for new, tensor in found.own.items() if new not in found.added):
        raise ValueError(f"{source} has some of its weights under two names, or in several layouts: get it again")
    return found


def _from_hugging_face(state: Mapping[str, Tensor], tower: Tower, name: str, source: str) -> OpenClipWeights:
    if tower.kind not in ("vit", "siglip"):
        raise ValueError(
            f"{source} has Hugging Face's names of a CLIP or SigLIP, and {name} is neither a ViT nor a SigLIP of "
            "open_clip's; give the architecture that the file was made with as --model"
        )
    siglip, found = tower.kind == "siglip", OpenClipWeights()
    patches = state.get("vision_model.embeddings.patch_embedding.weight")
    if siglip and patches is not None and patches.ndim == 2:
        raise ValueError(
            f"{source} is a NaFlex SigLIP, which takes images in their own proportions, and {name} takes squares: "
            "take the file of a model of one size, such as siglip2-base-patch16-256"
        )
    plain = _SIGLIP if siglip else _CLIP
    thirds: defaultdict[str, dict[str, Tensor]] = defaultdict(dict)
    for old, tensor in state.items():
        block, pool = _BLOCK.fullmatch(old), _POOL.fullmatch(old)
        start = next((one for one in plain if old == one or (one[-1] == "." and old.startswith(one))), None)
        if old.endswith(".position_ids"):
            found.left[old] = "numbers from 0 on"
        elif block and block[3] in _PARTS:
            by_timm = siglip and block[1] == "vision"
            blocks = "trunk.blocks" if by_timm else "transformer.resblocks"
            place = {"vision": "visual.", "text": "text." if siglip else ""}[block[1]]
            new = f"{place}{blocks}.{block[2]}.{_PARTS[block[3]][by_timm]}{block[4]}"
            found.renamed[old] = new
            if third := re.fullmatch(r"self_attn\.([qkv])_proj", block[3]):
                thirds[new][third[1]] = tensor
            else:
                found.own[new] = tensor
        elif pool and siglip and tensor.ndim and len(tensor) >= 3:
            query, *rest = tensor.chunk(3)
            names = [f"visual.trunk.attn_pool.{part}.{pool[1]}" for part in ("q", "kv")]
            found.own |= zip(names, (query.clone(), torch.cat(rest)), strict=True)
            found.renamed[old] = ", ".join(names)
        else:
            new = old if start is None else plain[start] + old.removeprefix(start)
            found.renamed[old] = new
            if new in _TRANSPOSED and tensor.ndim == 2:
                tensor = tensor.T
            found.own[new] = tensor[None] if new == "visual.trunk.pos_embed" else tensor
    for new, parts in thirds.items():
        if len(parts) < 3 or len({tensor.shape for tensor in parts.values()}) > 1:
            shapes = {letter: tuple(tensor.shape) for letter, tensor in sorted(parts.items())}
            raise ValueError(f"{source}: {new} is made of q, k and v of one shape, and it has {shapes}: get it again")
        found.own[new] = torch.cat([parts[letter] for letter in "qkv"])
    if not siglip:
        found.note = (
            f"nothing in the file says the activation: that of {name} is taken. Where its config.json has hidden_act "
            "quick_gelu, the architecture is one that ends with -quickgelu"
        )
    return found


def _by_timm(state: Mapping[str, Tensor], name: str, config: Mapping[str, Any], source: str) -> OpenClipWeights:
    """Have timm name the image tower's tensors; the text tower has open_clip's names, with or without `text.`."""
    found = OpenClipWeights()
    with torch.device("meta"):  # timm looks at shapes only
        trunk = build_clip(dict(config), name, 0).model.visual.trunk
    found.left = {old: "a table of RoPE, which follows from the architecture" for old in state if ".rope." in old}
    visual = {old: tensor for old, tensor in state.items() if old.startswith("visual.") and old not in found.left}
    # A file's tensors have memory of their own, by which those that timm gives back are known.
    origins = {tensor.untyped_storage().data_ptr(): old for old, tensor in visual.items()}
    try:
        converted = checkpoint_filter_fn(visual, trunk)
    except Exception as error:  # shapes that no image tower has can raise anything
        raise ValueError(f"{source}: timm can't read its image tower ({error}); get the file again") from None
    for inner, tensor in converted.items():
        new, old = f"visual.trunk.{inner}", origins.get(tensor.untyped_storage().data_ptr())
        if old is not None:
            found.renamed[old] = f"{found.renamed[old]}, {new}" if old in found.renamed else new
        elif inner == "head.bias":
            found.added[new] = "zeros: the file's projection has no bias"
        else:  # timm would stretch it
            raise ValueError(
                f"{source}: its {inner} is of another image size or patch size than that of {name}; give "
                "--model the architecture of that size"
            )
        found.own[new] = tensor
    for old, tensor in state.items():
        if old not in found.renamed and old not in found.left:
            in_text = old != "logit_scale" and OPEN_CLIP_TEXT.fullmatch(old)
            found.renamed[old] = f"text.{old}" if in_text else old
            found.own[found.renamed[old]] = tensor
    return found
