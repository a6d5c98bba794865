"""CLIP models through open_clip: a small one from the config, a named architecture, a file of weights, a CLIP folder.

All architectures of two encoders work that open_clip builds without the network, also SigLIP's and those with a timm
image tower; `config/architectures.py` says which. Nothing here uses the network.

Shapes: B samples, S image side, L context length, D embedding.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from safetensors.torch import save as save_tensors
from torch import Tensor

from regionclip_core.config.architectures import model_config, why_not_buildable
from regionclip_core.config.tree import ClipArchitecture, TeacherConfig
from regionclip_core.models.checkpoint_files import load_strictly, read_checkpoint, read_safetensors
from regionclip_core.models.official_keys import is_constant
from regionclip_core.models.resnet_encoder import pool_single_query
from regionclip_core.models.text_encoder import encode_tokens
from regionclip_core.models.tokenization import LocalTokenizer, clip_tokenizer, make_tokenizer
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.given_files import CLIP_LAYOUTS, clip_folder, clip_layout
from regionclip_core.storage.local_files import local_copy
from regionclip_core.storage.locations import is_remote

OPENAI_EXTRAS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Numbers that OpenAI's files have among the weights; they show that the model has QuickGELU."""
OPEN_CLIP_LAYOUT, OUR_LAYOUT = CLIP_LAYOUTS

Triple = tuple[float, float, float]
_TOWERS = ("embed_dim", "vision_cfg", "text_cfg")
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass
class ClipModel:
    """A CLIP model, with what is needed to prepare its inputs and to build it again."""

    model: CLIP | CustomTextCLIP
    tokenizer: Callable[[list[str]], Tensor]
    """Texts to ids [B, L] int64, padded; text that is too long is cut and keeps the end token."""
    image_size: int
    mean: Triple
    """Of RGB in 0..1, like `std`."""
    std: Triple
    name: str
    architecture: dict[str, Any]
    """open_clip's `model_cfg`: embed_dim, vision_cfg, text_cfg, quick_gelu, ..."""
    value_blocks: int = 0
    """Of the region encoder, see `VitEncoder`; part of the model, since its training was with them."""
    note: str = ""
    """What had to be assumed because the weights don't say it; empty if nothing."""

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
        """Return embeddings [B, D], not normalised, one batch."""
        return encode_tokens(self.model, self.tokenizer(list(texts)).to(self.device))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return embeddings [B, D], not normalised, of normalised images [B, 3, S, S]."""
        visual = self.model.visual
        if not isinstance(visual, ModifiedResNet):
            return self.model.encode_image(images)  # type: ignore[no-any-return]
        # As the tower's own forward, but with the cheaper attention pool.
        x = visual.stem(images)
        for stage in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = stage(x)
        return pool_single_query(visual.attnpool, x)


# ---------------------------------------------------------------- building


def small_architecture(config: ClipArchitecture) -> dict[str, Any]:
    """Return open_clip's `model_cfg` of the config's small CLIP: heads of 64 channels in the attention pool."""
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
            "vocab_size": clip_tokenizer().vocab_size,
            "width": config.text_width,
            "heads": config.text_heads,
            "layers": config.text_layers,
        },
    }


def named_architecture(name: str) -> dict[str, Any]:
    """Return open_clip's `model_cfg` of a built-in architecture; ValueError unless a ClipModel can be made of it."""
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
    value_blocks: int = 0,
) -> ClipModel:
    """Build a CLIP of open_clip's modules with random weights drawn from `seed`; global generators are left alone.

    Args:
        mean: of the pixels, like `std`; None takes what the architecture's published weights have.
        tokenizer_folder: has the files of a Hugging Face tokenizer, if the architecture needs one.

    Raises:
        ValueError: if the architecture can't be built.
    """
    architecture = json.loads(json.dumps(architecture))  # own copy, in JSON's types
    if reason := why_not_buildable(architecture):
        raise ValueError(f"{name} can't be built: {reason}")
    vision = {**architecture["vision_cfg"], "timm_model_pretrained": False}  # timm would ask the network
    switches = {key: architecture[key] for key in architecture.keys() - {*_TOWERS, "custom_text"}}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which would touch accelerators too
        try:
            model = (CustomTextCLIP if architecture.get("custom_text") else CLIP)(
                embed_dim=architecture["embed_dim"],
                vision_cfg=CLIPVisionCfg(**vision),
                text_cfg=CLIPTextCfg(**architecture["text_cfg"]),
                **switches,
            )
        except (TypeError, ValueError, LookupError, ArithmeticError, AssertionError, RuntimeError) as error:
            why = f"{error or type(error).__name__}; give the description that open_clip wrote"
            raise ValueError(f"{name} can't be built from {architecture}: {why}") from None
    usual_mean, usual_std = usual_normalisation(name)
    (r, g, b), (r_std, g_std, b_std) = mean or usual_mean, std or usual_std
    return ClipModel(
        model=model.eval(),
        tokenizer=make_tokenizer(architecture["text_cfg"], tokenizer_folder),
        image_size=architecture["vision_cfg"].get("image_size", 224),
        mean=(float(r), float(g), float(b)),
        std=(float(r_std), float(g_std), float(b_std)),
        name=name,
        architecture=architecture,
        value_blocks=value_blocks,
    )


def lean_clip(architecture: Mapping[str, Any], name: str, value_blocks: int = 0) -> ClipModel:
    """Build a CLIP with the smallest possible text tower, where only the image tower is used, as in a detector."""
    text = {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1}
    return build_clip({**architecture, "text_cfg": text}, name, seed=0, value_blocks=value_blocks)


def usual_normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Return the mean and deviation of pixels that an architecture's published weights share; CLIP's if they differ."""
    usual = _published_normalisations(name)
    return usual.pop() if len(usual) == 1 else (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def normalisation_note(name: str, place: str) -> str:
    """Say that a bare file of weights leaves the mean and deviation of pixels open, and how to set them in `place`.

    Empty where all published weights of the architecture agree.
    """
    known = len(_published_normalisations(name))
    if known == 1:
        return ""
    others = f"published weights of {name} differ in them" if known else f"no published weights of {name} are known"
    return (
        f"the file doesn't say the mean and deviation of its pixels, and {others}: CLIP's are taken; if it was made "
        f"with others, set preprocess_cfg in {OPEN_CLIP_LAYOUT[0]} of {place}"
    )


def _published_normalisations(name: str) -> set[tuple[tuple[float, ...], tuple[float, ...]]]:
    tags = [open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)]
    return {(tuple(tag["mean"]), tuple(tag["std"])) for tag in tags}


# ---------------------------------------------------------------- weights that the config names


def create_clip(teacher: TeacherConfig, seed: int) -> ClipModel:
    """Return the CLIP model that the teacher section asks for, in float32, on the CPU, in evaluation mode.

    `weights`: `train` and `random` give seeded random weights (the same on every call); a path gives a file's weights,
    or the model in a CLIP folder, or `teacher/` in the folder of an imported pretraining file; anything else is an
    open_clip pretrained tag, which must be in the local cache. The activation follows the weights: OpenAI's need
    QuickGELU and get it, also under an architecture's name without "-quickgelu". A bare file doesn't say the mean and
    deviation of its pixels: where they don't follow from the architecture either, CLIP's are taken and `note` says so.

    Raises:
        ValueError: for unknown or unsupported names, and for weights that don't fit.
        FileNotFoundError: for a tag that is not in the cache.
    """
    small = teacher.model == "small"
    architecture = small_architecture(teacher.architecture) if small else named_architecture(teacher.model)
    value_blocks = teacher.value_blocks or 0
    if teacher.weights in ("train", "random"):
        return build_clip(architecture, teacher.model, seed, value_blocks=value_blocks)
    folder = clip_folder(teacher.weights, "teacher")
    if clip_layout(folder):
        clip = load_clip(folder)
        # All but the activation, which follows the weights, must be as the config says: other stages rely on it.
        if {**clip.architecture, "quick_gelu": 0} != {**architecture, "quick_gelu": 0}:
            raise ValueError(
                f"teacher.weights: {folder.url} holds the model {clip.name}, of another architecture than "
                f"teacher.model: {teacher.model}; set teacher.model: {clip.name}"
                + (", and teacher.architecture as where it comes from" if clip.name == "small" else "")
            )
        if teacher.value_blocks is not None:
            clip.value_blocks = teacher.value_blocks
        return clip
    if Path(teacher.weights).is_dir():
        has = "only a student/" if Folder(teacher.weights).exists("student") else "no CLIP model"
        raise ValueError(
            f"teacher.weights: {teacher.weights} holds {has}; expected a CLIP folder, or one from `regionclip import` "
            "with a teacher/ in it"
        )
    where = teacher.weights if is_remote(teacher.weights) else str(find_weights(teacher.model, teacher.weights))
    tag = pretrained_config(teacher.model, teacher.weights)
    with local_copy(where) as path:
        checkpoint = read_checkpoint(path)
    if checkpoint.layout == "torch" and checkpoint.others.keys() - OPENAI_EXTRAS:
        raise ValueError(
            f"{where} holds more than tensors, {sorted(checkpoint.others)[:5]}: give a file that holds the model's "
            "state dict alone"
        )
    state = {n: t for n, t in checkpoint.tensors.items() if n not in OPENAI_EXTRAS and not is_constant(n)}
    from_openai = bool(OPENAI_EXTRAS & (checkpoint.tensors.keys() | checkpoint.others.keys()))
    if tag:
        architecture["quick_gelu"] = bool(tag.get("quick_gelu", False))
    elif from_openai:
        architecture["quick_gelu"] = True
    beside = Folder(posixpath.dirname(where) or ".")
    clip = build_clip(architecture, teacher.model, seed, tag.get("mean"), tag.get("std"), beside, value_blocks)
    _load_weights(clip, state, where)
    if not (small or tag or from_openai):  # small models are made here, and tags and OpenAI's files are known
        clip.note = normalisation_note(teacher.model, "the folder that `regionclip import` makes of the file")
    return clip


def pretrained_config(model: str, tag: str) -> dict[str, Any]:
    """Return open_clip's entry of a pretrained tag (url, hf_hub, mean, std, quick_gelu); empty if there is none."""
    names = (model.removesuffix("-quickgelu"), model)
    return next((dict(found) for name in names if (found := open_clip.get_pretrained_cfg(name, tag))), {})


def find_weights(model: str, weights: str) -> Path:
    """Return the file behind `teacher.weights`: a path, or a tag whose file is already in a local cache.

    Raises:
        ValueError: for what is neither a file nor a tag of this model.
        FileNotFoundError: for a tag whose weights are not on this machine, saying how to fetch them.
    """
    if Path(weights).is_file():
        return Path(weights)
    config = pretrained_config(model, weights)
    if not config:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ValueError(
            f"teacher.weights: {weights!r} is neither a file nor a CLIP folder, `train`, `random` or a pretrained tag "
            f"of {model}" + (f", which has {tags}" if tags else "")
        )
    # An entry names a repository, `org/model/`, or a file in one, `org/model/file`.
    repository, file_name = os.path.split(config.get("hf_hub", ""))
    names = (str(Path(file_name).with_suffix(".safetensors")), file_name) if file_name else _HUB_FILES
    for name in names if repository else ():
        if isinstance(cached := try_to_load_from_cache(repository, name), str):
            return Path(cached)
    # OpenAI's own package and older open_clips kept downloads by URL; a part of the URL or name is the checksum.
    url = config.get("url", "")
    path = Path("~/.cache/clip").expanduser() / Path(url).name
    if url and path.is_file():
        expected = url.split("/")[-2] if "openaipublic" in url else ""
        expected = path.stem.split("-")[-1] if "mlfoundations" in url else expected
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest().startswith(expected):
                return path
    raise FileNotFoundError(
        f"teacher.weights: the {weights!r} weights of {model} are not on this machine, and a run downloads nothing. "
        f"Fetch them once with\n  python -c \"import open_clip; open_clip.create_model('{model}', "
        f"pretrained='{weights}')\"\nor give the path of a checkpoint file"
    )


def _load_weights(clip: ClipModel, state: dict[str, Tensor], source: str) -> None:
    own = clip.model.state_dict()
    for key in {"logit_scale", "logit_bias"} & state.keys() & own.keys():
        state[key] = state[key].reshape(own[key].shape)  # a vector of one in some files
    advice = f"Set teacher.model ({clip.name} here) to the architecture that the file was made with"
    load_strictly(clip.model, state, source, advice)


# ---------------------------------------------------------------- folders


def save_clip(clip: ClipModel, folder: Folder, layout: tuple[str, str] = OUR_LAYOUT) -> None:
    """Write all weights (open_clip's names) and a description (open_clip's config layout) into a CLIP folder.

    A Hugging Face tokenizer's files go beside them; FileNotFoundError, with nothing written, if they are not found.

    Args:
        layout: names of description and weights; OPEN_CLIP_LAYOUT is what open_clip itself opens, by `local-dir:`.
    """
    tokenizer_files = clip.tokenizer.files if isinstance(clip.tokenizer, LocalTokenizer) else {}
    state = {key: value.detach().cpu().contiguous() for key, value in clip.model.state_dict().items()}
    description, weights = layout
    folder.write_bytes(weights, save_tensors(state))
    preprocess = {"size": clip.image_size, "mean": list(clip.mean), "std": list(clip.std)}
    config: dict[str, Any] = {"name": clip.name, "model_cfg": clip.architecture, "preprocess_cfg": preprocess}
    if clip.value_blocks:
        config["value_blocks"] = clip.value_blocks
    folder.write_json(description, config)
    for file_name, content in tokenizer_files.items():
        folder.write_bytes(file_name, content)


def load_clip(folder: Folder) -> ClipModel:
    """Load the model in a CLIP folder, of either layout, on the CPU, in float32 and evaluation mode.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if weights and description don't fit each other.
    """
    names = clip_layout(folder)
    if not names:
        expected = " or ".join(description for description, _ in CLIP_LAYOUTS)
        raise FileNotFoundError(f"{folder.url} holds no CLIP model: expected {expected} in it")
    config = folder.read_json(names[0])
    preprocess = config.get("preprocess_cfg", {})
    name = config.get("name", folder.url.rsplit("/", 1)[-1])  # open_clip's own descriptions have no name
    mean, std = preprocess.get("mean"), preprocess.get("std")
    clip = build_clip(config.get("model_cfg", {}), name, 0, mean, std, folder, config.get("value_blocks", 0))
    _load_weights(clip, read_safetensors(folder, names[1]), folder.path(names[1]))
    return clip
