"""A model written as a folder that transformers loads, whole or not at all."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from das_gym.files import read_json, whole_folder, write_json
from das_gym.models.quiet import bars_on_terminals
from das_gym.models.sums import SUMS, write_sums
from das_gym.models.transformers.inserted_adapters import has_adapters, write_code
from das_gym.models.transformers.weights import DTYPE_KEYS, shard_size, weight_files

WEIGHTS = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"),
    *(".onnx", ".onnx_data", ".msgpack", ".h5", ".npz"),
)
"""Ends of the names of files that hold weights."""

NOT_COPIED = ("config.json", "readme.md", "training_args.bin", "adapter_config.json", SUMS.lower())

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)
"""Of a disk that does not take any more."""

SPARE_BYTES = 2**26
"""Room on the disk beside the weights: tokenizer, processor, run folder."""


def saved_dtype(source: torch.dtype, computed: torch.dtype) -> torch.dtype:
    """The type to save in: the source's, unless what was computed in has fewer bits."""
    return source if source.itemsize <= computed.itemsize else computed


def check_out(out: Path, checkpoint: Path, room: int) -> None:
    """Refuse a place that a folder cannot be written to.

    Args:
        out: The folder to write.
        checkpoint: The folder that it comes from.
        room: Bytes that it may take.

    Raises:
        ValueError: it is there, it lies in the checkpoint's folder, or the disk is too full.
    """
    if out.exists() or out.is_symlink():
        raise ValueError(f"out={out} is there already, and nothing is ever written over: give a new folder")
    if checkpoint.resolve() in out.resolve().parents:
        raise ValueError(f"out={out} lies in checkpoint={checkpoint}: give a folder outside it")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK)):
        raise ValueError(f"out={out} cannot be made: {there} is no folder that can be written to; give another")
    free = shutil.disk_usage(there).free
    if free < room + SPARE_BYTES:
        raise ValueError(
            f"out={out} may take {_mib(room + SPARE_BYTES)} and its disk has {_mib(free)} left: make room, or give a folder "
            "on another disk"
        )


def _mib(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place when the block ends without an error; else nothing is left.

    Raises:
        ValueError: it cannot be written, or `out` has come to be there.
    """
    try:
        with whole_folder(out) as part:
            yield part
            if out.exists():
                raise ValueError(
                    f"out={out} has come to be there meanwhile, and nothing is ever written over: give a new folder"
                )
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise ValueError(
            f"out={out} could not be written ({error.strerror}); nothing is left of it: make room and resume"
        ) from error


def rounded(model: Any, dtype: torch.dtype) -> None:
    """Round a model's parameters, in place, to what they are once saved in `dtype`; those that are it already stay.

    Raises:
        FloatingPointError: a parameter is not finite, or beyond what `dtype` holds.
    """
    made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # what is tied stays so
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point():
                continue
            value = parameter.detach().to(dtype).to(parameter.dtype)
            if not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"{path}.{name} is not finite in {str(dtype).removeprefix('torch.')}: recover at a lower learning_rate, "
                    "or begin with weights in bfloat16 or float32"
                )
            if not torch.equal(value, parameter):
                module._parameters[name] = made.setdefault(parameter, torch.nn.Parameter(value, requires_grad=False))


def save(model: Any, folder: Path, source: Path, processor: Path, dtype: torch.dtype, trusted: bool = False) -> None:
    """Write configuration, weights with their checksums, and everything else that lay beside the source's weights.

    Args:
        model: A model of transformers.
        folder: An empty folder.
        source: The folder that it comes from.
        processor: The folder of its processor, mostly the same.
        dtype: Of the saved weights.
        trusted: Whether the source's own code may run. Otherwise a folder with our code, which is loaded with
            trust_remote_code=True, has none of it.
    """
    plain = model if model.dtype == dtype else copy.deepcopy(model).to(dtype)
    coded = has_adapters(model)  # transformers renames no weights for code that is not its own
    with bars_on_terminals():
        plain.save_pretrained(folder, max_shard_size=shard_size(source), save_original_format=not coded)
    for path in weight_files(folder):  # safetensors leaves them to their owner alone
        path.chmod((folder / "config.json").stat().st_mode & 0o777)
    _name_dtype(folder, source)
    if coded:
        write_code(folder, model)
    for origin in dict.fromkeys((source, processor)):  # byte for byte: nothing of tokens or pictures may change
        for name in _beside_weights(origin):
            if coded and not trusted and name.suffix == ".py":
                continue
            if origin == processor or not (folder / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(origin / name, folder / name)
    write_sums(folder)


def _name_dtype(folder: Path, source: Path) -> None:
    """Have a configuration name the type that the source's names, which need not be that of the weights."""
    config, before = read_json(folder / "config.json"), read_json(source / "config.json")
    parts = [(config, before)]
    parts += [(config[n], before[n]) for n in config if isinstance(config[n], dict) and isinstance(before.get(n), dict)]
    for mine, its in parts:
        named = next((its[key] for key in DTYPE_KEYS if its.get(key)), None)
        if named is not None and "dtype" in mine:
            mine["dtype"] = named
        elif mine is not config:  # else it would be what was computed in
            mine.pop("dtype", None)
    write_json(folder / "config.json", config, indent=2)


def _beside_weights(folder: Path) -> Iterator[Path]:
    """Files that belong to a model besides its weights, by their place in its folder.

    Nothing hidden, no cache, no folder behind a link, and no sub-folder that holds weights, which is a model of its own.
    """
    for path in _seen(folder):
        if path.is_file() and path.name.lower() not in NOT_COPIED and not _is_weights(path):
            yield Path(path.name)
        elif path.is_dir() and not path.is_symlink():
            yield from (inner.relative_to(folder) for inner in _below(path))


def _below(folder: Path) -> list[Path]:
    """All files of a sub-folder and of those in it, but for those that `_beside_weights` leaves out."""
    there = _seen(folder)
    files = [path for path in there if path.is_file()]
    if any(_is_weights(path) for path in files):
        return []
    inner = [path for path in there if path.is_dir() and not path.is_symlink()]
    return files + [path for each in inner for path in _below(each)]


def _seen(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))


def _is_weights(path: Path) -> bool:
    return path.name.lower().endswith((*WEIGHTS, ".index.json"))
