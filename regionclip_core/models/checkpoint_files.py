"""Tensors by name from any file of weights, without running anything that is in it; whether they fit a module.

Reads .safetensors, torch files, new (zip) and old (pickle), with `weights_only`, and TorchScript archives, by
`torchscript_files`. The content of a file decides which it is, not its name.
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
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from torch import Tensor, nn

from regionclip_core.models.torchscript_files import read_torchscript
from regionclip_core.storage.folder import Folder

BARE_TENSOR = "<tensor>"
"""The name of the tensor in a file that is one single tensor."""
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """By the file's own names, `module.` prefixes taken off; on the CPU, in the file's dtypes."""
    others: dict[str, Any]
    """Entries among the tensors that are not tensors."""
    beside: tuple[str, ...]
    """Names of what the file holds beside the model, such as an optimiser's state; it is not read further."""
    layout: Literal["safetensors", "torch", "torchscript"]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, cut short, a web page, a pickle that would run code, or holds no tensors by name;
            the message says what the file is instead.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; expected one file of weights")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: expected a file of weights (.pth, .pt, .safetensors)")
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        raise ValueError(f"{path} is empty; download or copy it again")
    content: Any
    layout: Literal["safetensors", "torch", "torchscript"] = "torch"
    if head[8:9] == b"{":
        layout = "safetensors"
        try:
            content = load_file(str(path))
        except SafetensorError as error:
            raise ValueError(
                f"{path} is a damaged or cut-short .safetensors file ({error}); download it again"
            ) from None
    elif head[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except zipfile.BadZipFile as error:
            # The table of contents of a zip is at its end, so a download that broke off has none.
            raise ValueError(f"{path} is cut short or damaged ({error}); download or copy it again") from None
        if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
            layout, content = "torchscript", read_torchscript(path)
        elif any(name.endswith("data.pkl") for name in names):
            content = _read_torch(path)
        else:
            raise ValueError(f"{path} is a zip archive without weights in it (it holds {names[:3]}); unpack it first")
    elif head[:1] == b"\x80":
        content = _read_torch(path)
    else:
        raise ValueError(f"{path} is no file of weights: {_guess(head)}")
    if isinstance(content, Tensor):
        return Checkpoint({BARE_TENSOR: content}, {}, (), layout)
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
    return Checkpoint(tensors, others, beside, layout)


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storage types, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        named = re.search(r"(?:GLOBAL|global|type|function|class)\s+`?([A-Za-z_][\w.]*\.\w+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and named:
            raise ValueError(
                f"{path} is a pickle that names {named[1]}: reading it would run code from the file, which this "
                "project never does. Take a file that holds tensors alone: .safetensors, or torch.save of a state_dict"
            ) from None
        raise ValueError(
            f"{path} is cut short, damaged, or no file of tensors ({first}); download or copy it again"
        ) from None


def _guess(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as a download link gives that asks for a click or a login; download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; run `git lfs pull` to get the file itself"
    if text.startswith((b"{", b"[")):
        return "it looks like JSON"
    return f"it starts with {head[:8]!r}; expected a torch file or .safetensors"


def read_safetensors(folder: Folder, name: str) -> dict[str, Tensor]:
    """Return the tensors of one of our own files, as stored; ValueError if it is damaged."""
    try:
        return load_tensors(folder.read_bytes(name))
    except SafetensorError as error:
        raise ValueError(f"{folder.path(name)} is damaged or cut short ({error}); copy or import it again") from None


# ---------------------------------------------------------------- weights and modules


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Say what is missing, unknown or of another shape, one text each; empty if all fits.

    Frozen batch norms are often stored without `num_batches_tracked`, which nothing reads: it may be absent.
    """
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in expected]
    shapes = [
        f"{n} {tuple(state[n].shape)} where {tuple(expected[n].shape)} is expected"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    parts = [("missing", missing), ("unknown", unknown), ("of another shape", shapes)]
    return [
        f"{len(found)} {what}: {', '.join(found[:4])}{' ...' if len(found) > 4 else ''}"
        for what, found in parts
        if found
    ]


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], where: str, advice: str = "") -> None:
    """Load a state dict in which only the counters of batch norms may be absent.

    Raises:
        ValueError: if the weights don't fit the module. Says what doesn't fit in `where`, and `advice`, what to do.
    """
    if problems := misfits(module.state_dict(), state):
        problem = f"{where}: the weights don't fit the architecture: {'; '.join(problems)}"
        raise ValueError(f"{problem}. {advice}" if advice else problem)
    module.load_state_dict(dict(state), strict=False)
