"""Files that are written whole or not at all: a temporary file beside the target takes its place at the end."""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import platform
import re
import shutil
import struct
import tokenize
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from das_gym.bundled import check_bundled

BAD_ARRAYS = (
    *(KeyError, IndexError, TypeError, ValueError, EOFError, OSError, NotImplementedError, RuntimeError, MemoryError),
    *(SyntaxError, UnicodeError, OverflowError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What numpy raises for a damaged .npy or .npz file."""


def _host() -> str:
    """Tells whose numbers of processes these are: containers may share a machine's name, and count by themselves."""
    numbers = Path("/proc/self/ns/pid")
    inner = numbers.readlink() if numbers.is_symlink() else ""
    return hashlib.sha256(f"{platform.node()} {inner}".encode()).hexdigest()[:8]


_HOST = _host()

MANY_FILES = 500

_LONE = re.compile("[\ud800-\udfff]")
"""Bytes of a file's name that are no UTF-8, as Python keeps them."""

MIN_UNPACKED, MAX_RATIO, MOST_UNPACKED = 2**28, 16, 2**31
"""The arrays of a file may come to so many bytes, or to so many times those of the file, and to so many at most."""


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to that takes the place of `path` when the block ends without an error.

    For writers that want a file name; after an error, or after the process was killed, `path` is as it was before. What
    is there is on the disk when the block has ended. Missing folders are made, and what killed writers left is removed.

    Args:
        path: The target.

    Yields:
        A hidden path in the same folder, ending in ".part".

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        yield part
        _sync(part)
        os.replace(part, path)  # noqa: PTH105  (as os.fsync: the fault tests stop the process at these two)
        _sync(path.parent)
    except Exception as error:
        if told := _of_disk(error, part, path):
            raise told from error
        raise
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to that becomes `folder` when the block ends without an error; as `replacing`, for a whole folder.

    Args:
        folder: New, or empty. Missing folders above it are made.

    Yields:
        A hidden, empty folder beside it, its name ending in ".part".

    Raises:
        OSError: it cannot be written, or has come to hold something meanwhile; names `folder`.
    """
    with room_beside(folder) as part:
        yield part
        _sync_all(part)
        os.replace(part, folder)  # noqa: PTH105
        _sync(folder.parent)


@contextmanager
def room_beside(path: Path) -> Iterator[Path]:
    """A hidden, empty folder beside `path`, gone when the block ends; if the process was killed, when `path` is written.

    Args:
        path: Missing folders above it are made.

    Yields:
        The folder; its name ends in ".part".

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    room = _part_of(path)
    try:
        room.mkdir()
        yield room
    except Exception as error:
        if told := _of_disk(error, room, path):
            raise told from error
        raise
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _of_disk(error: Exception, part: Path, path: Path) -> OSError | None:
    """An error of a disk as one that names `path` in place of what is hidden; None if it is another.

    Libraries in Rust, such as safetensors and tokenizers, have errors of their own, which tell the system's number.
    """
    if isinstance(error, OSError):
        hidden = error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(part)  # open files have no name
        return OSError(error.errno, error.strerror, str(path)) if error.errno is not None and hidden else None
    told = re.search(r"\(os error (\d+)\)$", str(error))
    return None if told is None else OSError(int(told[1]), os.strerror(int(told[1])), str(path))


def _part_of(path: Path) -> Path:
    """A new hidden path beside `path`; those of writers of this machine that are no more are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_HOST}-*.part"):
        writer = left.name.removeprefix(f".{path.name}.{_HOST}-").partition("-")[0]
        if writer.isdecimal() and not _runs(int(writer)):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):  # somebody else's
                    left.unlink()
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid.uuid4().hex[:12]}.part")


def _runs(process: int) -> bool:
    try:
        return psutil.pid_exists(process)
    except OverflowError:  # no process has such a number
        return False


def _sync_all(folder: Path) -> None:
    """As `_sync`, of a folder and all that is in it; for thousands of files the system does it at once."""
    paths = [folder, *folder.rglob("*")]
    if len(paths) > MANY_FILES and hasattr(os, "sync"):
        os.sync()
    else:
        for path in reversed(paths):
            _sync(path)


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if not path.is_dir() or error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems know no such thing
            raise
    finally:
        os.close(file)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all; "?" stands for what is no UTF-8 in names of files."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: str | os.PathLike[str], obj: Any, indent: int | None = 1) -> None:
    """Write `obj` to `path` as JSON, whole or not at all; floats read back bit for bit.

    Args:
        path: Where to.
        obj: Plain values; numpy values are written as numbers and lists, paths as texts.
        indent: Spaces a level; None writes one line, which is quicker.

    Raises:
        ValueError: `obj` holds a NaN or an infinity, which JSON does not know.
        TypeError: `obj` holds something that is neither plain, numpy nor a path.
    """
    try:
        text = json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False, default=_plain)
    except ValueError as error:
        raise ValueError(f"cannot write {path}: {error}; write None for a number that is not finite") from error
    except TypeError as error:
        raise TypeError(f"cannot write {path}: {error}; use plain values, numpy arrays or paths") from error
    write_text(path, _LONE.sub(lambda half: f"\\u{ord(half[0]):04x}", text) + "\n")


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path whose `~` is the home folder that it stands for.

    Raises:
        ValueError: it stands for none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with the home folder of somebody who has none here: write the path out") from None


def absolute(path: str | os.PathLike[str]) -> Path:
    """A path of a person's, from the root and without `..`: it reads the same from everywhere.

    Raises:
        ValueError: as `at_home`.
    """
    parts = at_home(path).absolute().parts
    up = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    return Path(*parts[:up]).resolve() / Path(*parts[up:]) if up else Path(*parts)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """What is in the file `path`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is a pipe or a device, which may never end, or a bundled file that has changed.
    """
    check_plain([Path(path)])
    check_bundled(Path(path))
    return Path(path).read_bytes()


def check_plain(paths: Iterable[Path]) -> None:
    """Refuse what would be waited for.

    Raises:
        ValueError: one of them is a pipe or a device; names it.
    """
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe or a device, and a plain file is read: put one in its place")


def read_json(path: str | os.PathLike[str]) -> Any:
    """What is in the JSON file `path`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, or no plain file; the message names it.
    """
    return parse_json(read_bytes(path), path, "delete it or write it again")


@contextmanager
def damage_named(path: Path, way_out: str) -> Iterator[None]:
    """Name the file of a record that is read within, where it is not what it should be.

    Args:
        path: The file.
        way_out: What to do then.

    Raises:
        ValueError: it lacks something, or a value is of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged ({error}): {way_out}") from error


def parse_json(text: str | bytes, source: object, way_out: str) -> Any:
    """What a JSON text in UTF-8 says.

    Args:
        text: The text, or its bytes.
        source: Names it in errors.
        way_out: What to do about a damaged one.

    Raises:
        ValueError: it is not JSON, or nested too deep to be read.
    """
    try:
        return json.loads(text.decode("utf-8") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        raise ValueError(f"{source} is not valid JSON ({error}); {way_out}") from error


MOST_DESCRIBED = 2**24
"""Bytes of the text by which a file of arrays describes itself."""


def description_in(arrays: Mapping[str, np.ndarray], way_out: str) -> Any:
    """What the JSON text `meta` among the arrays of a file says.

    Args:
        arrays: As `read_arrays` gives them.
        way_out: What to do about a damaged one.

    Raises:
        ValueError: it is not JSON, or far too long.
        KeyError: there is none.
    """
    meta = arrays["meta"]
    if meta.nbytes > MOST_DESCRIBED:
        raise ValueError(f"its description has {meta.nbytes} bytes, more than {MOST_DESCRIBED}")
    return parse_json(str(meta), "its description", way_out)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays in an .npz file, none of which holds objects.

    Raises:
        FileNotFoundError: no such file.
        Exception: one of `BAD_ARRAYS`: it is damaged, or unpacks to far more than it has; nothing is unpacked then.
    """
    packed = read_bytes(path)
    content = io.BytesIO(packed)
    with zipfile.ZipFile(content) as archive:
        size = sum(record.file_size for record in archive.infolist())
    most = min(max(MIN_UNPACKED, MAX_RATIO * len(packed)), MOST_UNPACKED)
    if size > most:
        raise ValueError(f"it unpacks to {size} bytes, more than {most}")
    content.seek(0)
    with np.load(content, allow_pickle=False) as arrays:
        found = dict(arrays)
    if odd := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
        raise ValueError(f"{odd[0]} is no array")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
