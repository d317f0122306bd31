"""Read files of any origin safely, and write files atomically: a hidden temporary file replaces the target at the end.

Bundled files are compared with their checksums when they are read. `python -m benchmarks.bundled checksums` writes those.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import json
import os
import pickletools
import platform
import re
import shutil
import tempfile
import uuid
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ASSETS = Path(__file__).parent / "assets"

CHECKSUMS = ASSETS / "checksums.json"
"""SHA-256 of every bundled file, by its path within `ASSETS`."""

INPUTS = "inputs.json"
"""The file in a folder of results that lists what they depend on, see `claim_folder`."""

CACHE_VARIABLE = "DAS_GYM_CACHE"
"""The environment variable that moves the cache folder."""

METADATA_KEY = "das_gym"
"""Key of the metadata of our safetensors files, and of an exported config.json."""

MANY_FILES = 500
"""From this many files in a folder on, the whole disk is flushed at once, which is faster."""

MIN_UNPACKED = 2**28
MAX_RATIO = 16
MAX_UNPACKED = 2**31
"""The arrays of a file may take this many bytes, or this many times those of the file, up to the last number."""

MAX_DESCRIPTION = 2**24
"""Bytes of the text by which a file describes itself: `meta` in one of arrays, the pickle in one of torch."""


@contextmanager
def replacing(path: str | os.PathLike[str], is_folder: bool = False) -> Iterator[Path]:
    """Yield a temporary path, or an empty folder, that replaces `path` when the block ends without an error.

    After an error or a kill, `path` is as it was before. After the block, the content is on the disk. Missing folders are
    made, and what killed writers of this machine left is removed. Errors of the disk name `path`. A folder at `path` has to
    be empty.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}.{platform.node()}-"
    for left in path.parent.glob(f"{glob.escape(start)}*.part"):
        writer = left.name.removeprefix(start).partition("-")[0]
        if writer.isdecimal() and len(writer) <= 10 and not psutil.pid_exists(int(writer)):
            _remove(left)
    part = path.with_name(f"{start}{os.getpid()}-{uuid.uuid4().hex[:12]}.part")
    try:
        if is_folder:
            part.mkdir()
        yield part
        _sync([*part.rglob("*"), part])
        os.replace(part, path)  # noqa: PTH105  (the fault tests stop the process at os.replace and os.fsync)
        _sync([path.parent])
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if rust := re.search(r"\(os error (\d+)\)$", str(error)):  # safetensors and tokenizers have other error classes
            number = int(rust[1])
        other = isinstance(error, OSError) and error.filename and not Path(os.fsdecode(error.filename)).is_relative_to(part)
        if number is None or other:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        _remove(part)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):  # it was a folder, or does not exist, or is another user's
        path.unlink()


def _sync(paths: Sequence[Path]) -> None:
    """Flush files, and the names in folders, to the disk."""
    if len(paths) > MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for path in paths:
        if path.is_dir() and os.name == "nt":  # Windows cannot open folders
            continue
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        except OSError as error:
            if not path.is_dir() or error.errno not in (
                errno.EINVAL,
                errno.ENOTSUP,
            ):  # not on every file system
                raise
        finally:
            os.close(file)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with replacing(path) as part:
        part.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` in UTF-8 atomically; "?" replaces bytes of file names that are not UTF-8."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: str | os.PathLike[str], obj: Any, indent: int | None = 1) -> None:
    """Write `obj` to `path` as JSON atomically; floats read back bit for bit.

    Numpy values are written as numbers and lists, paths as texts; JSON has neither NaN nor infinity. Without `indent` it is
    one line, which is faster.
    """
    try:
        text = json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False, default=_plain)
    except (ValueError, TypeError) as error:
        raise type(error)(f"cannot write {path} as JSON: {error}") from error
    # The bytes of a file name that are not UTF-8 are lone surrogates, which "backslashreplace" writes as JSON escapes.
    write_bytes(path, (text + "\n").encode("utf-8", "backslashreplace"))


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"got {type(value).__name__}, expected plain values, numpy arrays or paths")


def claim_folder(folder: Path, work: str, inputs: Mapping[str, Any]) -> None:
    """Keep what a resumable work is made from in `inputs.json` of its folder, or check that the folder belongs to this work.

    Args:
        folder: It is made if it does not exist.
        work: Name of the work; a folder may have files of several works.
        inputs: What its result depends on, JSON values by name.

    Raises:
        ValueError: The folder holds the same work with other inputs; the message has the first that differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / INPUTS
    known = read_json_object(path) if path.is_file() else {}
    mine = json.loads(json.dumps(dict(inputs), default=_plain))
    if work not in known:
        write_json(path, {**known, work: mine})
        return
    recorded = known[work] if isinstance(known[work], dict) else {}
    for name in (*mine, *recorded):
        if mine.get(name) != recorded.get(name):
            raise ValueError(
                f"{folder} belongs to a {work} with another `{name}`: got {mine.get(name)!r:.200}, expected "
                f"{recorded.get(name)!r:.200}. Give the same arguments, or another folder"
            )


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with `~` expanded; raise ValueError for the home folder of an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"unknown home folder: got {path}, expected a path without `~`") from None


def absolute_path(path: str | os.PathLike[str]) -> Path:
    """Return a user's path as an absolute one without `~` and `..`. Links keep their names, except before a `..`."""
    parts = expand_home(path).absolute().parts
    up = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    return Path(*parts[:up]).resolve() / Path(*parts[up:]) if up else Path(*parts)


def check_plain(paths: Iterable[Path]) -> None:
    """Raise ValueError for a pipe or a device, which may never end."""
    for path in paths:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is not a regular file")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file; raise ValueError where it is not regular, or a bundled file that has changed."""
    check_plain([Path(path)])
    check_bundled(Path(path))
    return Path(path).read_bytes()


def read_json(path: str | os.PathLike[str], object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Return the content of a JSON file; ValueError with its name if it is not a regular file or not valid JSON."""
    return parse_json(read_bytes(path), path, "It may be truncated or damaged", object_hook)


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the object in a JSON file; ValueError as for `read_json`, and for any other value."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object. Copy or make it again")
    return content


def parse_json(
    text: str | bytes, source: object, hint: str, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Return the content of a JSON text in UTF-8; raise ValueError, which names `source` and ends with `hint`."""
    try:
        return json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:  # errors of JSON and of UTF-8 are ValueErrors
        raise ValueError(f"{source} is not valid JSON ({error}). {hint}") from error


@contextmanager
def explain_damage(path: Path, hint: str) -> Iterator[None]:
    """Turn errors about the content of a record into a ValueError that names its file and ends with a hint."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged ({error}): {hint}") from error


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return the arrays in an .npz file; raise for one with objects, or that would unpack to far more bytes than it has."""
    packed = read_bytes(path)
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        sizes = {record.filename: record.file_size for record in archive.infolist()}
    if sizes.get("meta.npy", 0) > MAX_DESCRIPTION:  # parsing JSON takes many times the memory of its text
        raise ValueError(f"its description is too long: got {sizes['meta.npy']} bytes, expected at most {MAX_DESCRIPTION}")
    size = sum(sizes.values())
    limit = min(max(MIN_UNPACKED, MAX_RATIO * len(packed)), MAX_UNPACKED)
    if size > limit:
        raise ValueError(f"its decompressed size is too large: got {size} bytes, expected at most {limit}")
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        found = dict(arrays)
    for name, array in found.items():
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name} is not an array")
    return found


def pickled_strings(path: Path) -> list[str]:
    """Return the strings in the pickle of an archive of torch, the names of tensors among them; empty for other files.

    Nothing is unpickled.
    """
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # loading reports a damaged archive
        pickle = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(pickle) as file:
            content = file.read(MAX_DESCRIPTION)
        return [argument for _, argument, _ in pickletools.genops(content) if isinstance(argument, str)]
    return []


def read_array(name: str, values: Any, shape: tuple[int, ...], kind: type[bool] | type[float] = float) -> np.ndarray:
    """Return an array of finite float64 numbers, or of bools, from nested lists; error messages call it `name`."""
    array = np.array(values)  # raises ValueError for lists of different lengths
    if array.shape != shape:
        raise ValueError(f"{name} has the wrong shape: got {array.shape}, expected {shape}")
    is_number = array.dtype.kind in "bfiu" and bool(np.isfinite(array).all())
    if not is_number or (kind is bool and not np.isin(array, (0, 1)).all()):
        raise ValueError(f"{name} holds values other than {'0 and 1' if kind is bool else 'finite numbers'}")
    return array.astype(kind)


def check_new_folder(out: str | os.PathLike[str], source: Path | None = None) -> Path:
    """Return the setting `out` as a path; ValueError if it exists, cannot be written, or lies in the folder `source`."""
    out = expand_home(out)
    if out.exists() or out.is_symlink():
        raise ValueError(f"`out` exists: got {out}. Give a new folder.")
    if source is not None and source.resolve() in out.resolve().parents:
        raise ValueError(f"`out` lies inside the checkpoint's folder: got {out}. Give a folder outside {source}.")
    check_writable(out, out)
    return out


def check_file(out: str | os.PathLike[str] | None, may_exist: bool = False) -> None:
    """Raise ValueError if the setting `out` is given and no file can be written there, before hours of work.

    With `may_exist`, a file there is replaced.
    """
    if out is None:
        return
    out = expand_home(out)
    if out.is_dir():
        raise ValueError(f"`out` is a folder: got {out}, expected a file.")
    if out.exists() and not may_exist:
        raise ValueError(f"`out` exists: got {out}. Give another file.")
    check_writable(out.parent, out)


def check_writable(folder: Path, value: object, name: str = "out") -> None:
    """Raise ValueError if a folder, which need not exist yet, cannot be written to: the setting `name` has this `value`."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    try:  # for root, `os.access` is True even where no file can be created, as in /proc
        with tempfile.TemporaryDirectory(prefix=".", dir=place):
            pass
    except OSError as error:
        where = f"{value} ({place}: {error.strerror})"
        raise ValueError(f"`{name}` is not writable: got {where}. Give another folder.") from error


def check_bundled(path: Path) -> None:
    """Check a bundled file, or every file of a bundled folder, against its checksum, once per process."""
    if path.is_relative_to(ASSETS):
        _compare(path)


@cache
def _compare(path: Path) -> None:
    name = path.relative_to(ASSETS).as_posix()
    for listed, wanted in json.loads(CHECKSUMS.read_bytes()).items():
        if listed == name or listed.rpartition("/")[0] == name:
            file = ASSETS / listed
            if not file.is_file() or checksum(file) != wanted:
                raise ValueError(
                    f"{file} is not the file that came with das_gym: its SHA-256 differs from {CHECKSUMS.name}. Install "
                    "das_gym again; if you regenerated the file, run `python -m benchmarks.bundled checksums`"
                )


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return the absolute cache folder: DAS_GYM_CACHE, else the operating system's. ValueError if it cannot be one."""
    setting = os.environ.get(CACHE_VARIABLE, "").strip()
    if setting:
        folder = absolute_path(setting)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{CACHE_VARIABLE} is not a folder: got {setting}, expected a writable folder")
        return folder
    import platformdirs  # not needed for environments from tables

    try:
        folder = platformdirs.user_cache_path("das_gym", appauthor=False)
    except RuntimeError:  # newer versions of platformdirs; older ones return a relative path
        folder = Path()
    if not folder.is_absolute():
        raise ValueError(f"there is no home folder for the cache. Set {CACHE_VARIABLE} to a writable folder")
    return folder
