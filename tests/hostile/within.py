"""What lies behind a checksum: the file is made anew around the bytes that are tried, or no reader would come to them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from das_gym.models.tensor_files import read_tensors, write_tensors
from das_gym.problem.adaptation import Adaptation
from das_gym.tables.table import SubnetTable
from tests.tables.test_table import make_grouped_table, make_table

TENSORS = {"a": torch.arange(6.0), "b.c": torch.ones(2, 3)}
DESCRIBED = {"format": "das_gym adaptation 1", "task": "vqa", "answers": ["yes"], "base": "0", "mask": [1, 0], "info": {}}


def replaced(archive: Path, out: Path, end: str, content: bytes) -> None:
    """A zip archive with other bytes in the record whose name ends so."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(out, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, content if record.filename.endswith(end) else old.read(record))


def record_of(make: Callable[[Path], Any], end: str, read: Callable[[Path], Any], suffix: str) -> tuple[str, Any, Any]:
    """File, writer and reader for the bytes of one record of an archive."""

    def write(path: Path) -> None:
        make(path.with_name("whole"))
        with zipfile.ZipFile(path.with_name("whole")) as archive:
            name = next(name for name in archive.namelist() if name.endswith(end))
            path.write_bytes(archive.read(name))

    def read_within(path: Path) -> None:
        out = path.with_name(f"{path.name}.{suffix}")
        replaced(path.with_name("whole"), out, end, path.read_bytes())
        read(out)

    return "record", write, read_within


def described(path: Path) -> None:
    """Read an adaptation file that describes itself by a JSON text; nothing else can stand there."""
    try:
        about = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return
    if isinstance(about, dict):
        out = path.with_name(f"{path.name}.safetensors")
        write_tensors(out, TENSORS, about)
        Adaptation.load(out)


def table_described(path: Path) -> None:
    """The same of a table."""
    out = path.with_name(f"{path.name}.npz")
    with np.load(path.with_name("whole.npz")) as arrays:
        np.savez(out, **{**arrays, "meta": np.array(path.read_bytes().decode("utf-8", "replace").rstrip("\0"))})
    SubnetTable.load(out)


def write_table_described(path: Path) -> None:
    make_table().save(path.with_name("whole.npz"))
    with np.load(path.with_name("whole.npz")) as arrays:
        path.write_text(str(arrays["meta"]))


def table_of(end: str, make: Callable[[], SubnetTable]) -> tuple[str, Any, Any]:
    return record_of(lambda path: make().save(path), end, SubnetTable.load, "npz")


WITHIN: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {
    "archive's pickle": record_of(
        lambda path: torch.save({"state_dict": TENSORS, "x": Path}, path), "data.pkl", read_tensors, "ckpt"
    ),
    "adaptation's description": ("a.json", lambda path: path.write_text(json.dumps(DESCRIBED)), described),
    "table's description": ("a.json", write_table_described, table_described),
    "table's losses": table_of("reward_losses.npy", make_table),
    "table's macs": table_of("macs.npy", make_table),
    "table's groups": table_of("group_statistics.npy", make_grouped_table),
}
"""File, what writes it, and what reads the file around it."""
