"""Where CLIP weights come from: a file, or open_clip's and huggingface_hub's local caches. Never the network."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


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
            f"teacher.weights: {weights!r} is neither a file, `train`, `random` nor a pretrained tag of {model}"
            + (f", which has {tags}" if tags else "")
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
    """Tensors by open_clip's names, and whether the file is a state dict in OpenAI's own layout.

    Reads .safetensors, and torch files that hold nothing but tensors and containers. TorchScript archives (OpenAI's
    original downloads) are programs and are refused with ValueError.
    """
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(str(path))
    else:
        if _is_torchscript(path):
            raise ValueError(
                f"{path} is a TorchScript archive, a program, which is not loaded. Use the tensors instead: "
                "weights: openai (after fetching it once through open_clip), or save its state_dict() as .safetensors"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path} holds no state dict (tensors by name)")
    state = {key.removeprefix("module."): value for key, value in state.items()}
    openai_extras = {"input_resolution", "context_length", "vocab_size"} & state.keys()
    tensors = {key: value for key, value in state.items() if key not in openai_extras}
    if not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} holds more than tensors: give a file with the model's state dict alone")
    if "logit_scale" in tensors:
        tensors["logit_scale"] = tensors["logit_scale"].reshape(())  # some open_clip versions stored [1]
    return tensors, bool(openai_extras)


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


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
