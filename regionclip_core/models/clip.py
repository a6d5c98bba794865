"""CLIP models through open_clip: a small one from the config, a named architecture, a file of weights.

Any architecture of two encoders that open_clip builds without the network will do, SigLIP's and those with a timm
image tower included; `config/architectures.py` tells which.

Shapes: B samples, S image side, L context length, D embedding.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from regionclip_core.config.architectures import model_config, why_not_buildable
from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.models.clip_weights import find_weights, pretrained_config, read_state_dict
from regionclip_core.models.tokenization import LocalTokenizer, make_tokenizer
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS, clip_folder
from regionclip_core.storage.local_files import local_copy
from regionclip_core.storage.locations import is_remote

Triple = tuple[float, float, float]
_TOWERS = ("embed_dim", "vision_cfg", "text_cfg")


@dataclass
class ClipModel:
    """A CLIP model with all that is needed to feed it and to build it again."""

    model: CLIP | CustomTextCLIP
    tokenizer: Callable[[list[str]], Tensor]
    """Texts to ids [B, L] int64, padded; text that is too long is cut and keeps the end token."""
    image_size: int
    mean: Triple
    """Of RGB in 0..1."""
    std: Triple
    name: str
    architecture: dict[str, Any]
    """open_clip's `model_cfg`: embed_dim, vision_cfg, text_cfg, quick_gelu, ..."""
    note: str = ""
    """What had to be assumed because the weights don't tell it; empty: nothing."""

    @property
    def logit_scale(self) -> float:
        """The learned inverse temperature, exp(logit_scale); CLIP's own ceiling is 100, SigLIP has none.

        SigLIP gives every pair of image and text a probability of its own, sigmoid(scale * cosine + bias). A softmax
        of scale * cosine over names is then the probability of each name given that exactly one of them fits: the
        odds of "this one and no other" are exp(scale * cosine + bias), and the bias, the same for all, cancels.
        """
        scale = float(self.model.logit_scale.detach().float().exp().item())
        return scale if self.model.logit_bias is not None else min(100.0, scale)

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
    alone); a path gives a file's weights, or the model in a CLIP folder, or `teacher/` in the folder of an imported
    pretraining file; anything else is an open_clip pretrained tag, which must already be in the local cache: nothing
    is downloaded. Activations follow the weights: OpenAI's need QuickGELU and get it, whatever
    the architecture's name. A bare file doesn't tell the mean and deviation of its pixels: where they don't follow
    from the architecture either, CLIP's are taken and `note` says so. Raises ValueError for unknown or unsupported
    names and weights that do not fit, FileNotFoundError for a tag that is not in the cache.
    """
    small = teacher.model == "small"
    architecture = small_architecture(teacher.architecture) if small else named_architecture(teacher.model)
    if teacher.weights in ("train", "random"):
        return build_clip(architecture, teacher.model, seed)
    if (found := _find_folder(teacher.weights)) is not None:
        return _require(load_clip(found), architecture, teacher.model, found)
    where = teacher.weights if is_remote(teacher.weights) else str(find_weights(teacher.model, teacher.weights))
    tag = pretrained_config(teacher.model, teacher.weights)
    with local_copy(where) as path:
        state, from_openai = read_state_dict(path)
    if tag:
        architecture["quick_gelu"] = bool(tag.get("quick_gelu", False))
    elif from_openai:
        architecture["quick_gelu"] = True
    beside = Folder(posixpath.dirname(where) or ".")
    clip = build_clip(architecture, teacher.model, seed, tag.get("mean"), tag.get("std"), beside)
    _load_weights(clip, state, where)
    if not (small or tag or from_openai):  # small models are made here, and tags and OpenAI's files are known
        clip.note = normalisation_note(teacher.model, "the folder that `regionclip import` makes of the file")
    return clip


def _find_folder(weights: str) -> Folder | None:
    """The CLIP folder that `teacher.weights` names; None if it names none, ValueError for a folder without a model."""
    folder = clip_folder(weights, "teacher")
    if any(folder.exists(description) for description, _ in CLIP_LAYOUTS):
        return folder
    if Path(weights).is_dir():
        has = "only a student/" if Folder(weights).exists("student") else "no CLIP model"
        raise ValueError(
            f"teacher.weights: {weights} holds {has}; expected a CLIP folder, or one from `regionclip import` with a "
            "teacher/ in it"
        )
    return None


def _require(clip: ClipModel, wanted: dict[str, Any], model: str, folder: Folder) -> ClipModel:
    """`clip`, if its architecture is the wanted one but for the activation, which follows the weights."""
    if {**clip.architecture, "quick_gelu": 0} != {**wanted, "quick_gelu": 0}:
        raise ValueError(
            f"teacher.weights: {folder.url} holds the model {clip.name}, of another architecture than teacher.model: "
            f"{model}; set teacher.model: {clip.name}"
            + (", and teacher.architecture as where it comes from" if clip.name == "small" else "")
        )
    return clip


def small_architecture(config: ClipArchitecture) -> dict[str, Any]:
    """open_clip's `model_cfg` of the config's small CLIP: heads of 64 channels in the attention pool."""
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
    """open_clip's `model_cfg` of a built-in architecture; ValueError unless a ClipModel can be made of it."""
    config = model_config(name)
    if reason := why_not_buildable(config):
        raise ValueError(f"teacher.model: {name} can't be used: {reason}")
    return config


def build_clip(
    architecture: dict[str, Any],
    name: str,
    seed: int,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tokenizer_folder: Folder | None = None,
) -> ClipModel:
    """A CLIP of open_clip's modules with random weights drawn from `seed`, leaving the global generators alone.

    `mean`, `std`: of the pixels; None takes what the architecture's published weights have. `tokenizer_folder`: where
    the files of a Hugging Face tokenizer lie, if the architecture has one. ValueError for what can't be built.
    """
    architecture = json.loads(json.dumps(architecture))  # own copy, in JSON's types
    if reason := why_not_buildable(architecture):
        raise ValueError(f"{name} can't be built: {reason}")
    vision = {**architecture["vision_cfg"], "timm_model_pretrained": False}  # timm would ask the network
    switches = {key: architecture[key] for key in architecture.keys() - {*_TOWERS, "custom_text"}}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would touch accelerators too
        model = (CustomTextCLIP if architecture.get("custom_text") else CLIP)(
            embed_dim=architecture["embed_dim"],
            vision_cfg=CLIPVisionCfg(**vision),
            text_cfg=CLIPTextCfg(**architecture["text_cfg"]),
            **switches,
        )
    usual_mean, usual_std = usual_normalisation(name)
    return ClipModel(
        model=model.eval(),
        tokenizer=make_tokenizer(architecture["text_cfg"], tokenizer_folder),
        image_size=architecture["vision_cfg"].get("image_size", 224),
        mean=_triple(mean or usual_mean),
        std=_triple(std or usual_std),
        name=name,
        architecture=architecture,
    )


def usual_normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation of pixels that all published weights of an architecture share; CLIP's where they differ."""
    usual = published_normalisations(name)
    return usual.pop() if len(usual) == 1 else (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def published_normalisations(name: str) -> set[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Each mean and deviation of pixels that some published weights of an architecture have."""
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    return {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}


def normalisation_note(name: str, place: str) -> str:
    """Says that a bare file of an architecture's weights leaves the mean and deviation of pixels open, and how to set
    them in the CLIP folder `place`; empty where all published weights agree.
    """
    known = len(published_normalisations(name))
    if known == 1:
        return ""
    others = f"published weights of {name} differ in them" if known else f"no published weights of {name} are known"
    return (
        f"the file doesn't tell the mean and deviation of its pixels, and {others}: CLIP's are taken; if it was made "
        f"with others, set preprocess_cfg in {CLIP_LAYOUTS[0][0]} of {place}"
    )


def lean_clip(architecture: Mapping[str, Any], name: str) -> ClipModel:
    """A CLIP whose text tower is as small as can be, for what only needs the eyes: a detector has no text encoder."""
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    return build_clip({**architecture, "text_cfg": text}, name, seed=0)


def save_clip(clip: ClipModel, folder: Folder, stem: str = "clip", layout: tuple[str, str] | None = None) -> None:
    """Write `<stem>.safetensors` (all weights, open_clip's names) and `<stem>.json` (open_clip's config layout).

    A Hugging Face tokenizer's files go beside them. FileNotFoundError, with nothing written, if it is not here.

    `layout`: other names of description and weights; with CLIP_LAYOUTS[0] open_clip opens the folder itself, by
    `local-dir:`.
    """
    from safetensors.torch import save

    tokenizer_files = clip.tokenizer.files if isinstance(clip.tokenizer, LocalTokenizer) else {}
    state = {key: value.detach().cpu().contiguous() for key, value in clip.model.state_dict().items()}
    description, weights = layout or (f"{stem}.json", f"{stem}.safetensors")
    folder.write_bytes(weights, save(state))
    preprocess = {"size": clip.image_size, "mean": list(clip.mean), "std": list(clip.std)}
    config = {"name": clip.name, "model_cfg": clip.architecture, "preprocess_cfg": preprocess}
    folder.write_json(description, config)
    for file_name, content in tokenizer_files.items():
        folder.write_bytes(file_name, content)


def load_clip(folder: Folder, stem: str = "clip") -> ClipModel:
    """The model in a CLIP folder, on the CPU, in float32 and evaluation mode.

    Reads what `save_clip` wrote, else open_clip's own layout (open_clip_config.json and open_clip_model.safetensors).
    FileNotFoundError if there is neither, ValueError if weights and description don't fit each other.
    """
    from safetensors.torch import load

    layouts = [(f"{stem}.json", f"{stem}.safetensors"), CLIP_LAYOUTS[0]]
    names = next((names for names in layouts if folder.exists(names[0])), None)
    if names is None:
        raise FileNotFoundError(f"{folder.url} holds no CLIP model: expected {layouts[0][0]} or {layouts[1][0]} in it")
    config = folder.read_json(names[0])
    preprocess = config.get("preprocess_cfg", {})
    name = config.get("name", folder.url.rsplit("/", 1)[-1])  # open_clip's own descriptions have no name
    clip = build_clip(config["model_cfg"], name, 0, preprocess.get("mean"), preprocess.get("std"), folder)
    _load_weights(clip, load(folder.read_bytes(names[1])), folder.path(names[1]))
    return clip


def _load_weights(clip: ClipModel, state: dict[str, Tensor], source: str) -> None:
    own = clip.model.state_dict()
    for key in {"logit_scale", "logit_bias"} & state.keys() & own.keys():
        state[key] = state[key].reshape(own[key].shape)  # a vector of one in some files
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
