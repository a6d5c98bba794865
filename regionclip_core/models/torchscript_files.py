"""The tensors of a TorchScript archive (OpenAI's CLIP downloads), read as data: no code of the archive runs.

An archive is a zip with `<root>/data.pkl`, the tree of modules, `<root>/data/<n>`, the bytes of the storages, and
`<root>/code/`, programs that are not looked at. The tree is a pickle; here it may name nothing but the classes of the
archive itself, which become plain dictionaries, and the rebuilding of tensors.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LISTS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")


class _Node:
    """Stands for an object of any class of the archive; `fields` are its attributes."""

    __slots__ = ("fields",)

    def __init__(self, *unused: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = {str(key): value for key, value in state.items()} if isinstance(state, dict) else {}


class _Allowed:
    """A function that the pickle may call. It can't be written to, unlike a plain function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("the archive's data.pkl tries to change a function")


class _TreeReader(pickle.Unpickler):
    """Unpickles data.pkl with nothing in reach but `_Node` and the functions below."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        super().__init__(io.BytesIO(self._read("data.pkl")))
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Node
        if module == "torch" and name in _DTYPES:
            return _Allowed(lambda: _DTYPES[name])  # only ever handed on to persistent_load
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _Allowed(_rebuild_tensor)
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _Allowed(lambda data, *unused: data)
        if module == "collections" and name == "OrderedDict":
            return _Allowed(dict)
        if module == "torch.jit._pickle" and name in _LISTS:
            return _Allowed(list)
        if module == "torch.jit._pickle" and name == "restore_type_tag":
            return _Allowed(lambda value, tag: value)
        raise ValueError(f"it names {module}.{name}, which is neither a tensor nor a module")

    def persistent_load(self, reference: Any) -> Tensor:
        """('storage', type, key, device, elements) -> the storage's elements as a vector."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, _Allowed) or not isinstance(key, str):
            raise ValueError(f"unknown reference {kind!r}")
        if key not in self._storages:
            dtype = storage_type()
            size = int(count) * dtype.itemsize
            content = bytearray(self._read(f"data/{key}"))
            if len(content) < size:
                raise ValueError(f"storage {key} has {len(content)} bytes where {size} are expected")
            self._storages[key] = (
                torch.frombuffer(content, dtype=dtype, count=int(count)) if size else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]

    def _read(self, name: str) -> bytes:
        entry = self._archive.getinfo(f"{self._root}/{name}")
        # Torch stores all bytes as they are: anything else could grow beyond all bounds while it is read.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch never does")
        return self._archive.read(entry)


def _rebuild_tensor(elements: Tensor, offset: int, shape: Any, stride: Any, *unused: Any) -> Tensor:
    if not isinstance(elements, Tensor):
        raise ValueError("a tensor without a storage")
    # as_strided refuses what would reach outside of the storage.
    return torch.as_strided(elements, tuple(shape), tuple(stride), offset).clone()


def read_torchscript(path: Path) -> dict[str, Any]:
    """Tensors of all modules by their dotted names, in the archive's dtypes, and the root's numbers and texts.

    Raises ValueError if the archive is damaged or names anything but its own classes and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if not pickles:
                raise ValueError("it has no data.pkl")
            root = min(pickles, key=len).removesuffix("/data.pkl")
            order = f"{root}/byteorder"
            if order in archive.namelist() and archive.read(order).strip() != b"little":
                raise ValueError("its bytes are in big-endian order")
            tree = _TreeReader(archive, root).load()
    except ValueError as error:
        raise ValueError(f"{path} is a TorchScript archive that is not read: {error}") from None
    except Exception as error:  # damaged bytes can end in anything
        raise ValueError(f"{path} is a damaged TorchScript archive ({error}); download it again") from None
    if not isinstance(tree, _Node):
        raise ValueError(f"{path} is a TorchScript archive without a module in it")
    found = {name: value for name, value in tree.fields.items() if isinstance(value, (int, float, str))}
    found.pop("training", None)
    _collect(tree, "", found, ())
    return found


def _collect(node: _Node, prefix: str, found: dict[str, Any], above: tuple[int, ...]) -> None:
    if id(node) in above:
        raise ValueError(f"the archive's module {prefix or 'root'!r} contains itself")
    for name, value in node.fields.items():
        if isinstance(value, Tensor):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, _Node):
            _collect(value, f"{prefix}{name}.", found, (*above, id(node)))
