"""A folder of weights, as people have it, to a model whose layers can be skipped; nothing is downloaded."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from das_gym.bundled import check_bundled
from das_gym.files import check_plain, read_json
from das_gym.models.quiet import bars_on_terminals
from das_gym.models.sizes import MAX_LAYERS
from das_gym.models.sums import check_sums
from das_gym.models.tensor_files import check_finite, unreadable
from das_gym.models.transformers.inputs import load_processor
from das_gym.models.transformers.model import UNITS, VLM
from das_gym.models.transformers.probing import find_tower_reads, probe_capabilities, with_tower
from das_gym.models.transformers.rejecting import check_sublayers, prepare_experts
from das_gym.models.transformers.weights import source_dtype, weight_files

QUANTISED = "bitsandbytes, GPTQ, AWQ and the like pack weights, so that layers cannot be saved again as they came"

QUANTISED_BESIDE = ("quantize_config.json", "quant_config.json")
"""What AutoGPTQ and AutoAWQ wrote when config.json did not tell of them yet."""

COUNTS = ("layer", "layers", "depth", "depths", "blocks")
"""Ends of the names of settings that count layers."""

ADAPTER_OF_PEFT = "adapter_config.json"

ADAPTED = "das_adapters"
"""Key of config.json that says which adapters of DAS a model has: shrink saves it with recover=adapters."""


def load_vlm(
    checkpoint: str | Path,
    *,
    generator: torch.Generator | None = None,
    units: str = UNITS[0],
    vision: bool = False,
    dtype: str = "auto",
    device_map: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: str | Path | None = None,
    dropout: float | None = None,
    bottleneck: int | None = None,
    skip_bottleneck: int | None = None,
    projector: bool = False,
) -> VLM:
    """Load a model of transformers from its folder and find out how its layers can be skipped.

    Args:
        checkpoint: The folder, as `save_pretrained` or a download left it.
        generator: Draws the adapters.
        units: `layers`, or `sublayers`: the attention and the MLP of each.
        vision: Whether those of the vision tower may be skipped, too; they come after the decoder's, and nothing trains.
        dtype: `auto` (the checkpoint's own), `float32`, `bfloat16`, ...
        device_map: As for `from_pretrained`; needs accelerate.
        trust_remote_code: Whether code in the folder may run.
        tokenizer: Folder of the processor, where the checkpoint's holds none.
        dropout: 0 or None: such models have none.
        bottleneck: Width of the adapters before attention and MLP; whole layers have them, until a search without
            training takes them away. None follows the hidden size, see `adapters.default_widths`.
        skip_bottleneck: Width of skip adapters, likewise.
        projector: Whether what lies between vision tower and decoder trains with the adapters.

    Raises:
        FileNotFoundError: there is no such folder, or no processor in it.
        ValueError: no model that can be driven layer by layer; the text says why.
    """
    if dropout:
        raise ValueError(f"dropout={dropout}: models of transformers are adapted without; leave it out, or pass 0")
    folder = Path(checkpoint)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: pass the folder of a model of transformers")
    with _named(folder):
        _check_settings(folder, trust_remote_code)
        config = _config(folder, trust_remote_code)
        _check_quantisation(config, folder)
        _check_adapted(config, folder)
        processor = load_processor(Path(tokenizer) if tokenizer else folder, trust_remote_code)  # quick: before the weights
        options: dict[str, Any] = {"dtype": _dtype(dtype), "trust_remote_code": trust_remote_code}
        if device_map is not None:
            options["device_map"] = device_map
        if device_map is None:
            _check_room(folder, options["dtype"])
        model = _load(folder, config, options)
        vlm = VLM(model, units)
        vlm = VLM(model, units, probe_capabilities(model, vlm.processor_of(processor)))
        if vision:
            vlm = VLM(model, units, with_tower(vlm.capabilities, model, vlm.processor_of(processor)))
        vlm.source_processor = processor
        if units != UNITS[0]:
            check_sublayers(vlm, vlm.processor_of(processor))
        elif not vlm.untrainable:
            vlm.insert_adapters(bottleneck, skip_bottleneck, generator)
            if projector and vlm.processor_of(processor).sees:
                vlm.open_projector(find_tower_reads(vlm.capabilities, model, vlm.processor_of(processor)))
        return vlm


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Turn what transformers raises for a damaged folder into an error with a text of ours; all of them name it.

    Raises:
        ValueError: the folder cannot be loaded as its files say.
    """
    try:
        yield
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder}: {error}") from error
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # of a damaged configuration transformers raises whatever it stumbles over
        raise ValueError(
            f"{folder} cannot be loaded as its files say ({type(error).__name__}: {_first_line(error)}); it is damaged, or "
            "of a kind that transformers runs differently: download it again"
        ) from error


def _check_settings(folder: Path, trust_remote_code: bool) -> None:
    """Refuse a folder by which transformers would load another one, or kernels of the Hub (code), or build for ever."""
    if (folder / ADAPTER_OF_PEFT).exists():
        raise ValueError(
            f"{folder} holds {ADAPTER_OF_PEFT}, with which transformers loads whatever model that names: merge the adapter "
            "into the weights (peft's merge_and_unload), save those, and pass their folder"
        )
    check_plain(folder.rglob("*"))
    check_bundled(folder)
    path = folder / "config.json"
    settings = list(_settings(read_json(path)))
    kernel = next((v for names, v in settings if _says_how(names) and isinstance(v, str) and "/" in v), None)
    if kernel is not None and not trust_remote_code:
        raise ValueError(
            f"{path} has layers computed by {kernel!r}, which is code of others: take that out, or pass "
            "trust_remote_code=True"
        )
    for names, value in settings:
        if names and names[-1].endswith(COUNTS) and isinstance(value, int) and value > MAX_LAYERS:
            raise ValueError(f"{path} says {names[-1]}={value}, and no model has more than {MAX_LAYERS}: it is damaged")


def _says_how(names: tuple[str, ...]) -> bool:
    """Whether a setting says how attention or experts are computed."""
    return any(name.endswith(("_implementation", "_implementation_internal")) for name in names)


def _settings(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every setting of a configuration, each of a list too, with the names that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _settings(inner, (*names, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner, names)
    else:
        yield names, value


def _config(folder: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{folder / 'config.json'} is of no model that transformers knows ({_first_line(error)}); a model with code "
            "of its own needs trust_remote_code=True"
        ) from error


def _check_quantisation(config: Any, folder: Path) -> None:
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]  # Kimi K2.5 has it in a part
    how = next((found for part in parts if (found := getattr(part, "quantization_config", None)) is not None), None)
    if how is None:
        how = next((name for name in QUANTISED_BESIDE if (folder / name).is_file()), None)
    if how is not None:
        method = how.get("quant_method") if isinstance(how, dict) else getattr(how, "quant_method", how)
        raise ValueError(f"{folder} holds quantised weights ({method}): {QUANTISED}; pass the folder of the full weights")


def _check_adapted(config: Any, folder: Path) -> None:
    if hasattr(config, ADAPTED):
        raise ValueError(
            f"{folder} was made with recover=adapters or exported with DAS: das_gym's own adapters are between its layers, "
            "none of which can be skipped: pass the folder that it was made from; to have it answer, the run"
        )


def _check_room(folder: Path, dtype: Any) -> None:
    """Refuse weights that memory has no room for, before they are read."""
    import psutil

    needed = sum(path.stat().st_size for path in weight_files(folder))
    if isinstance(dtype, torch.dtype):
        needed = needed * dtype.itemsize // source_dtype(folder).itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"the weights in {folder} take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: use a smaller "
            "dtype, such as dtype=bfloat16, or device_map=auto, which spreads them over devices and disk"
        )


def _dtype(name: str) -> Any:
    if name == "auto":
        return name
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype={name!r} is no type of weights; use auto, float32, bfloat16 or float16")
    return dtype


def auto_class(config: Any) -> Any:
    """The class of transformers that loads a model of a configuration; None = it writes no answers."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kinds = (AutoModelForImageTextToText, AutoModelForCausalLM)
    brought = getattr(config, "auto_map", {})
    return next((kind for kind in kinds if type(config) in kind._model_mapping or kind.__name__ in brought), None)


def _load(folder: Path, config: Any, options: dict[str, Any]) -> Any:
    """The model; one whose weights do not fit its configuration is refused."""
    auto = auto_class(config)
    if auto is None:
        raise ValueError(f"{folder} holds a {config.model_type}, which writes no answers: pass a model that generates text")
    check_sums(folder)
    try:
        with bars_on_terminals():
            model, report = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except pickle.UnpicklingError as error:
        raise unreadable(folder, error) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"{folder} does not load in transformers: {_first_line(error)}") from error
    wrong = [*sorted(report["missing_keys"]), *sorted(str(one) for one in report["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"the weights in {folder} do not fit its config.json: {len(wrong)} are missing or have other shapes, the first "
            f"{wrong[0]}; download the folder again, or mend the configuration"
        )
    check_finite(model.named_parameters(), folder)
    return prepare_experts(model.eval().requires_grad_(False))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
