"""A second device for tests: tensors "on" it are the CPU's, marked, and mixing the two raises as CUDA does.

It calls itself `cuda:1`. Only what runs in the thread that entered `second_device` sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("cuda", 1)
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
"""Operations on a tensor of the device whose indices may be the CPU's."""


class Marks:
    """Which tensors are on the device, by their memory: a view is where its base is."""

    def __init__(self) -> None:
        self._storages: dict[int, Any] = {}  # kept alive, or their addresses would come again

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    @property
    def count(self) -> int:
        """How many pieces of memory were on the device."""
        return len(self._storages)

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage
        return tensor


class _Operations(TorchDispatchMode):
    """Every operation, also of the backward pass: refuses mixed devices, and marks what comes of marked tensors."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self._marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, given = func._schema.name, tree_leaves((args, kwargs))
        tensors = [one for one in given if isinstance(one, Tensor)]
        there = [one for one in tensors if one in self._marks]
        here = [one for one in tensors if one.ndim > 0 and one not in self._marks]  # scalars may mix
        if there and here and name != "aten::copy_" and not (name in _INDEXING and args[0] in self._marks):
            shapes = [tuple(one.shape) for one in here]
            raise RuntimeError(f"Expected all tensors to be on the same device: {name} has CPU tensors {shapes}")
        if there and any(isinstance(one, torch.Generator) for one in given):
            raise RuntimeError(f"Expected a 'cuda' device type for generator but found 'cpu': {name}")
        result = func(*args, **(kwargs or {}))
        return tree_map_only(Tensor, self._marks.add, result) if there and name != "aten::copy_" else result


class _Calls(TorchFunctionMode):
    """What names a device or asks for one."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self._marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # another object each time
            return DEVICE if args[0] in self._marks else func(*args)
        if func == Tensor.is_cuda.__get__:
            return args[0] in self._marks
        if func in (Tensor.numpy, Tensor.__array__) and args[0] in self._marks:
            raise TypeError("can't convert a cuda device type tensor to numpy")
        if func is Tensor.cpu:
            return self._moved(args[0], torch.device("cpu"), lambda **more: args[0].to("cpu", **more))
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        result = func(*args, **{**kwargs, "device": "cpu"} if _named(kwargs) else kwargs)
        if _named(kwargs) or (func is Tensor.new_tensor and args[0] in self._marks):
            if kwargs.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            self._marks.add(result.clone() if any(result is one for one in args) else result)
        return result

    def _to(self, tensor: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        device = kwargs.pop("device", None)
        if rest and isinstance(rest[0], (str, torch.device)):
            device, *rest = rest
        assert not any(isinstance(one, Tensor) for one in rest)
        rest = [one for one in rest if one is not None and not isinstance(one, bool)]
        kwargs = {key: value for key, value in kwargs.items() if value is not None}
        return self._moved(tensor, device, lambda **more: Tensor.to(tensor, *rest, **kwargs, **more))

    def _moved(self, tensor: Tensor, device: Any, to: Callable[..., Tensor]) -> Tensor:
        there = tensor in self._marks
        wanted = there if device is None else _is_there(device)
        if wanted == there:
            return to()
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            moved = to(copy=True)
        return self._marks.add(moved) if wanted else moved


def _is_there(device: Any) -> bool:
    return torch.device(device).type == DEVICE.type


def _named(kwargs: Mapping[str, Any]) -> bool:
    return kwargs.get("device") is not None and _is_there(kwargs["device"])


@contextmanager
def second_device() -> Iterator[Marks]:
    """Inside, DEVICE can be used; yields what is on it."""
    marks = Marks()
    with _Calls(marks), _Operations(marks):
        yield marks
