"""Files of `torch.save` without the code in them: tensors are read, all other classes and functions stay names.

A pickle may name any function and have it called. Here the few that rebuild plain tensors stand for themselves; every other
name becomes a `Left` that keeps the name and does nothing, whatever the file does with it.
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.serialization import StorageType


class Left:
    """What stands for an object of a class that was not looked up; `kind` is the class's name."""

    kind = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Left:
        """One that has forgotten its arguments."""
        del args, kwargs
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Left:
        """What is called is not known either."""
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def _ignore(self, *args: Any) -> None:
        """What pickles of lists, sets and mappings call."""

    append = extend = add = update = _ignore


def load_pickle(path: Path) -> Any:
    """What `torch.load` reads from a file, on the CPU; unknown classes and functions are `Left`, none is called.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    if tarfile.is_tarfile(path):
        raise ValueError("it is a tar archive, as torch before 0.2 wrote them")
    with warnings.catch_warnings(action="ignore"):
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_READER)


class _Unpickler(pickle._Unpickler):  # the one written in Python: its dispatch can be changed
    """Looks nothing up but what rebuilds plain tensors, and changes no object."""

    stack: list[Any]

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file; torch has looked for storages before."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return type(name.rpartition(".")[2], (Left,), {"kind": f"{module}.{name}"})

    def load_build(self) -> None:
        """Drop the state of an object: it could change a class that is known here."""
        self.stack.pop()

    dispatch: ClassVar[dict[int, Any]] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *rest: Any) -> Tensor:
    """A plain tensor within its storage; torch alone would enlarge the storage for it."""
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and (last + 1) * dtype.itemsize > storage.nbytes()):
        raise ValueError(f"a tensor of shape {tuple(size)} goes beyond its {storage.nbytes()} bytes")
    return torch.empty(0, dtype=dtype).set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *rest: Any) -> Any:
    """A parameter's tensor, without its hooks."""
    del rest
    return value


def _of_type(rebuild: Callable[..., Any], kind: Any, args: Sequence[Any], state: Any) -> Any:
    """A tensor with attributes, without them."""
    del kind, state
    return rebuild(*args)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "UntypedStorage"): StorageType("ByteStorage"),
    ("torch.storage", "UntypedStorage"): StorageType("ByteStorage"),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}
_READER = SimpleNamespace(
    Unpickler=_Unpickler, load=lambda file, **options: _Unpickler(file, **options).load(), __name__=__name__
)
