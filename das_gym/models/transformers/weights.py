"""The files of a folder that hold a model's weights: which they are, of which dtype, and their checksums."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from das_gym.files import checksum, read_json, write_text
from das_gym.models.tensor_files import read_tensors

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_KEYS = ("dtype", "torch_dtype")

SUMS = "SHA256SUMS"
"""The file of the checksums of a folder's weights and code, as `sha256sum --check` reads it."""


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers loads weights from: safetensors, or else torch's own."""
    found = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors"))
    return found or sorted(folder.glob("pytorch_model*.bin"))


def source_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of most weights in a folder; for torch's own files, the configuration's. ValueError if damaged."""
    from safetensors import SafetensorError, safe_open

    counts = Counter[Any]()
    files = weight_files(folder)
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt") as file:
                    for part in (file.get_slice(name) for name in file.keys()):  # noqa: SIM118 - no mapping
                        counts[DTYPES.get(part.get_dtype())] += torch.Size(part.get_shape()).numel()
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged ({error}). Copy it again.") from error
    named = None if counts else _named_dtype(folder)
    if files and not counts and named is None:
        smallest = min(files, key=lambda path: path.stat().st_size)
        counts.update(tensor.dtype for tensor in read_tensors(smallest).tensors.values())
    known = [dtype for dtype, _ in counts.most_common() if dtype in DTYPES.values()]
    return known[0] if known else named or torch.float32


def loaded_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a model loaded with `dtype="auto"`: the configuration's, or else that of the weights."""
    return _named_dtype(folder) or source_dtype(folder)


def _named_dtype(folder: Path) -> torch.dtype | None:
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} holds a {type(config).__name__}, expected an object. Copy it again")
    places = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    named = next((place[key] for place in places for key in DTYPE_KEYS if place.get(key)), "")
    found = getattr(torch, str(named), None)
    return found if isinstance(found, torch.dtype) else None


def write_checksums(folder: Path) -> None:
    """Write the checksums of all safetensors files and all code of a folder into it."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.py")])
    lines = [f"{checksum(path)}  {path.name}\n" for path in files]
    write_text(folder / SUMS, "".join(lines))


def verify_checksums(folder: Path) -> bool:
    """Compare a folder's files with its checksums, and return True if it has any.

    Raises:
        ValueError: a file differs or is missing, or the folder has code without a checksum.
    """
    path = folder / SUMS
    if not path.is_file():
        return False
    unknown = {code.name for code in folder.glob("*.py")}
    advice = f"Copy the folder again; if you changed the file yourself, remove {SUMS}"
    for line in path.read_text("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line)
        if match is None:
            raise ValueError(f"{path} is damaged: got {line[:80]!r}, expected a checksum and a name. {advice}")
        file = folder / match[2]
        if not file.is_file():
            raise ValueError(f"{folder} lacks {match[2]}, which {SUMS} names. {advice}")
        if checksum(file) != match[1]:
            raise ValueError(f"{file} is damaged: its checksum differs from the recorded one. {advice}")
        unknown.discard(match[2])
    if unknown:
        raise ValueError(f"{folder / min(unknown)} is code without a checksum in {SUMS}. {advice}")
    return True
