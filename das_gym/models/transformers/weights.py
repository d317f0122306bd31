"""The files of a folder that hold a model's weights: which they are, and of which type and size, their content unread."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from das_gym.files import parse_json, read_json
from das_gym.models.tensor_files import read_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_KEYS = ("dtype", "torch_dtype")
INDEX = "model.safetensors.index.json"
INDICES = (INDEX, "pytorch_model.bin.index.json")
"""What tells of weights in several files."""

MAX_HEADER = 10**8
"""Bytes of a header. Source: safetensors' own limit."""

WHOLE = "1000GB"
"""Shard size of a model that was in one file."""


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads weights from: safetensors, or else torch's own."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    return found or sorted(folder.glob("pytorch_model*.bin"))


def source_dtype(folder: Path) -> torch.dtype:
    """The type that most of the weights of a folder have; of torch's own files what its configuration says, if it does."""
    counts, files = Counter[Any](), weight_files(folder)
    for path in files:
        if path.suffix == ".safetensors":
            for entry in _tensors_of(path):
                counts[DTYPES.get(entry["dtype"])] += entry["data_offsets"][1] - entry["data_offsets"][0]
    named = None if counts else _named_dtype(folder)
    if files and not counts and named is None:
        smallest = min(files, key=lambda path: path.stat().st_size)
        counts.update(tensor.dtype for tensor in read_tensors(smallest).tensors.values())
    known = [dtype for dtype, _ in counts.most_common() if dtype in DTYPES.values()]
    return known[0] if known else named or torch.float32


def loaded_dtype(folder: Path) -> torch.dtype:
    """The type that `dtype="auto"` computes in: what the configuration says, or else that of the weights."""
    return _named_dtype(folder) or source_dtype(folder)


def _named_dtype(folder: Path) -> torch.dtype | None:
    """The type that a configuration names."""
    config = read_json(folder / "config.json")
    places = (config, config.get("text_config") or {})
    named = next((place[key] for place in places for key in DTYPE_KEYS if place.get(key)), "")
    found = getattr(torch, str(named), None)
    return found if isinstance(found, torch.dtype) else None


def _tensors_of(path: Path) -> list[dict[str, Any]]:
    """What a file of safetensors says of each tensor; nothing else of it is read."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(path.stat().st_size, MAX_HEADER):
            raise ValueError(f"{path} is not a whole safetensors file: its header has {length} bytes, it says")
        header = parse_json(file.read(length), f"the header of {path}", "copy it again")
    try:
        entries = [entry for name, entry in header.items() if name != "__metadata__"]
        return [{"dtype": str(e["dtype"]), "data_offsets": [int(at) for at in e["data_offsets"]]} for e in entries]
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error!r}); copy it again") from error


def shard_size(folder: Path) -> str:
    """The size of a folder's largest shard, as `save_pretrained` takes it; enough for one file where there is one."""
    if not any((folder / name).is_file() for name in INDICES):
        return WHOLE
    sizes = [
        max(entry["data_offsets"][1] for entry in _tensors_of(path))
        if path.suffix == ".safetensors"
        else path.stat().st_size
        for path in weight_files(folder)
    ]
    return f"{-(-max(sizes) // 1000)}KB"
