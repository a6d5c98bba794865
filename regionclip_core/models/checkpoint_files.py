"""Tensors by name out of any file of weights, without running anything that is in it.

.safetensors; torch files, new (zip) and old (pickle), read with `weights_only`; TorchScript archives, by
`torchscript_files`. The content decides, not the name. Everything that can be wrong with a file is a ValueError or
FileNotFoundError in plain words.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from regionclip_core.models.torchscript_files import read_torchscript

BARE_TENSOR = "<tensor>"
"""The name under which a file that is one single tensor comes."""
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")
_HEAD = 512


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """By the file's own names, `module.` prefixes taken off; on the CPU, in the file's dtypes."""
    others: dict[str, Any]
    """What stands among the tensors and is none."""
    beside: tuple[str, ...]
    """Names of what the file holds beside the model, such as an optimiser's state: never looked into."""
    layout: Literal["safetensors", "torch", "torchscript"]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights.

    Raises FileNotFoundError if it is not there, ValueError (with what the file is instead) if it is damaged, cut
    short, a web page, a pickle that would run code, or holds no tensors by name.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected one file of weights")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected a file of weights (.pth, .pt, .safetensors)")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    if head[8:9] == b"{":
        return Checkpoint(*_named(_read_safetensors(path), path), layout="safetensors")
    if head[:2] == b"PK":
        names = _zip_names(path)
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            return Checkpoint(*_named(read_torchscript(path), path), layout="torchscript")
        if not any(name.endswith("data.pkl") for name in names):
            raise ValueError(f"{path} is a zip archive without weights in it (it holds {names[:3]}); unpack it first")
    elif head[:1] != b"\x80":
        raise ValueError(f"{path} is no file of weights: {_guess(head)}")
    return Checkpoint(*_named(_read_torch(path), path), layout="torch")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged or cut-short .safetensors file ({error}); download it again") from None


def _zip_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile as error:
        # The table of contents of a zip stands at its end, so a download that broke off has none.
        raise ValueError(f"{path} is cut short or damaged ({error}); download or copy it again") from None


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storage types, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(_refused(path, str(error))) from None
    except Exception as error:  # where a file broke off decides what reading it ends in
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path} is cut short or damaged ({first}); download or copy it again") from None


def _refused(path: Path, error: str) -> str:
    called = re.search(r"(?:GLOBAL|global|type|function|class)\s+`?([A-Za-z_][\w.]*\.\w+)", error)
    if called is None:
        return f"{path} is cut short, damaged, or no file of tensors ({error.strip().splitlines()[0]}); get it again"
    return (
        f"{path} is a pickle that names {called[1]}: reading it would run code from the file, which this project never "
        "does. Take a file that holds tensors alone: .safetensors, or torch.save of a state_dict"
    )


def _guess(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as a download link gives that asks for a click or a login; download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; run `git lfs pull` to get the file itself"
    if text.startswith((b"{", b"[")):
        return "it looks like JSON"
    return f"it starts with {head[:8]!r}; expected a torch file or .safetensors"


def _named(content: Any, path: Path) -> tuple[dict[str, Tensor], dict[str, Any], tuple[str, ...]]:
    """(tensors, others, beside) of what a file holds, whichever way it is wrapped."""
    if isinstance(content, Tensor):
        return {BARE_TENSOR: content}, {}, ()
    beside: tuple[str, ...] = ()
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                beside = tuple(str(key) for key in content if key != wrapper)
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds no state dict (tensors by name) but a {type(content).__name__}")
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no state dict: not one tensor by name, only {[str(k) for k in content][:5]}")
    others = {str(key): value for key, value in content.items() if str(key) not in tensors}
    if all(name.startswith("module.") for name in tensors):  # saved from a data-parallel wrapper
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors, others, beside


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a file of weights; raises as `read_checkpoint`."""
    return read_checkpoint(path).tensors
