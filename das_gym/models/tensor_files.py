"""Tensors out of and into files: nothing in a file is ever executed, and files are written whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das_gym.files import read_json, replacing
from das_gym.models.pickles import Left, load_pickle

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""What the weights of a folder may be called."""

METADATA_KEY = "das_gym"
"""Where our safetensors files hold their model's config, as JSON."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, each in memory of its own, and the config beside them (empty = none)."""

    path: Path
    tensors: dict[str, Tensor]
    config: Mapping[str, Any]


def read_tensors(path: str | Path) -> TensorFile:
    """Read a checkpoint file, or a folder with config.json and weights.

    Args:
        path: A `.safetensors` file, a folder, or any other file that `torch.save` wrote.

    Raises:
        FileNotFoundError: nothing is there, or the folder has no weights or no config.json.
        ValueError: the file is damaged, holds no tensors, or holds more than tensors and plain containers.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {path}; give an official .ckpt file, a transformers folder, "
            "or a folder or .safetensors file of ours (`python -m adapt convert with source=IN out=OUT` writes one)"
        )
    if path.is_dir():
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None or not (path / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"{path} needs config.json and one of {', '.join(WEIGHTS)}; it holds {found}")
        return TensorFile(path, read_tensors(weights).tensors, _read_config(path / "config.json"))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return TensorFile(path, _read_pickle(path), {})


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a JSON {type(config).__name__}, not an object; copy it again")
    return config


def _read_safetensors(path: Path) -> TensorFile:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt", backend="pread") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}; copy or convert it again") from error
    try:
        config = json.loads(metadata.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise ValueError(f"{path} has a config that is not JSON: {error}; convert it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} has a config that is a JSON {type(config).__name__}, not an object; convert it again")
    return TensorFile(path, tensors, config)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    check_archive(path)
    try:
        content = load_pickle(path)
    except Exception as error:  # a damaged or hostile pickle can raise anything
        told = _describe(error).splitlines()[0][:200]
        raise ValueError(f"{path} is damaged or no checkpoint: {told}; copy or download it again") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} holds a {_kind(content)} without a state_dict; save {{'state_dict': ...}} instead")
    size, seen, tensors = path.stat().st_size, set[int](), {}
    for name in list(state):
        tensor = state.pop(name)
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            name = name if isinstance(name, str) else _kind(name)
            raise ValueError(
                f"{path} is not a checkpoint: its entry {name!r} is a {_kind(tensor)}; only plain dense tensors are read"
            )
        tensors[name] = _owned(path, name, tensor.detach(), size, seen)
    return tensors


def _kind(value: Any) -> str:
    """The name of a value's class, or the one that a pickle gives it."""
    kind = value if isinstance(value, type) else type(value)
    return kind.kind if issubclass(kind, Left) else kind.__name__


def check_archive(path: Path) -> None:
    """Compare every record of a zip archive with its checksum, which torch does not.

    Raises:
        ValueError: one differs, or the archive is none.
    """
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise zipfile.BadZipFile(f"record {record.filename} is compressed, as torch.save never does")
                if record.external_attr & 0x10:  # torch reads nothing of what is marked as a folder
                    raise zipfile.BadZipFile(f"record {record.filename} is marked as a folder")
                if record.CRC == 0:  # written with torch.serialization.set_crc32_options(False)
                    continue
                with archive.open(record) as stream:
                    while stream.read(2**22):
                        pass
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"{path} is damaged: {_describe(error)}; copy or download it again") from error


def _describe(error: Exception) -> str:
    """An error in words, also where it has none of its own."""
    return str(error) if len(str(error)) > 10 else f"{type(error).__name__} {error}".strip()


def _owned(path: Path, name: str, tensor: Tensor, file_size: int, seen: set[int]) -> Tensor:
    """The tensor with memory that it shares with no other."""
    needed = tensor.numel() * tensor.element_size()
    if needed > file_size:
        raise ValueError(f"{path}: {name} of shape {tuple(tensor.shape)} needs {needed} bytes, more than the file has")
    storage = tensor.untyped_storage()
    shared = storage.data_ptr() in seen or storage.nbytes() != needed or not tensor.is_contiguous()
    seen.add(storage.data_ptr())
    return tensor.clone(memory_format=torch.contiguous_format) if shared else tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a safetensors file with the config in its metadata, whole or not at all."""
    from safetensors.torch import save_file

    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    with replacing(path) as part:
        save_file(ready, part, metadata={METADATA_KEY: json.dumps(config)})
        part.chmod(0o644)


def _replaceable(folder: Path) -> bool:
    """Whether the folder is empty or one of ours."""
    if not folder.is_dir():
        return False
    config = folder / "config.json"
    return not any(folder.iterdir()) or (config.is_file() and "model" in _read_config(config))


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Write a folder whole or not at all.

    Args:
        folder: Where; replaced if it is an earlier checkpoint folder of ours or empty.
        fill: Writes the content into the folder it is given.

    Raises:
        FileExistsError: something else is there.
    """
    if folder.exists() and not _replaceable(folder):
        raise FileExistsError(f"{folder} exists and is not a checkpoint folder; give another name or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    fresh, old = beside / "new", beside / "old"
    try:
        fresh.mkdir()
        fill(fresh)
        if folder.exists():
            folder.replace(old)
        try:
            fresh.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
