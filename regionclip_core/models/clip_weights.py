"""Where CLIP weights come from: a file, or open_clip's and huggingface_hub's local caches. Never the network."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import open_clip
from torch import Tensor

from regionclip_core.models.checkpoint_files import read_checkpoint
from regionclip_core.models.official_keys import is_constant

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
OPENAI_EXTRAS = frozenset({"input_resolution", "context_length", "vocab_size"})
"""Numbers that OpenAI's files have among the weights; they tell that the model has QuickGELU."""


def pretrained_config(model: str, tag: str) -> dict[str, Any]:
    """open_clip's entry of a pretrained tag (url, hf_hub, mean, std, quick_gelu); empty if there is none."""
    return dict(open_clip.get_pretrained_cfg(model.removesuffix("-quickgelu"), tag)) or dict(
        open_clip.get_pretrained_cfg(model, tag)
    )


def find_weights(model: str, weights: str) -> Path:
    """The file behind `teacher.weights`: a path, or a tag whose file is already in a local cache.

    Raises ValueError for what is neither a file nor a tag of this model, FileNotFoundError for a tag whose weights
    are not on this machine, saying how to fetch them.
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
    found = _in_hub_cache(config.get("hf_hub", "")) or _in_url_cache(config.get("url", ""))
    if found is None:
        raise FileNotFoundError(
            f"teacher.weights: the {weights!r} weights of {model} are not on this machine, and a run downloads "
            f"nothing. Fetch them once with\n  python -c \"import open_clip; open_clip.create_model('{model}', "
            f"pretrained='{weights}')\"\nor give the path of a checkpoint file"
        )
    return found


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], bool]:
    """Tensors by open_clip's names, and whether the file is in OpenAI's own layout (so that it needs QuickGELU).

    Reads whatever `read_checkpoint` does, OpenAI's TorchScript archives too; raises as it does, and ValueError for a
    state dict that holds more than tensors.
    """
    checkpoint = read_checkpoint(path)
    if checkpoint.layout == "torch" and checkpoint.others.keys() - OPENAI_EXTRAS:
        raise ValueError(
            f"{path} holds more than tensors, {sorted(checkpoint.others)[:5]}: give a file with the model's state dict "
            "alone"
        )
    tensors = {n: t for n, t in checkpoint.tensors.items() if n not in OPENAI_EXTRAS and not is_constant(n)}
    from_openai = bool(OPENAI_EXTRAS & (checkpoint.tensors.keys() | checkpoint.others.keys()))
    if "logit_scale" in tensors:
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())  # some open_clip versions stored [1]
    return tensors, from_openai


def _in_hub_cache(hf_hub: str) -> Path | None:
    """A pretrained entry 'org/model/' or 'org/model/file' to the newest cached file, without asking the network."""
    if not hf_hub:
        return None
    from huggingface_hub import try_to_load_from_cache

    repository, file_name = os.path.split(hf_hub)
    names = _HUB_FILES if not file_name else (str(Path(file_name).with_suffix(".safetensors")), file_name)
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    return None


def _in_url_cache(url: str) -> Path | None:
    """The file that open_clip's own downloader would have left, if its checksum holds."""
    if not url:
        return None
    path = Path("~/.cache/clip").expanduser() / Path(url).name
    if not path.is_file():
        return None
    if "openaipublic" in url:
        expected = url.split("/")[-2]
    elif "mlfoundations" in url:
        expected = path.stem.split("-")[-1]
    else:
        expected = ""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    return path if actual.startswith(expected) else None
