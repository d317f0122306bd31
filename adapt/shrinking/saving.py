"""Write a model as a folder that transformers loads. An interrupted or failed save leaves no folder."""

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das_gym.commands.progress import bars_on_terminals
from das_gym.files import read_json, replacing_folder, write_json
from das_gym.models.formats import remove_code_settings
from das_gym.models.transformers.loading import (
    CHECKSUM_FILE,
    DTYPE_KEYS,
    WEIGHTS_VARIANT,
    own_code,
    weight_files,
    write_checksums,
    write_code,
)

WEIGHT_SUFFIXES = (
    *(".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".onnx_data", ".msgpack", ".h5", ".npz"),
    ".index.json",
)
NOT_COPIED = ("config.json", "readme.md", "training_args.bin", "adapter_config.json", CHECKSUM_FILE.lower())

COPIED_NAMES = re.compile(
    # settings, and words of tokenizers
    r"(generation_config|tokenizer_config|processor_config|preprocessor_config|video_preprocessor_config"
    r"|special_tokens_map|chat_template|tokenizer|added_tokens|vocab|tekken)\.json"
    r"|.*\.(jinja|model|spm|tiktoken|bpe|txt)"
    # legal texts
    r"|(licen[cs]e|notice|copying|copyright|use_policy)[^/]*(?<!\.py)"
)
"""Names, in lower case, of the files that are copied from a folder whose code is not trusted: nothing else can name code."""


def saved_dtype(source: torch.dtype, computed: torch.dtype, wanted: str = "auto") -> torch.dtype:
    """Return the type to save in: the wanted one; with `auto` the source's, unless the computation had fewer bits."""
    if wanted != "auto":
        return getattr(torch, wanted)
    return source if source.itemsize <= computed.itemsize else computed


def describe_dtype(source: torch.dtype, computed: torch.dtype, wanted: str, setting: str) -> str:
    """Return which dtype `saved_dtype` chose, and how to keep the precision of the training where it is lost."""
    saved = saved_dtype(source, computed, wanted)
    name, own, training = (str(each).removeprefix("torch.") for each in (saved, source, computed))
    keep = f"; {setting}={training} keeps more" if computed.itemsize > saved.itemsize else ""
    return f"saved in {name} (the source is in {own}, it was computed in {training}{keep})"


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `out` if the block succeeds; ValueError if `out` exists or cannot be written."""
    try:
        with replacing_folder(out) as part:
            yield part
            if out.exists():
                raise ValueError(f"`out` exists by now: {out}. Give a new folder.")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(f"cannot write `out` {out} ({error.strerror}). Make room, then run or resume it.") from error


def round_parameters(model: Any, dtype: torch.dtype) -> None:
    """Round parameters, in place, to what `dtype` stores; FloatingPointError for infinity. Unchanged ones stay shared."""
    replacements: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # tied parameters stay tied
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_floating_point():
                continue
            value = parameter.detach().to(dtype).to(parameter.dtype)
            if not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"{path}.{name} is not finite in {str(dtype).removeprefix('torch.')}. Recover with a lower "
                    "`learning_rate`, or start from bfloat16 or float32 weights."
                )
            if not torch.equal(value, parameter):
                new = torch.nn.Parameter(value, requires_grad=False)
                module._parameters[name] = replacements.setdefault(parameter, new)


def save(
    model: Any,
    folder: Path,
    source: Path,
    processor: Path,
    dtype: torch.dtype,
    has_remote_code: bool = False,
    names_dtype: bool = False,
) -> None:
    """Write configuration, weights and code with checksums, and other files of the folders of source and processor.

    A folder with code of das_gym is loaded with trust_remote_code=True, which runs all code that the folder names. So unless
    the source's code is trusted (`has_remote_code`), only files of known names are copied, and settings that name code are
    left out. With `names_dtype` the configuration names `dtype`, not the source's dtype.
    """
    code = own_code(model)
    own: dict[str, Any] = {}
    if code is not None:  # transformers renames no weights for code that is not its own
        own = {"save_original_format": False, "variant": WEIGHTS_VARIANT}
    if model.dtype != dtype:
        own["state_dict"] = rounded_state(model, dtype)
    with bars_on_terminals():
        model.save_pretrained(folder, **own)
    for path in weight_files(folder):  # safetensors makes files that their owner alone can read
        path.chmod((folder / "config.json").stat().st_mode & 0o777)
    _set_config_dtype(folder, source, dtype, names_dtype)
    for origin in dict.fromkeys((source, processor)):
        for path in _other_files(origin, has_remote_code):
            target = folder / path.relative_to(origin)
            if origin == processor or not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    if not has_remote_code:
        remove_code_settings(folder)
    if code is not None:
        write_code(folder, model, code)
    write_checksums(folder)


def rounded_state(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a model's state dict on the CPU with floating-point tensors in `dtype`; tied tensors are one tensor."""
    converted: dict[int, Tensor] = {}
    state = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in converted:
            value = tensor.detach().cpu()
            converted[id(tensor)] = value.to(dtype) if value.is_floating_point() else value
        state[name] = converted[id(tensor)]
    return state


def _set_config_dtype(folder: Path, source: Path, dtype: torch.dtype, names_dtype: bool) -> None:
    """Set the dtype in config.json: the saved one with `names_dtype`, otherwise the one in the source's config.json.

    The source's dtype may differ from that of its weights. If it names none, the weights' own is written.
    """
    config = read_json(folder / "config.json")
    before = read_json(source / "config.json")
    saved = str(dtype).removeprefix("torch.")
    nested = [name for name, value in config.items() if isinstance(value, dict) and isinstance(before.get(name), dict)]
    for mine, theirs in ((config, before), *((config[name], before[name]) for name in nested)):
        named = next((theirs[key] for key in DTYPE_KEYS if theirs.get(key)), None)
        if names_dtype or (named is None and mine is config):
            named = saved
        if named is not None and "dtype" in mine:
            mine["dtype"] = named
        elif mine is not config:  # otherwise it would be the dtype of the computation
            mine.pop("dtype", None)
    write_json(folder / "config.json", config, indent=2)


def _other_files(folder: Path, has_remote_code: bool, inner: bool = False) -> list[Path]:
    """Return the files of a model's folder except weights, including those in sub-folders.

    Hidden files, caches and linked folders are left out, and so are sub-folders with weights, which are other models.
    Without trusted code, files are those of `COPIED_NAMES`.
    """
    paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__pycache__")))
    files = [path for path in paths if path.is_file()]
    others = [path for path in files if not path.name.lower().endswith(WEIGHT_SUFFIXES)]
    if inner and len(others) < len(files):
        return []
    if not has_remote_code:
        found = [path for path in others if COPIED_NAMES.fullmatch(path.name.lower())]
    else:
        found = [path for path in others if inner or path.name.lower() not in NOT_COPIED]
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            found += _other_files(path, has_remote_code, inner=True)
    return found
