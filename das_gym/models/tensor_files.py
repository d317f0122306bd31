"""Read and write files of tensors: nothing in a file is executed, and files are written completely or not at all."""

import dataclasses
import hashlib
import json
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das_gym.files import METADATA_KEY, check_bundled, expand_home, parse_json, read_json_object, replacing

WEIGHTS = ("model.safetensors", "pytorch_model.bin")

CHECKSUM = "sha256"
"""Key of the checksum of a file of ours in its config: a flipped byte would be a wrong number."""


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file by name, each in separate memory, and the config with them (empty if there is none)."""

    path: Path
    tensors: dict[str, Tensor]
    config: Mapping[str, Any]


def read_tensors(path: str | Path) -> TensorFile:
    """Read a `.safetensors` file, a folder with config.json and weights, or a `torch.save` file; ValueError if damaged."""
    path = expand_home(path)
    if not path.exists():
        raise FileNotFoundError(
            f"no checkpoint at {path}: expected an official .ckpt file, a transformers folder, or a folder that "
            "das_gym.models.checkpoints.save_checkpoint wrote"
        )
    if path.is_dir():
        weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weights is None or not (path / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise FileNotFoundError(f"no checkpoint in {path}: got {found}, expected config.json and {' or '.join(WEIGHTS)}")
        file = dataclasses.replace(read_tensors(weights), path=path, config=read_json_object(path / "config.json"))
        about = file.config.get(METADATA_KEY)
        if isinstance(about, dict):  # an exported folder
            _compare(weights, about.get(CHECKSUM), file.tensors, {})
        return file
    if not path.is_file():
        raise ValueError(f"{path} is neither a file nor a folder: expected a checkpoint")
    return read_safetensors(path) if path.suffix == ".safetensors" else TensorFile(path, _read_state_dict(path), {})


def read_safetensors(path: Path) -> TensorFile:
    """Read a safetensors file, and the config in our metadata; ValueError if either is damaged."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise FileNotFoundError(f"no file at {path}: expected a safetensors file")
    check_bundled(path)
    try:
        with safe_open(path, "pt", backend="pread") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged, or not a safetensors file: {error}. Copy or convert it again") from error
    config = parse_json(metadata.get(METADATA_KEY, "{}"), f"the config in {path}", "write it again")
    if not isinstance(config, dict):
        raise ValueError(f"the config in {path}: got a JSON {type(config).__name__}, expected an object. Write it again")
    _compare(path, config.pop(CHECKSUM, None), tensors, config)
    return TensorFile(path, tensors, config)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write a safetensors file, completely or not at all; the config and a checksum of all are its metadata."""
    ready = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    about = json.dumps({**config, CHECKSUM: checksum(ready, config)})  # one entry: safetensors does not keep an order
    write_safetensors(path, ready, {METADATA_KEY: about})


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file of contiguous tensors on the CPU, completely or not at all."""
    from safetensors.torch import save

    with replacing(path) as part:  # `save_file` would write a file that only its owner can read
        part.write_bytes(save(tensors, metadata))


def checksum(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> str:
    """Return a SHA-256, 64 hex digits, of tensors, contiguous and on the CPU, and of the config."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):  # safetensors orders them by dtype and name when it writes
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode("utf-8", "surrogatepass"))
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _compare(path: Path, written: Any, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    if written is not None and written != checksum(tensors, config):
        raise ValueError(f"{path} is damaged: its checksum differs from the recorded one. Copy or make it again")


def check_finite(tensors: Iterable[tuple[str, Tensor]], path: Path | str) -> None:
    """Raise ValueError for a weight with NaN or infinity; the message has its name and `path`."""
    for name, tensor in tensors:
        if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
            continue
        if tensor.itemsize == 1:  # torch cannot compare numbers of 8 bits
            tensor = tensor.float()
        if not all(torch.isfinite(bound) for bound in torch.aminmax(tensor)):  # fast, and without a copy
            bad = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"{path}: {name} has {bad} NaN or infinite values of {tensor.numel()}. The file is damaged, or its training "
                "diverged: use another one"
            )


def load_plain(path: Path) -> Any:
    """Load tensors and plain values that `torch.save` wrote, on the CPU; nothing in the file runs.

    Checkpoints of METER, ViLT and others by Lightning also name classes: callbacks as keys, Sacred's `ReadOnlyDict`. Each
    name that torch does not know stands for a class of ours, which gives the plain dict or list that it was made from. Only
    zip archives may name such classes; their tensors stay in the file, mapped into memory.
    """
    check_archive(path)
    try:
        archive = _is_archive(path)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if archive else []
        stand_ins: list[Any] = [_stand_in(name) for name in names]
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a damaged or hostile file can raise anything
        raise unreadable(path, error) from error


def _stand_in(name: str) -> type:
    """Return a class with the name of one that a file names; nothing is imported or called."""

    def new(cls: type, *args: Any) -> Any:
        return args[0] if args and type(args[0]) in (dict, list) else OrderedDict()

    module, _, name = name.rpartition(".")
    return type(name, (), {"__module__": module, "__new__": new})


def unreadable(path: Path, error: Exception) -> ValueError:
    """Return the error for a file or folder that torch rejects, without torch's advice to execute it."""
    parts = re.split(r"WeightsUnpickler error:|trusted source\.", f"{type(error).__name__}: {error}")
    reason = next(part for part in reversed(parts) if part.strip()).strip().splitlines()[0].partition(". Please")[0]
    return ValueError(
        f"{path} is damaged or holds more than tensors and plain values: {reason[:200]}. Copy or download it again; if you "
        "trust it, load it where it was written and save its state_dict by safetensors.torch.save_file"
    )


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    content = load_plain(path)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise ValueError(f"{path} holds no state_dict: got a {type(content).__name__}. Save {{'state_dict': ...}} instead")
    size = path.stat().st_size
    seen = set[int]()
    tensors = {}
    for name, tensor in state.items():
        dense = isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not dense or tensor.is_quantized or tensor.is_nested:
            raise ValueError(f"{path}: got a {type(tensor).__name__} for {name!r}, expected a plain dense tensor on the CPU")
        needed = tensor.numel() * tensor.element_size()
        if needed > size:  # expanded: its storage is small
            raise ValueError(f"{path}: {name} of shape {tuple(tensor.shape)} needs {needed} bytes, more than the file has")
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in seen or storage.nbytes() != needed or not tensor.is_contiguous()
        seen.add(storage.data_ptr())
        tensors[name] = tensor.detach().clone(memory_format=torch.contiguous_format) if shared else tensor.detach()
    return tensors


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"  # as torch distinguishes them


def check_archive(path: Path) -> None:
    """Raise ValueError for an archive of torch that unpacks to more bytes than it has; others have no such records."""
    if not _is_archive(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}. Copy or download it again") from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):  # as torch.save never does
        raise ValueError(f"{path} is damaged: it has compressed records. Copy or download it again")
    if sum(record.file_size for record in records) > path.stat().st_size:
        raise ValueError(f"{path} is damaged: its records have more bytes than the file. Copy or download it again")
