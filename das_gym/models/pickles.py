"""Files of `torch.save` without the code in them: tensors are read, all other classes and functions stay names.

A pickle may name any function and have it called. Here the few that rebuild plain tensors stand for themselves; every other
name becomes a `Left` that keeps the name and does nothing, whatever the file does with it. Zip archives are read here:
`torch.load` runs those that look like TorchScript.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, UntypedStorage
from torch.serialization import StorageType

TORCHSCRIPT = "constants.pkl"
"""The record by which torch takes an archive for TorchScript, in lower case."""


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
    """What `torch.save` put into a file, on the CPU; unknown classes and functions are `Left`, none is called.

    Args:
        path: The file. The checksums of an archive are not compared here.

    Raises:
        Exception: of any kind, where the file is damaged.
    """
    with warnings.catch_warnings(action="ignore"):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                with zipfile.ZipFile(file) as archive:
                    return _Archive(archive, path.stat().st_size).load()
        if tarfile.is_tarfile(path):
            raise ValueError("it is a tar archive, as torch before 0.2 wrote them")
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_READER)


@dataclass(frozen=True, eq=False, slots=True)
class _Storage:
    """The numbers of tensors, and their type: what `_tensor` asks of torch's own `TypedStorage`."""

    content: UntypedStorage
    dtype: torch.dtype

    def untyped(self) -> UntypedStorage:
        """The numbers."""
        return self.content

    def nbytes(self) -> int:
        """Their bytes."""
        return self.content.nbytes()


class _Archive:
    """A zip archive of `torch.save`, in a file of `size` bytes.

    Raises:
        ValueError: it is TorchScript.
    """

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self.archive = archive
        self.left = size
        self.records = {record.filename: record for record in archive.infolist()}
        self.root = next(iter(self.records), "").partition("/")[0]
        if any(name.lower().rpartition("/")[2] == TORCHSCRIPT for name in self.records):
            raise ValueError(f"it holds {TORCHSCRIPT}, as programs of TorchScript do; torch.save their state_dict() instead")
        order = f"{self.root}/byteorder"
        written = self._read(order).numpy().tobytes() if order in self.records else b"little"
        self.swapped = written != sys.byteorder.encode()
        self.storages: dict[str, UntypedStorage] = {}

    def load(self) -> Any:
        """What was saved."""
        unpickler = _Unpickler(io.BytesIO(self._read(f"{self.root}/data.pkl").numpy().data), encoding="utf-8")
        vars(unpickler)["persistent_load"] = self._storage
        return unpickler.load()

    def _storage(self, saved: Any) -> _Storage:
        """The numbers of one tensor or of several; `saved` tells their type, where they are and how many.

        Raises:
            ValueError: the record has another size.
        """
        _, kind, key, _, count = saved
        dtype: torch.dtype = kind.dtype
        name = f"{self.root}/data/{key}"
        if name not in self.storages:
            self.storages[name] = self._read(name).untyped_storage()
            if self.swapped:
                self.storages[name].byteswap(dtype)
        found = self.storages[name]
        if found.nbytes() != count * dtype.itemsize:
            raise ValueError(f"the record {name} has {found.nbytes()} bytes, but holds {count} numbers of {dtype}")
        return _Storage(found, dtype)

    def _read(self, name: str) -> Tensor:
        """(n,) uint8: the bytes of a record.

        Raises:
            ValueError: all that were read are more than the file has: records lie one over the other.
        """
        record = self.records[name]
        self.left -= record.file_size
        if self.left < 0:
            raise ValueError(f"its records, up to {name}, have more bytes than the file")
        record.CRC = None  # type: ignore[assignment]  # compared before, where there is one
        content = torch.empty(record.file_size, dtype=torch.uint8)
        room = content.numpy().data
        with self.archive.open(record) as stream:
            while room:
                part = stream.read(min(len(room), 2**22))
                if not part:
                    raise EOFError(f"its record {name} ends early")
                room[: len(part)] = part
                room = room[len(part) :]
        return content


MAX_OPEN = 1000
"""Containers that a pickle may have begun and not ended."""

MAX_KEY = 16
"""Parts of a key, or of what names a storage: the time to hash it is that of all its parts."""

_LOADERS: dict[int, Callable[[Any], None]] = dict(pickle._Unpickler.dispatch)
"""What Python does for each code of a pickle."""


class _Unpickler(pickle._Unpickler):  # the one written in Python: its dispatch can be changed
    """Looks nothing up but what rebuilds plain tensors, changes no object, and takes no more than the file has.

    Raises:
        EOFError: the file says that more follows than it has.
        ValueError: a key is not plain, or too many containers were begun.
    """

    stack: list[Any]
    metastack: list[list[Any]]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        here = file.tell()
        size = file.seek(0, io.SEEK_END)
        file.seek(here)

        def read(n: int) -> bytes:
            content: bytes = file.read(n) if n <= size else b""
            if len(content) < n:
                raise EOFError(f"it ends where {n} more bytes should follow")
            return content

        self._file_read = read

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the file."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if "Storage" in name:
            with contextlib.suppress(KeyError):
                return StorageType(name)
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return type(name.rpartition(".")[2], (Left,), {"kind": f"{module}.{name}"})

    def load_mark(self) -> None:
        """Begin a container."""
        if len(self.metastack) >= MAX_OPEN:
            raise ValueError(f"more than {MAX_OPEN} containers lie one within the other")
        _LOADERS[pickle.MARK[0]](self)

    def load_bytearray8(self) -> None:
        """Bytes: as many as there are, where Python would first make room for as many as the file says."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    def load_binpersid(self) -> None:
        """A storage."""
        _check_keys(self.stack[-1])
        _LOADERS[pickle.BINPERSID[0]](self)

    def load_build(self) -> None:
        """Drop the state of an object: it could change a class that is known here."""
        self.stack.pop()

    def load_ext(self) -> None:
        """Refuse a name by its number: Python may have looked it up before."""
        raise ValueError("it names a class by a number of copyreg's")

    dispatch: ClassVar[dict[int, Any]] = {
        **_LOADERS,
        pickle.MARK[0]: load_mark,
        pickle.BYTEARRAY8[0]: load_bytearray8,
        pickle.BINPERSID[0]: load_binpersid,
        pickle.BUILD[0]: load_build,
        **dict.fromkeys((pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]), load_ext),
    }


def _check_keys(keys: Sequence[Any]) -> None:
    """Refuse keys whose hashes could take for ever, or more stack than there is.

    Raises:
        ValueError: one is nested, or long.
    """
    for key in keys:
        parts = key if isinstance(key, tuple | frozenset) else (key,)
        long = any(isinstance(part, int) and part.bit_length() > 64 for part in parts)
        if long or len(parts) > MAX_KEY or any(isinstance(part, tuple | frozenset) for part in parts):
            raise ValueError(f"one of its keys is nested, or of more than {MAX_KEY} parts, or a number of more than 64 bits")


def _checking(load: Callable[[Any], None], keys: slice) -> Callable[[_Unpickler], None]:
    """`load`, after a look at the keys among what it takes from the stack."""

    def checked(unpickler: _Unpickler) -> None:
        _check_keys(unpickler.stack[keys])
        load(unpickler)

    return checked


_Unpickler.dispatch |= {
    code[0]: _checking(_Unpickler.dispatch[code[0]], keys)
    for code, keys in {
        pickle.SETITEM: slice(-2, -1),
        pickle.SETITEMS: slice(0, None, 2),
        pickle.DICT: slice(0, None, 2),
        pickle.ADDITEMS: slice(None),
        pickle.FROZENSET: slice(None),
    }.items()
}


def _load_part(file: Any, **options: Any) -> Any:
    """What stands in an old file beside the tensors, keys of storages among it."""
    part = _Unpickler(file, **options).load()
    if isinstance(part, Sequence):
        _check_keys(part)
    return part


def _ordered(pairs: Sequence[tuple[Any, Any]] = ()) -> OrderedDict[Any, Any]:
    """An OrderedDict, of pairs in files that Python 2 wrote."""
    _check_keys([key for key, _ in pairs])
    return OrderedDict(pairs)


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *rest: Any) -> Tensor:
    """A plain tensor within its storage; torch alone would enlarge the storage for it."""
    dtype = next((each for each in rest if isinstance(each, torch.dtype)), storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and (last + 1) * dtype.itemsize > storage.nbytes()):
        raise ValueError(f"a tensor of shape {tuple(size)} goes beyond its {storage.nbytes()} bytes")
    return torch.empty(0, dtype=dtype).set_(storage.untyped(), offset, tuple(size), tuple(stride))


def _first(value: Any, *rest: Any) -> Any:
    """A parameter's tensor, without its hooks."""
    del rest
    return value


def _of_type(rebuild: Callable[..., Any], kind: Any, args: Sequence[Any], state: Any) -> Any:
    """A tensor with attributes, without them."""
    del kind, state
    return rebuild(*args)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch", "UntypedStorage"): StorageType("ByteStorage"),
    ("torch.storage", "UntypedStorage"): StorageType("ByteStorage"),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
}
_READER = SimpleNamespace(Unpickler=_Unpickler, load=_load_part, __name__=__name__)
