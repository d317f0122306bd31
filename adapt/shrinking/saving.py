"""Write a model as a folder that transformers loads. An interrupted or failed save leaves no folder."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from das_gym.commands.progress import bars_on_terminals
from das_gym.files import read_json, replacing, write_json
from das_gym.models.formats import remove_code_settings
from das_gym.models.source_files import MODEL_FILES, is_processor_file, source_files
from das_gym.models.transformers.inputs import load_folder_tokenizer
from das_gym.models.transformers.loading import (
    DTYPE_KEYS,
    WEIGHTS_VARIANT,
    own_code,
    weight_files,
    write_checksums,
    write_code,
)
from das_gym.models.transformers.model import VLM

SAMPLE_TEXT = "How many cats are there? 12 of them, na\u00efve ones."
"""A text on which a copied tokenizer is compared with the source's."""


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
        with replacing(out, is_folder=True) as part:
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
) -> list[Path]:
    """Write configuration, weights and code with checksums, and copy other files; see `copy_source_files`.

    With `names_dtype` the configuration names `dtype`, not the source's dtype. Return the files that were not copied.
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
    left_out = copy_source_files(folder, source, processor, has_remote_code)
    if code is not None:
        write_code(folder, model, code)
    write_checksums(folder)
    return left_out


def check_source_files(vlm: VLM, source: Path, processor: Path, has_remote_code: bool = False) -> list[Path]:
    """Check what `save` will copy, before a search or a training; return the files that will be left out.

    Args:
        vlm: The model that was loaded from these folders.
        source: The folder of its configuration and weights.
        processor: The folder of its processor or tokenizer, which may be `source`.
        has_remote_code: Whether the source's code is trusted, and copied.

    Raises:
        ValueError: A file cannot be copied, or the tokenizer needs a file of an unknown name.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        vlm.model.config.save_pretrained(folder)
        left_out = copy_source_files(folder, source, processor, has_remote_code)
        if has_remote_code:
            return left_out
        try:
            found = load_folder_tokenizer(folder)
        except FileNotFoundError:
            found = None
    wanted = getattr(vlm.source_processor, "tokenizer", vlm.source_processor)
    if found is None or len(found) != len(wanted) or found(SAMPLE_TEXT)["input_ids"] != wanted(SAMPLE_TEXT)["input_ids"]:
        raise ValueError(
            f"the tokenizer in {processor} needs files whose names transformers does not define. Save it in another form: "
            f"`AutoProcessor.from_pretrained({str(processor)!r}).save_pretrained(NEW)`, and pass tokenizer=NEW."
        )
    return left_out


def copy_source_files(folder: Path, source: Path, processor: Path, has_remote_code: bool = False) -> list[Path]:
    """Copy the processor's files, legal texts and settings of generation into a folder; return files that are left out.

    A folder with code of das_gym is loaded with trust_remote_code=True, which runs all code that the folder names. So unless
    the source's code is trusted, only files of known names are copied, and settings that name code are removed.

    Args:
        folder: Where a model is saved.
        source: The folder that the model came from.
        processor: The folder of its processor or tokenizer, which may be `source`.
        has_remote_code: Whether the source's code is trusted, and copied.
    """
    copied, left_out = source_files(source, has_remote_code)
    targets = {path: path.relative_to(source) for path in copied if processor == source or not is_processor_file(path)}
    if processor != source:
        copied, others = source_files(processor, has_remote_code)
        left_out += others
        names = {path: path.relative_to(processor) for path in copied if path.name not in MODEL_FILES}
        targets |= {path: name for path, name in names.items() if name not in targets.values()}
    for path, name in targets.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    if not has_remote_code:
        remove_code_settings(folder)
    return left_out


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
