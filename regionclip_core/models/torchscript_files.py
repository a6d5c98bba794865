"""The tensors of a TorchScript archive (OpenAI's CLIP downloads), read as data: no code of the archive runs.

An archive is a zip with `<root>/data.pkl`, the tree of modules, `<root>/data/<n>`, the bytes of the storages, and
`<root>/code/`, programs, which are never read. The tree is a pickle; here it may name nothing but the classes of the
archive itself, which become plain dictionaries, and the rebuilding of tensors.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
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
LONGEST_NAME = 500
"""Of a tensor, in characters."""
_MOST_ENTRIES = 100_000
"""Of all modules together, counted as often as they are reached; the largest CLIP models have a few thousand."""


class _Module:
    """Any object of a class of the archive; `fields` are its attributes."""

    __slots__ = ("fields",)

    def __init__(self, *unused: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = {str(key): value for key, value in state.items()} if isinstance(state, dict) else {}


class _Call:
    """A function that the pickle may call. It can't be written to, unlike a plain function."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ValueError("the archive's data.pkl tries to change a function")


def _rebuild_tensor(elements: Tensor, offset: int, shape: Any, stride: Any, *unused: Any) -> Tensor:
    if not isinstance(elements, Tensor):
        raise ValueError("a tensor without a storage")
    # as_strided refuses what would reach outside of the storage; `read_checkpoint` looks at how often it is repeated.
    return torch.as_strided(elements, tuple(shape), tuple(stride), offset)


_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda data, *unused: data,
    ("torch.jit._pickle", "restore_type_tag"): lambda value, tag: value,
    ("collections", "OrderedDict"): dict,
    **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "double", "bool", "tensor")},
    # A storage's class is only ever handed on to persistent_load.
    **{("torch", name): lambda dtype=dtype: dtype for name, dtype in DTYPES.items()},
}


class _TreeReader(pickle.Unpickler):
    """Unpickles data.pkl with nothing in reach but `_Module` and what is `_ALLOWED`."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._storages: dict[str, Tensor] = {}
        super().__init__(io.BytesIO(self._read("data.pkl")))

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) not in _ALLOWED:
            raise ValueError(f"it names {module}.{name}, which is neither a tensor nor a module")
        return _Call(_ALLOWED[module, name])

    def persistent_load(self, reference: Any) -> Tensor:
        """Return the elements of ('storage', type, key, device, elements) as a vector."""
        kind, storage_type, key, _, count = reference
        if kind != "storage" or not isinstance(storage_type, _Call) or not isinstance(key, str):
            raise ValueError(f"unknown reference {kind!r}")
        if key not in self._storages:
            dtype, count = storage_type(), int(count)
            content = bytearray(self._read(f"data/{key}"))
            if len(content) < count * dtype.itemsize:
                raise ValueError(f"storage {key} has {len(content)} bytes where {count * dtype.itemsize} are expected")
            empty = torch.empty(0, dtype=dtype)  # which frombuffer refuses to make
            self._storages[key] = torch.frombuffer(content, dtype=dtype, count=count) if count else empty
        return self._storages[key]

    def _read(self, name: str) -> bytes:
        entry = self._archive.getinfo(f"{self._root}/{name}")
        # Torch doesn't compress: a compressed entry could fill the memory while it is read.
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch never does")
        return self._archive.read(entry)


def read_torchscript(path: Path) -> dict[str, Any]:
    """Return the tensors of all modules by dotted names, in the archive's dtypes, and the root's numbers and texts.

    Raises:
        ValueError: if the archive is damaged or names anything but its own classes and tensors.
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
        if not isinstance(tree, _Module):
            raise ValueError("it has no module in it")
        found = {name: value for name, value in tree.fields.items() if isinstance(value, (int, float, str))}
        found.pop("training", None)
        return found | dict(_tensors(tree))
    except ValueError as error:
        raise ValueError(f"{path} is a TorchScript archive that is not read: {error}") from None
    except Exception as error:  # damaged bytes can end in anything
        raise ValueError(f"{path} is a damaged TorchScript archive ({error}); download it again") from None


def _tensors(tree: _Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors by dotted names, also those of a module that others share, under each of its names."""
    todo, seen = [("", tree)], 0
    while todo:
        prefix, module = todo.pop()
        seen += len(module.fields)
        if seen > _MOST_ENTRIES or len(prefix) > LONGEST_NAME:
            raise ValueError(
                f"a damaged or hostile file, whose modules, nested or shared, come to over {_MOST_ENTRIES:,} entries "
                f"or to names of over {LONGEST_NAME} characters; get it again from where it was published"
            )
        yield from ((prefix + name, value) for name, value in module.fields.items() if isinstance(value, Tensor))
        inner = [(f"{prefix}{name}.", value) for name, value in module.fields.items() if isinstance(value, _Module)]
        todo += reversed(inner)
