"""CLIP models through open_clip: a small one from the config, a named architecture, a file of weights.

Shapes: B samples, S image side, L context length, D embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from regionclip_core.clip_weights import find_weights, pretrained_config, read_state_dict
from regionclip_core.config import ClipArchitecture, TeacherConfig

if TYPE_CHECKING:
    from regionclip_core.artifacts import Folder

Triple = tuple[float, float, float]


@dataclass
class ClipModel:
    """A CLIP model with all that is needed to feed it and to build it again."""

    model: CLIP
    tokenizer: Callable[[list[str]], Tensor]
    """Texts to ids [B, L] int64, zero padded; text that is too long is cut and keeps the end token."""
    image_size: int
    mean: Triple
    """Of RGB in 0..1."""
    std: Triple
    name: str
    architecture: dict[str, Any]
    """open_clip's `model_cfg`: embed_dim, vision_cfg, text_cfg, quick_gelu."""

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature, exp(logit_scale), at most CLIP's own ceiling of 100."""
        return min(100.0, float(self.model.logit_scale.detach().float().exp().item()))

    @property
    def embed_dim(self) -> int:
        """D."""
        return int(self.architecture["embed_dim"])

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        device: torch.device = self.model.logit_scale.device
        return device

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, D], not normalised, one batch."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device))  # type: ignore[no-any-return]

    def encode_images(self, images: Tensor) -> Tensor:
        """Embeddings [B, D], not normalised, of normalised images [B, 3, S, S]."""
        return self.model.encode_image(images)  # type: ignore[no-any-return]


def create_clip(teacher: TeacherConfig, seed: int) -> ClipModel:
    """The CLIP model that the teacher section asks for, in float32, on the CPU, in evaluation mode.

    `weights`: `train` and `random` give seeded random weights (the same on every call, the global generators are left
    alone); a path gives a file's weights; anything else is an open_clip pretrained tag, which must already be in the
    local cache: nothing is downloaded. Activations follow the weights: OpenAI's need QuickGELU and get it, whatever
    the architecture's name. Raises ValueError for unknown or unsupported names and weights that do not fit,
    FileNotFoundError for a tag that is not in the cache.
    """
    small = teacher.model == "small"
    architecture = small_architecture(teacher.architecture) if small else named_architecture(teacher.model)
    if teacher.weights in ("train", "random"):
        return build_clip(architecture, teacher.model, seed)
    path = find_weights(teacher.model, teacher.weights)
    tag = pretrained_config(teacher.model, teacher.weights)
    state, from_openai = read_state_dict(path)
    if tag:
        architecture["quick_gelu"] = bool(tag.get("quick_gelu", False))
    elif from_openai:
        architecture["quick_gelu"] = True
    clip = build_clip(architecture, teacher.model, seed, mean=tag.get("mean"), std=tag.get("std"))
    _load_weights(clip, state, str(path))
    return clip


def small_architecture(config: ClipArchitecture) -> dict[str, Any]:
    """open_clip's `model_cfg` of the config's small CLIP: heads of 64 channels in the attention pool."""
    if config.image_size % 32 or config.image_size < 32:
        raise ValueError(f"teacher.architecture.image_size must be a multiple of 32, got {config.image_size}")
    if config.text_width % config.text_heads:
        raise ValueError(
            f"teacher.architecture.text_width {config.text_width} is not divisible by text_heads {config.text_heads}"
        )
    if config.vision_width % 2:
        raise ValueError(f"teacher.architecture.vision_width must be even, got {config.vision_width}")
    return {
        "embed_dim": config.embed_dim,
        "quick_gelu": config.quick_gelu,
        "vision_cfg": {
            "image_size": config.image_size,
            "layers": list(config.vision_layers),
            "width": config.vision_width,
            "head_width": 64,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": SimpleTokenizer().vocab_size,
            "width": config.text_width,
            "heads": config.text_heads,
            "layers": config.text_layers,
        },
    }


def named_architecture(name: str) -> dict[str, Any]:
    """open_clip's `model_cfg` of a built-in architecture; ValueError unless it is a plain CLIP with CLIP's BPE."""
    known = set(open_clip.list_models())
    if name not in known:
        close = sorted(m for m in known if m.split("-")[0] == name.split("-")[0]) or ["RN50", "RN50x4", "ViT-B-32"]
        raise ValueError(f"teacher.model: {name!r} is neither `small` nor an open_clip architecture such as {close}")
    config: dict[str, Any] = open_clip.get_model_config(name)
    text_only = {"hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs"} & set(config["text_cfg"])
    if set(config) - {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"} or text_only:
        raise ValueError(
            f"teacher.model: {name} is not a plain CLIP with CLIP's own tokenizer, which is all that is supported; "
            "take an RN or a ViT architecture without a custom text tower"
        )
    return config


def build_clip(
    architecture: dict[str, Any],
    name: str,
    seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ClipModel:
    """A CLIP of open_clip's modules with random weights drawn from `seed`, leaving the global generators alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would touch accelerators too
        model = CLIP(
            embed_dim=architecture["embed_dim"],
            vision_cfg=CLIPVisionCfg(**architecture["vision_cfg"]),
            text_cfg=CLIPTextCfg(**architecture["text_cfg"]),
            quick_gelu=bool(architecture.get("quick_gelu", False)),
        )
    size = architecture["vision_cfg"]["image_size"]
    if not isinstance(size, int):
        raise ValueError(f"{name} takes images of {size}: only square inputs are supported")
    return ClipModel(
        model=model.eval(),
        tokenizer=SimpleTokenizer(context_length=architecture["text_cfg"]["context_length"]),
        image_size=size,
        mean=_triple(mean or open_clip.OPENAI_DATASET_MEAN),
        std=_triple(std or open_clip.OPENAI_DATASET_STD),
        name=name,
        architecture=json.loads(json.dumps(architecture)),  # own copy, in JSON's types
    )


def save_clip(clip: ClipModel, folder: Folder, stem: str = "clip") -> None:
    """Write `<stem>.safetensors` (all weights, open_clip's names) and `<stem>.json` (open_clip's config layout).

    Renamed to open_clip_model.safetensors and open_clip_config.json they are a folder that open_clip opens itself
    with `local-dir:`.
    """
    from safetensors.torch import save

    state = {key: value.detach().cpu().contiguous() for key, value in clip.model.state_dict().items()}
    folder.write_bytes(f"{stem}.safetensors", save(state))
    preprocess = {"size": clip.image_size, "mean": list(clip.mean), "std": list(clip.std)}
    config = {"name": clip.name, "model_cfg": clip.architecture, "preprocess_cfg": preprocess}
    folder.write_json(f"{stem}.json", config)


def load_clip(folder: Folder, stem: str = "clip") -> ClipModel:
    """What `save_clip` wrote, on the CPU, in evaluation mode."""
    from safetensors.torch import load

    config = folder.read_json(f"{stem}.json")
    preprocess = config["preprocess_cfg"]
    clip = build_clip(config["model_cfg"], config["name"], 0, mean=preprocess["mean"], std=preprocess["std"])
    _load_weights(clip, load(folder.read_bytes(f"{stem}.safetensors")), f"{folder.url}/{stem}.safetensors")
    return clip


def _load_weights(clip: ClipModel, state: dict[str, Tensor], source: str) -> None:
    own = clip.model.state_dict()
    # Frozen batch norms are often stored without their counter, which nothing reads.
    state = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")} | state
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if state[key].shape != own[key].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit {clip.name}: {len(missing)} weights missing {missing[:3]}, {len(unexpected)} "
            f"unknown {unexpected[:3]}, {len(shapes)} of another shape {shapes[:3]}. Set teacher.model to the "
            "architecture that the file was made with"
        )
    clip.model.load_state_dict(state)


def _triple(values: Sequence[float]) -> Triple:
    first, second, third = (float(value) for value in values)
    return first, second, third
