"""A fake device: its tensors are in CPU memory, and operations with CPU tensors raise.

torch has a device type, `lazy`, on which it computes nothing by itself. Under `fake_device()` its operations run on the CPU,
with bit-identical results, and operations that mix it with CPU tensors raise as on CUDA, except for numbers and for indices
into a tensor of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = "lazy:0"
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)


class FakeDeviceTensor(Tensor):
    """A tensor that reports the fake device, and holds one of the CPU."""

    def __new__(cls, held: Tensor) -> FakeDeviceTensor:
        """Of the same shape, strides and type."""
        offset = held.storage_offset()
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=offset, dtype=held.dtype, device=torch.device(DEVICE)
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeDeviceTensor({self.held})"

    def tolist(self) -> Any:
        """torch gives no lists of subclasses."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Watching(TorchDispatchMode):
    """Sees the operations that bring a tensor to the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation on what is held.

    Raises:
        RuntimeError: it mixes tensors of the device and of the CPU.
    """
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    there = [each for each in tensors if isinstance(each, FakeDeviceTensor)]
    here = [tuple(each.shape) for each in tensors if not isinstance(each, FakeDeviceTensor) and each.dim()]
    allowed = func in COPIES or (func in INDEXING and isinstance(args[0], FakeDeviceTensor))
    if there and here and not allowed:
        raise RuntimeError(f"{func} of tensors on {DEVICE} and of tensors on the CPU, of shapes {here}")
    device = kwargs.get("device")
    lies_there = bool(there) if device is None else torch.device(device).type == torch.device(DEVICE).type
    given: dict[str, Any]
    held, given = tree_map(_held, (args, kwargs))
    if device is not None and lies_there:
        given = {**given, "device": torch.device("cpu")}
    found = func(*held, **given)
    known = {id(_held(each)): each for each in tensors}  # what was written in place is the tensor that was given

    def placed(one: Any) -> Any:
        if not isinstance(one, Tensor) or id(one) in known:
            return known.get(id(one), one)
        return FakeDeviceTensor(one) if lies_there else one

    return tree_map(placed, found)


def _held(one: Any) -> Any:
    return one.held if isinstance(one, FakeDeviceTensor) else one


@contextmanager
def fake_device() -> Iterator[str]:
    """Enable the device in this context; yield its name.

    `torch.inference_mode` is `torch.no_grad` meanwhile: inference tensors cannot be wrapped.
    """
    before = (
        torch.__future__.get_swap_module_params_on_conversion(),
        torch._C._only_lift_cpu_tensors(),
        torch.inference_mode.__enter__,
        torch.inference_mode.__exit__,
    )
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.inference_mode.__enter__, torch.inference_mode.__exit__ = _no_grad()  # type: ignore[method-assign]
    try:
        with Watching():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before[0])
        torch._C._set_only_lift_cpu_tensors(before[1])
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = before[2:]  # type: ignore[method-assign]


def _no_grad() -> tuple[Callable[[Any], None], Callable[..., None]]:
    def enter(self: Any) -> None:
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(self.before and not self.mode)

    def leave(self: Any, *_: Any) -> None:
        torch.set_grad_enabled(self.before)

    return enter, leave
