"""Folders of models of transformers: loading one, which of its files hold weights, and the code that a saved one carries.

Nothing is downloaded. A saved folder carries code if its model is not one of transformers' own: adapters were inserted, or
parts of layers removed.
"""

import contextlib
import copy
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from das_gym.commands.progress import bars_on_terminals
from das_gym.files import check_bundled, check_plain, checksum, read_json, read_json_object, write_json, write_text
from das_gym.models.formats import MAX_LAYERS, copy_code
from das_gym.models.source_files import check_links
from das_gym.models.tensor_files import check_finite, read_tensors, unreadable
from das_gym.models.transformers.inputs import PromptProcessor, load_processor
from das_gym.models.transformers.model import VLM, prepare_experts
from das_gym.models.transformers.modeling_removed_sublayers import SUBLAYERS
from das_gym.models.transformers.probing import (
    add_tower,
    check_sublayers,
    find_tower_reads,
    probe_capabilities,
)
from das_gym.models.transformers.units import UNITS
from das_gym.names import first_line

LAYER_COUNT_ENDINGS = ("layer", "layers", "depth", "depths", "blocks")
"""Ends of the names of settings that count layers."""

ADAPTERS_KEY = "das_adapters"
"""Key of config.json for adapters in a model, which shrink saves with `recover=adapters` and `recover=linear`."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
DTYPE_KEYS = ("dtype", "torch_dtype")

CHECKSUM_FILE = "SHA256SUMS"
"""The file of the checksums of a folder's weights and code, as `sha256sum --check` reads it."""

WEIGHTS_VARIANT = "trust_remote_code"
"""In the names of such a folder's files of weights: `model.trust_remote_code.safetensors`.

Without `trust_remote_code=True`, transformers would load its own class and fill weights that are missing with noise, of
which it only prints a report. It does not look for files of this name, so that it raises.
"""

REMOVED = ("das_gym.models.transformers.modeling_removed_sublayers",)
INSERTED = ("das_gym.models.transformers.modeling_das_adapters", "das_gym.models.adapters", *REMOVED)

CODE_TEMPLATE = '''

from transformers import {auto}, {base}  # noqa: E402


class {name}({base}):
    """A {base} of transformers, changed as `{key}` of its configuration says."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        {change}(self, config.{key})

    # transformers' own class must not load these weights: it would fill what it misses with noise. So they lie in files
    # that it does not look for.
    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        return super().from_pretrained(*args, **{{"variant": "{variant}", **kwargs}})

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        # transformers translates names of weights to older ones, and back for its own classes alone
        super().save_pretrained(*args, **{{"variant": "{variant}", "save_original_format": False, **kwargs}})


# Pipelines print an error for a class that is not registered. It must not be registered for the configuration's own class:
# transformers would load every other model of this type with it.
_Config = type({name}.config_class.__name__, ({name}.config_class,), {{}})
{auto}.register(_Config, {name}, exist_ok=True)
'''
"""The end of the folder's code."""


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
    only_runs: bool = False,
) -> VLM:
    """Load a transformers model from its folder, and find out how its layers can be skipped.

    `units`, `vision`, `dtype`, `device_map`, `trust_remote_code` and `tokenizer` are those of
    `das_gym.problem.config.ProblemConfig`. Units that are layers have adapters, until a search without training takes them
    away: `generator` draws them, and `bottleneck` and `skip_bottleneck` are their widths (None: `units.default_widths`).
    With `projector`, the projector between vision tower and decoder trains, too. With `only_runs`, nothing is skipped or
    trained, and folders with code of ours load. Such models have no `dropout`.

    Raises:
        FileNotFoundError: The folder or its processor is missing.
        ValueError: The model is not supported, or the folder is damaged, with the reason.
    """
    if dropout:
        raise ValueError(f"Invalid `dropout`: got {dropout}, expected 0. Models of transformers have none.")
    folder = Path(checkpoint)
    check_is_model(folder)
    with _naming(folder):
        check_folder(folder, trust_remote_code)
        verify_checksums(folder)  # before the folder's code runs
        config = _read_config(folder, trust_remote_code, only_runs)
        processor = load_processor(Path(tokenizer) if tokenizer else folder, trust_remote_code)  # quick: before the weights
        options: dict[str, Any] = {"dtype": read_dtype(dtype), "trust_remote_code": trust_remote_code}
        if device_map is None:
            _check_memory(folder, options["dtype"])
        else:
            options["device_map"] = device_map
        model = _load(folder, config, options)
        vlm, wrapped = _wrap(model, processor, units, vision, only_runs)
        if not vlm.untrainable and not only_runs:
            vlm.insert_adapters(bottleneck, skip_bottleneck, generator)
            if projector and wrapped.takes_images:
                vlm.open_projector(find_tower_reads(vlm.capabilities, model, wrapped))
        return vlm


def wrap_live(model: Any, processor: Any, generator: torch.Generator, units: str = UNITS[0], vision: bool = False) -> VLM:
    """Return a model in memory as `load_vlm` returns that of a folder; the model itself stays as it is.

    Args:
        model: A model of transformers that generates text. Its parameters are shared, not copied.
        processor: Its processor, or the tokenizer of a text model.
        generator: Draws the adapters.
        units: What can be skipped, see `das_gym.problem.config.Scoring`.
        vision: Whether layers of the vision tower can be skipped too.

    Raises:
        TypeError: `model` is not a model of transformers, or `processor` not a processor.
        ValueError: The model is not supported, with the reason.
    """
    check_live(model, processor)
    with _naming("`model`"):
        check_config(model.config, f"{type(model).__name__} in memory")
        own = frozen_copy(model)
        _check_spread(own)
        check_finite(own.named_parameters(), "`model`")
        vlm, _ = _wrap(prepare_experts(own), copy.deepcopy(processor), units, vision)
        if not vlm.untrainable:
            vlm.insert_adapters(None, None, generator)
        return vlm


def check_live(model: Any, processor: Any) -> None:
    """Raise TypeError or ValueError unless these are a model of transformers with a language head, and its processor."""
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    name = type(model).__name__
    if hasattr(model, "peft_config"):
        raise ValueError(f"`model` has adapters of peft: got {name}. Merge it first: model = model.merge_and_unload()")
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"`model` is not a model of transformers: got {name}, expected what from_pretrained(...) returns")
    if auto_class(model.config) is None or model.get_output_embeddings() is None:
        raise ValueError(f"`model` does not generate text: got {name}. Load it by a class with a language head")
    if not isinstance(processor, PreTrainedTokenizerBase | ProcessorMixin):
        kind = type(processor).__name__
        raise TypeError(f"`processor` is not a processor or tokenizer of transformers: got {kind}. Give the model's own")


def frozen_copy(model: Any) -> Any:
    """Return a copy of a model in evaluation mode that shares the values of all parameters and buffers."""
    # New parameters, so that the caller's can still be trained.
    shared: dict[int, Any] = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in model.parameters()}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared).eval()


def _wrap(model: Any, processor: Any, units: str, vision: bool, only_runs: bool = False) -> tuple[VLM, PromptProcessor]:
    """Find out how the layers of a frozen model can be skipped; return it without adapters, and its processor."""
    wrapped = VLM(model, units).wrap_processor(processor)
    capabilities = probe_capabilities(model, wrapped, only_runs)
    if vision:
        capabilities = add_tower(capabilities, model, wrapped)
    vlm = VLM(model, units, capabilities)
    vlm.source_processor = processor
    wrapped = vlm.wrap_processor(processor)
    if units != UNITS[0]:
        check_sublayers(vlm, wrapped)
    return vlm, wrapped


@contextlib.contextmanager
def _naming(folder: Path | str) -> Iterator[None]:
    """Make every error name the folder. What transformers raises for a damaged configuration becomes a ValueError."""
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except ValueError as error:
        if str(folder) in str(error):
            raise
        raise ValueError(f"{folder}: {error}") from error
    except Exception as error:
        raise ValueError(
            f"{folder} is damaged, or of a kind that transformers runs differently ({type(error).__name__}: "
            f"{first_line(error)}). Download it again."
        ) from error


def check_is_model(folder: Path) -> None:
    """Reject a folder without config.json (FileNotFoundError), or with an adapter of peft (ValueError)."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"`checkpoint` is an adapter of peft, not a model: got {folder}. Merge it into its base with "
            f"`PeftModel.from_pretrained(BASE, {str(folder)!r}).merge_and_unload().save_pretrained(NEW)`, where BASE is the "
            "model loaded by transformers, save its processor in NEW as well, and pass NEW."
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"`checkpoint` is not a transformers checkpoint: {folder} holds no config.json. Pass the folder of a model."
        )


def check_folder(folder: Path, trust_remote_code: bool) -> None:
    """Reject a folder by which transformers would load another one, kernels of the Hub (code), or layers without end."""
    check_plain(folder.rglob("*"))
    check_links(folder, trust_remote_code)
    check_bundled(folder)
    path = folder / "config.json"
    for names, value in _settings(read_json(path)):
        is_kernel = any(name.endswith(("_implementation", "_implementation_internal")) for name in names)
        if is_kernel and isinstance(value, str) and "/" in value and not trust_remote_code:
            raise ValueError(f"{path} names {value!r}, which is code. Remove that, or pass `trust_remote_code=True`.")
        if names and names[-1].endswith(LAYER_COUNT_ENDINGS) and isinstance(value, int) and value > MAX_LAYERS:
            raise ValueError(f"{path} is damaged: {names[-1]}={value}, expected at most {MAX_LAYERS}.")


def _settings(value: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every setting of a configuration, and each of a list, with the names that lead to it."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _settings(inner, (*names, name))
    elif isinstance(value, list):
        for inner in value:
            yield from _settings(inner, names)
    else:
        yield names, value


def _read_config(folder: Path, trust_remote_code: bool, only_runs: bool) -> Any:
    from transformers import AutoConfig

    written = read_json(folder / "config.json")
    own = written.get("model") if isinstance(written, dict) and "model_type" not in written else None
    if own is not None:
        raise ValueError(f"{folder} holds a {own}, not a model of transformers: use a named config such as {own}_vqa.")
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{folder / 'config.json'} names no model that transformers knows ({first_line(error)}). A model with code of "
            "its own needs `trust_remote_code=True`."
        ) from error
    check_config(config, folder, only_runs, trust_remote_code)
    return config


def check_config(config: Any, source: Path | str, only_runs: bool = False, trust_remote_code: bool = False) -> None:
    """Raise ValueError for a model whose layers cannot be removed: quantized, or saved by us with code of its own."""
    parts = [config, *(part for part in vars(config).values() if hasattr(part, "to_dict"))]  # Kimi K2.5 has it in a part
    given = [part.quantization_config for part in parts if getattr(part, "quantization_config", None) is not None]
    if given:
        method = given[0].get("quant_method") if isinstance(given[0], dict) else getattr(given[0], "quant_method", given[0])
        raise ValueError(
            f"{source} holds quantized weights ({method}), whose layers cannot be saved again unchanged. Pass the folder of "
            "the full weights."
        )
    changed = {
        SUBLAYERS: "lacks attentions or MLPs of single layers (`units=sublayers`)",
        ADAPTERS_KEY: "has adapters (`recover=adapters` or `linear`, or an export of `das`)",
    }
    for key, what in changed.items():
        if hasattr(config, key) and not (only_runs and trust_remote_code):
            advice = "pass `trust_remote_code=True`" if only_runs else "pass the folder that it was made from"
            raise ValueError(f"{source} {what}: it cannot be searched or trained, and needs its own code. Here, {advice}.")


def _check_memory(folder: Path, dtype: Any) -> None:
    import psutil

    needed = sum(path.stat().st_size for path in weight_files(folder))
    if isinstance(dtype, torch.dtype):
        needed = needed * dtype.itemsize // source_dtype(folder).itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"The weights in {folder} need {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free. Use a smaller "
            "`dtype`, such as bfloat16, or `device_map=auto`, which spreads them over GPUs."
        )


def _check_spread(model: Any) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            "`device_map` leaves weights on CPU or disk, from where layers would be read for each mask. Use more GPUs, "
            "or a smaller `dtype`."
        )
    for name in ("to", "cuda"):  # accelerate's, which warn; a copy of the model would move the original
        vars(model).pop(name, None)
    if len(set(vars(model).get("hf_device_map", {}).values())) < 2:
        vars(model).pop("hf_device_map", None)


def read_dtype(name: str) -> Any:
    """Return the dtype of a name; `auto` stays a name. ValueError for unknown ones."""
    dtype = name if name == "auto" else getattr(torch, name, None)
    if name != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(f"Invalid `dtype`: got {name!r}, expected auto, float32, bfloat16 or float16.")
    return dtype


def auto_class(config: Any) -> Any:
    """Return the class of transformers that loads a model of a configuration; None = it does not generate text."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    kinds = (AutoModelForImageTextToText, AutoModelForCausalLM)
    own_code = getattr(config, "auto_map", {})
    return next((kind for kind in kinds if type(config) in kind._model_mapping or kind.__name__ in own_code), None)


def _load(folder: Path, config: Any, options: dict[str, Any]) -> Any:
    auto = auto_class(config)
    if auto is None:
        raise ValueError(f"{folder} holds a {config.model_type}, which does not generate text. Give another model.")
    try:
        with bars_on_terminals():
            model, report = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True, **options)
    except pickle.UnpicklingError as error:
        raise unreadable(folder, error) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"{folder} does not load in transformers: {first_line(error)}") from error
    wrong = [*sorted(report["missing_keys"]), *sorted(str(one) for one in report["mismatched_keys"])]
    if wrong:
        raise ValueError(
            f"The weights in {folder} do not fit its config.json: {len(wrong)} are missing or have other shapes, the first "
            f"{wrong[0]}. Download the folder again."
        )
    if "device_map" in options:
        _check_spread(model)
    check_finite(model.named_parameters(), folder)
    return prepare_experts(model.eval().requires_grad_(False))


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
    config = read_json_object(folder / "config.json")
    places = [part for part in (config, config.get("text_config")) if isinstance(part, dict)]
    named = next((place[key] for place in places for key in DTYPE_KEYS if place.get(key)), "")
    found = getattr(torch, str(named), None)
    return found if isinstance(found, torch.dtype) else None


def write_checksums(folder: Path) -> None:
    """Write the checksums of all safetensors files and all code of a folder into it."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.py")])
    lines = [f"{checksum(path)}  {path.name}\n" for path in files]
    write_text(folder / CHECKSUM_FILE, "".join(lines))


def verify_checksums(folder: Path) -> bool:
    """Compare a folder's files with its checksums, and return True if it has any; ValueError where they differ."""
    path = folder / CHECKSUM_FILE
    if not path.is_file():
        return False
    unknown = {code.name for code in folder.glob("*.py")}
    advice = f"Copy the folder again; if you changed the file yourself, remove {CHECKSUM_FILE}"
    for line in path.read_text("utf-8", "replace").splitlines():
        match = re.fullmatch(r"([0-9a-f]{64}) [ *]([^/\\\0]+)", line)
        if match is None:
            raise ValueError(f"{path} is damaged: got {line[:80]!r}, expected a checksum and a name. {advice}")
        file = folder / match[2]
        if not file.is_file():
            raise ValueError(f"{folder} lacks {match[2]}, which {CHECKSUM_FILE} names. {advice}")
        if checksum(file) != match[1]:
            raise ValueError(f"{file} is damaged: its checksum differs from the recorded one. {advice}")
        unknown.discard(match[2])
    if unknown:
        raise ValueError(f"{folder / min(unknown)} is code without a checksum in {CHECKSUM_FILE}. {advice}")
    return True


class OwnCode(NamedTuple):
    """The code of one kind of folders: the modules that are copied, and the class that is added to the first of them.

    The class, named like transformers' with an `ending`, calls `change` with the entry `key` of the model's configuration.
    """

    key: str
    modules: tuple[str, ...]
    change: str
    ending: str


KINDS = (
    OwnCode(ADAPTERS_KEY, INSERTED, "add_adapters", "WithAdapters"),
    OwnCode(SUBLAYERS, REMOVED, "remove_sublayers", "WithoutSublayers"),
)


def own_code(model: Any) -> OwnCode | None:
    """Return the code that a folder of a model needs; None = transformers loads it by itself."""
    return next((kind for kind in KINDS if hasattr(model.config, kind.key)), None)


def write_code(folder: Path, model: Any, code: OwnCode) -> None:
    """Put the code that loads a saved model, see `own_code`, into its folder, and its name into the configuration."""
    base = type(model).__name__  # a class of transformers itself: its own code is not copied
    name = f"{base}{code.ending}"
    file = folder / f"{code.modules[0].rpartition('.')[2]}.py"
    copy_code(folder, *code.modules)
    auto = auto_class(model.config).__name__
    text = CODE_TEMPLATE.format(auto=auto, base=base, name=name, variant=WEIGHTS_VARIANT, **code._asdict())
    write_text(file, file.read_text(encoding="utf-8") + text)
    config = read_json(folder / "config.json")
    config["architectures"] = [name]
    config["auto_map"] = {auto: f"{file.stem}.{name}"}
    write_json(folder / "config.json", config, indent=2)
