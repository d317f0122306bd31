"""Two fake devices: their tensors are in CPU memory, and operations that mix devices raise.

torch has a device type, `lazy`, on which it computes nothing by itself. Under `fake_device()` its operations run on the CPU,
with bit-identical results, and operations that mix `lazy:0`, `lazy:1` and the CPU raise as on CUDA, except for numbers and
for indices of the CPU into a tensor of a device.
"""

from __future__ import annotations

import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import accelerate
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from transformers import PreTrainedModel

from das_gym.models import inputs
from das_gym.models.transformers.stack import find_decoder, module_path

DEVICE, OTHER_DEVICE = "lazy:0", "lazy:1"
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)


class FakeDeviceTensor(Tensor):
    """A tensor that reports the fake device, and holds one of the CPU."""

    def __new__(cls, held: Tensor, device: str = DEVICE) -> FakeDeviceTensor:
        """Of the same shape, strides and type."""
        offset = held.storage_offset()
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.size(), strides=held.stride(), storage_offset=offset, dtype=held.dtype, device=torch.device(device)
        )

    def __init__(self, held: Tensor, device: str = DEVICE) -> None:
        self.held = held

    def __repr__(self) -> str:  # type: ignore[override]
        return f"FakeDeviceTensor({self.held})"

    def tolist(self) -> Any:
        """torch gives no lists of subclasses."""
        return self.held.tolist()

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        """What it holds, as a tensor of the device; torch's own would set another tensor than that."""
        return self.detach()

    @data.setter
    def data(self, value: FakeDeviceTensor) -> None:
        assert value.device == self.device
        self.held = value.held

    def untyped_storage(self) -> torch.UntypedStorage:
        """Of what it holds: transformers asks which parameters are tied before it saves them."""
        return self.held.untyped_storage()

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
        RuntimeError: it mixes tensors of several devices.
    """
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    places = {str(each.device) for each in tensors if each.dim() or isinstance(each, FakeDeviceTensor)}
    allowed = func in COPIES
    if func in INDEXING:  # indices may lie on the CPU
        allowed = places <= {"cpu", str(args[0].device)}
    if len(places) > 1 and not allowed:
        raise RuntimeError(f"{func} of tensors on {' and '.join(sorted(places))}: {[tuple(t.shape) for t in tensors]}")
    fake = next((str(each.device) for each in tensors if isinstance(each, FakeDeviceTensor)), None)
    device = kwargs.get("device")
    place = fake if device is None else str(torch.device(device))
    place = DEVICE if place == "lazy" else place
    given: dict[str, Any]
    held, given = tree_map(_held, (args, kwargs))
    is_fake = place is not None and place.startswith("lazy")
    if is_fake and "lazy" in inputs.NO_FLOAT64 and given.get("dtype") == torch.float64:
        raise TypeError(f"{func}: the device has no float64")
    if device is not None and is_fake:
        given = {**given, "device": torch.device("cpu")}
    found = func(*held, **given)
    known = {id(_held(each)): each for each in tensors}  # what was written in place is the tensor that was given

    def placed(one: Any) -> Any:
        if not isinstance(one, Tensor) or id(one) in known:
            return known.get(id(one), one)
        return FakeDeviceTensor(one, place) if is_fake else one

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


def spread(model: Any) -> None:
    """Dispatch a model as `device_map=auto` does: half of its layers and what follows are on the other device."""
    stack = find_decoder(model)
    path, count = module_path(model, stack.layers), len(stack.layers)
    places = {f"{path}.{n}": OTHER_DEVICE if 2 * n >= count else DEVICE for n in range(count)}

    def place(prefix: str, module: torch.nn.Module, device: str) -> None:
        for key, child in module.named_children():
            name = f"{prefix}{key}"
            if child is stack.layers:
                device = OTHER_DEVICE
            elif path.startswith(f"{name}."):
                place(f"{name}.", child, device)
            else:
                places[name] = device

    place("", model, DEVICE)
    accelerate.dispatch_model(model, places)


@contextmanager
def two_devices() -> Iterator[None]:
    """Enable the devices in this context; what `from_pretrained` loads with a `device_map` is spread over them."""
    inner = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def load(cls: Any, *args: Any, device_map: Any = None, **options: Any) -> Any:
        found = inner(cls, *args, **options)
        if device_map is not None:
            spread(found[0] if isinstance(found, tuple) else found)
        return found

    with fake_device(), unittest.mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(load)):
        yield
