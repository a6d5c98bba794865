"""Tensors by name from any file of weights, without running anything that is in it; whether they fit a module.

Reads .safetensors, torch files, new (zip) and old (pickle), with `weights_only`, and TorchScript archives, by
`torchscript_files`. The content of a file decides which it is, not its name.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file
from torch import Tensor, nn

from regionclip_core.models.torchscript_files import DTYPES, LONGEST_NAME, read_torchscript
from regionclip_core.storage.folder import Folder
from regionclip_core.storage.weight_files import Layout, check_claim, weight_layout

BARE_TENSOR = "<tensor>"
"""The name of the tensor in a file that is one single tensor."""
_WRAPPERS = ("model", "state_dict", "model_state_dict", "model_state", "module", "weights")


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """By the file's own names, `module.` prefixes taken off; on the CPU, in the file's dtypes."""
    others: dict[str, Any]
    """Entries among the tensors that are not tensors."""
    beside: tuple[str, ...]
    """Names of what the file holds beside the model, such as an optimiser's state; it is not read further."""
    layout: Layout


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of weights.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, cut short, a web page, a pickle that would run code, or holds no tensors by name;
            the message says what the file is instead.
    """
    path = Path(path)
    layout = weight_layout(path)
    content: Any
    if layout == "safetensors":
        content = load_file(str(path))
    elif layout == "torchscript":
        content = read_torchscript(path)
    else:
        content = _read_torch(path)
    if isinstance(content, Tensor):
        return Checkpoint(_checked(path, {BARE_TENSOR: content}), {}, (), layout)
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
    tensors = _checked(path, tensors)
    others = {str(key): value for key, value in content.items() if str(key) not in tensors}
    if all(name.startswith("module.") for name in tensors):  # saved from a data-parallel wrapper
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return Checkpoint(tensors, others, beside, layout)


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, each with memory of its own; ValueError for what no file of weights holds."""
    claimed = 0
    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.dtype in DTYPES.values()
        if not dense or len(name) > LONGEST_NAME or not name.isprintable():
            kind = f"{tensor.dtype}, {tensor.layout}, {tensor.device.type}".replace("torch.", "")
            raise ValueError(
                f"{path}: {name[:60]!r} is no weight that can be read ({kind}); expected a dense float16 or float32 "
                f"under a name of at most {LONGEST_NAME} printable characters. Convert it, or get the file again"
            )
        # An axis of length 0 counts as 1: the others may be of any length, and a row or column can still be asked for.
        claimed += math.prod(max(1, side) for side in tensor.shape) * tensor.dtype.itemsize
    check_claim(path, claimed)
    found: dict[int, str] = {}
    for name, tensor in tensors.items():
        if found.setdefault(tensor.untyped_storage().data_ptr(), name) != name:
            tensors[name] = tensor.clone()  # safetensors stores no two tensors of one memory
    return tensors


def _read_torch(path: Path) -> Any:
    with path.open("rb") as file:
        head = file.read(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old storage types, which are read all the same
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes can raise anything
        text = str(error).strip() or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to run what is in the file
            found = re.search(r"(?:GLOBAL|global|type|function|class)\s+`?([A-Za-z_][\w.]*\.\w+)", text)
            named = found[1] if found else ""
            # One pickle alone: no zip, and not torch's old format, which begins with a long number.
            is_plain = head[:1] == b"\x80" and head[2:4] != b"\x8a\n"
            if is_plain and not named:  # of a newer protocol, which torch doesn't read as far as the names in it
                with path.open("rb") as file:
                    begins = file.read(2**20)
                named = next((module for module in ("numpy", "torch") if module.encode() in begins), "")
            if is_plain and named.split(".")[0] in ("numpy", "torch"):
                what = "numpy arrays, such as detectron2's model zoo has" if named[0] == "n" else "tensors"
                raise ValueError(
                    f"{path} is a pickle of {what}; expected .safetensors, or torch.save of a state_dict. Reading a "
                    "pickle can run code from it, so only if you trust where it is from, convert it once: python -c "
                    f"\"import pickle, torch; m = pickle.load(open({path.name!r}, 'rb'), encoding='latin1'); m = "
                    "m.get('model', m); torch.save({n: torch.as_tensor(a) for n, a in m.items()}, "
                    f'{path.stem + ".pth"!r})"'
                ) from None
            if named:
                raise ValueError(
                    f"{path} is a pickle that names {named}: reading it would run code from the file, which this "
                    "project never does. Take a file of tensors alone: .safetensors, or torch.save of a state_dict"
                ) from None
            text = "the pickle in it can't be read as tensors by name"
        raise ValueError(
            f"{path} is cut short, damaged, or no file of tensors ({text.splitlines()[0]}); download or copy it again"
        ) from None


def read_safetensors(folder: Folder, name: str) -> dict[str, Tensor]:
    """Return the tensors of one of our own files, as stored; ValueError if it is damaged."""
    content = folder.read_bytes(name)
    try:
        return load_tensors(content)
    except (SafetensorError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{folder.path(name)} is damaged or cut short ({error}); copy or import it again") from None


# ---------------------------------------------------------------- weights and modules


def misfits(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Say what is missing, unknown or of another shape or type, one text each; empty if all fits.

    Frozen batch norms are often stored without `num_batches_tracked`, which nothing reads: it may be absent.
    """
    missing = [n for n in expected if n not in state and not n.endswith("num_batches_tracked")]
    unknown = [n for n in state if n not in expected]
    shapes = [
        f"{n} {tuple(state[n].shape)} where {tuple(expected[n].shape)} is expected"
        for n in expected
        if n in state and state[n].shape != expected[n].shape
    ]
    kinds = [n for n in expected if n in state and state[n].is_floating_point() != expected[n].is_floating_point()]
    types = [f"{n} of {state[n].dtype} where {expected[n].dtype} is expected".replace("torch.", "") for n in kinds]
    parts = [("missing", missing), ("unknown", unknown), ("of another shape", shapes), ("of another type", types)]
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
