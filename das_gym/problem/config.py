"""The settings of a problem: model, task and data, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from das_gym.commands.commandline import format_command, format_settings
from das_gym.commands.settings import PositiveFloat, PositiveInt, Settings, choice
from das_gym.commands.trust import REMOTE_CODE
from das_gym.files import absolute_path, explain_damage, pickled_strings, read_json
from das_gym.names import brief, nearest_name
from das_gym.registration import DEFAULT_MODEL, DEFAULT_TASK, MODELS, TASKS, find_environment

if TYPE_CHECKING:
    from das_gym.tasks.base import Task

UNITS = ("layers", "sublayers")
SKIPS = ("delete", "linear")
ON_BAD_EXAMPLE = ("raise", "skip")
PRECISIONS = ("float32", "bfloat16", "auto")
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")
"""Allowed values, as in the modules that read them, which import torch."""

OPTIONS = ("image_size", "tokenizer", "units", "vision", "dtype", "device_map", "trust_remote_code")
"""Fields of `ProblemConfig` that only some models take, see `ModelEntry.options`."""

PATH_SETTINGS = ("checkpoint", "supernet", "data_root", "tokenizer", "encoder_cache")

COMPUTE_SETTINGS = ("device", "precision", "eval_batch_size", "tree_gib", "encoder_cache", "latency_again", "workers")
"""Fields of `ProblemConfig` that control how masks are scored."""

DEVICE_TYPES = (
    *("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "ipu", "maia", "ve", "hip", "fpga", "vulkan", "lazy"),
    "privateuseone",
)
"""The types that `torch.device` of torch 2.13 accepts, without deprecated ones, and `meta`, which computes nothing."""

SCORE_SETTINGS = (
    *("image_size", "max_text_length", "context", "columns", "on_bad_example"),
    *("units", "vision", "dtype", "skip", "skip_rank", "calibration_examples"),
)
"""Fields of `ProblemConfig` that change the scores of masks, besides model, task and paths."""

UNIT_NUMBERS = ("skip_num", "max_skipped")
"""Settings of commands that are a number of units to skip."""

STANDARD_ERRORS = 2.0
"""A score up to this many standard errors above chance counts as chance."""


def setting_path(name: str, value: str, model: str | None = None) -> Path:
    """Return the absolute path of one of `PATH_SETTINGS`.

    If the file does not exist, the name of a bundled checkpoint (`ModelEntry.others`) stands for its folder: a checkpoint of
    `model`, or of any model if None.
    """
    path = absolute_path(value)
    models = MODELS.values() if model is None else (MODELS[model],)
    named = {each: folder for entry in models for each, folder in entry.named.items()}
    return named[value] if name == "checkpoint" and value in named and not path.exists() else path


def download_hint(value: str, setting: str) -> str:
    """Return the command that downloads an id of the Hugging Face Hub, `owner/name`, given in place of a folder, or ""."""
    path = Path(value)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):  # commands make paths absolute
        value = path.relative_to(Path.cwd()).as_posix()
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", value) is None or path.parent.exists():
        return ""
    kind = "--repo-type dataset " if setting == "data_root" else ""
    command = f"hf download {kind}{value} --local-dir FOLDER"
    return f" das_gym downloads nothing. Download it first: `{command}`, then give {setting}=FOLDER."


def check_device(device: str) -> None:
    """Raise ValueError for a name that no device of torch has. Whether this machine has the device is not checked."""
    kind = device.partition(":")[0]
    # Packages such as `torch_npu` register further types by this entry point, which torch loads on import.
    is_type = kind in ("auto", *DEVICE_TYPES) or entry_points(group="torch.backends")
    if not is_type or re.fullmatch(r"(?!auto:)[a-z]+(:\d+)?", device) is None:
        nearest = "cuda" if kind.startswith("gpu") else nearest_name(kind, ("auto", *DEVICE_TYPES))
        hint = f" Did you mean {nearest}?" if nearest and nearest != kind else ""
        raise ValueError(f"`device` is unknown: got {device}, expected auto, cpu, cuda, cuda:1, mps, xpu, ...{hint}")


@dataclass(frozen=True, kw_only=True)
class Scoring(Settings, group="Model and data"):
    """Settings of what masks are of and how they are scored, whatever model and data came from.

    Attributes:
        units: What can be skipped in a transformers model: whole layers, or the attention and the MLP of each decoder layer
            (`sublayers`). None means `layers`.
        vision: Whether layers of the vision tower of a transformers model can be skipped too. They follow the decoder's.
        max_text_length: Longest text in tokens; longer texts are cut. None uses the usual length of the model.
        context: Length in tokens of the windows that texts are split into, for the task `text`. None means 512.
        columns: Columns of image, question and answer in parquet files and folders of `save_to_disk`, separated by commas,
            or the one column of a text. None finds them by their usual names.
        on_bad_example: What to do with a damaged example: stop with an error, or skip it with a warning.
        precision: Number format of the skippable layers of METER and ViLT; transformers models take `dtype` instead. `auto`
            is bfloat16 where the device has it and the full model's mean loss changes by a standard error at most.
        eval_batch_size: Examples that are evaluated at a time. None chooses it by the task, and by `tree_gib`.
        tree_gib: Memory for all tensors that exist while masks are scored, besides weights and encoder outputs, in GiB. A
            third of it keeps hidden states of the full model between turns. None is 3 on a CPU, half of a GPU's free memory.
        encoder_cache: Folder that keeps outputs of the frozen encoders between runs. None keeps them in memory only.
        latency_again: Whether to measure the latency of units again, and not to read what an earlier process measured.
        skip: What replaces a skipped unit of a transformers model: nothing (`delete`, the default), or a linear map that is
            fitted on examples of the train split without training (`linear`).
        skip_rank: Rank of the linear maps of `skip=linear`. None is full rank.
        calibration_examples: Number of examples of the train split to fit the linear maps on.
        workers: `ray` distributes masks over a Ray cluster: a worker for each CPU, or for each GPU if the model is on one.
            None scores them in this process.
    """

    units: str | None = choice(None, UNITS)
    vision: bool | None = None
    max_text_length: PositiveInt | None = None
    context: PositiveInt | None = None
    columns: str | None = None
    on_bad_example: str = choice("raise", ON_BAD_EXAMPLE)
    precision: str = choice("float32", PRECISIONS)
    eval_batch_size: PositiveInt | None = None
    tree_gib: PositiveFloat | None = None
    encoder_cache: str | None = None
    latency_again: bool = False
    skip: str | None = choice(None, SKIPS)
    skip_rank: PositiveInt | None = None
    calibration_examples: PositiveInt = 256
    workers: str | None = choice(None, ("ray",))


@dataclass(frozen=True)
class ProblemConfig(Scoring, group="Model and data"):
    """Settings of model, task and data, and of how masks are scored on them. The defaults load bundled ones.

    Attributes:
        model: Kind of model.
        task: Downstream task.
        checkpoint: Pre-trained weights: a folder that transformers or das_gym wrote, an official METER or ViLT file, or the
            name of another bundled model (`llava_mini`). None loads the bundled model.
        data_root: Folder of the data, in one of the formats that the task reads. None uses the bundled data.
        supernet: Trained adapters and head, a file that `python -m adapt supernet` wrote. None uses the bundled one.
        tokenizer: Folder of the tokenizer or processor, if the checkpoint's folder has none.
        dtype: Number format of a transformers model; `auto` is the checkpoint's.
        device: Device of the model: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, ...
        trust_remote_code: Whether Python code in the checkpoint's folder may run.
        image_size: Side of the input images in pixels. Position embeddings are resized. None keeps the checkpoint's size.
        device_map: How `from_pretrained` of transformers places the model on devices, such as `auto`.

    Raises:
        ValueError: A setting is not allowed, or not supported by the model.
        FileNotFoundError: A path does not exist.
    """

    model: str = choice(DEFAULT_MODEL, MODELS, own=True)
    task: str = choice(DEFAULT_TASK, TASKS, own=True)
    _: KW_ONLY
    checkpoint: str | None = None
    data_root: str | None = None
    supernet: str | None = None
    tokenizer: str | None = None
    dtype: str | None = choice(None, DTYPES)
    device: str = "auto"
    trust_remote_code: bool | None = None
    image_size: PositiveInt | None = None
    device_map: str | None = None

    def __post_init__(self) -> None:
        for name in ("model", *PATH_SETTINGS):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str | Path):
                raise ValueError(  # gymnasium.make adds all arguments to the message of a TypeError
                    f"`{name}` is not a name or path: got {brief(value)}. For objects in memory use "
                    "das_gym.Problem.from_model(model, processor, task, train=rows)"
                )
        if hint := download_hint(str(self.model), "checkpoint"):
            raise ValueError(f"`model` is unknown: got {self.model}, expected {', '.join(MODELS)}.{hint}")
        super().__post_init__()
        check_device(self.device)
        find_environment(self.model, self.task)
        self._check_options()
        for name in PATH_SETTINGS:
            value = getattr(self, name)
            if value is None:
                continue
            path = setting_path(name, value, self.model)
            object.__setattr__(self, name, str(path))
            if name != "encoder_cache" and not path.exists():
                others = MODELS[self.model].named if name == "checkpoint" else {}
                more = f", or give the name of a bundled one: {', '.join(others)}" if others else ""
                hint = "" if name == "supernet" else download_hint(value, name)
                raise FileNotFoundError(
                    f"`{name}` does not exist: got {value}. Check the path, or leave it out for the bundled one{more}.{hint}"
                )

    @property
    def unit_counts(self) -> range | None:
        """The possible numbers of skippable units, read from config.json or names of tensors; None if unknown.

        It is a range, since only the loaded model knows which layers of a vision tower, or of a model type that is not in
        `ModelEntry.whole_types`, cannot be skipped.
        """
        entry = MODELS[self.model]
        place = entry.assets if self.checkpoint is None else Path(self.checkpoint)
        if place is None:
            return None
        if place.is_file():
            if not entry.layer_tensors:
                return None
            found = (re.match(entry.layer_tensors, name) for name in pickled_strings(place))
            count = len({match.group() for match in found if match})
            return range(count, count + 1) if count else None
        if not (place / "config.json").is_file():
            return None
        with explain_damage(place / "config.json", "copy the checkpoint again"):
            config = read_json(place / "config.json")
            sizes = next((config[part] for part in ("config", "sizes", "text_config") if part in config), config)
            counts = [units * int(sizes[name]) for name, units in entry.layer_counts.items() if name in sizes]
            most = sum(counts) * (2 if self.units == "sublayers" else 1)
            if not most:
                return None
            least = most if not entry.reads_prompts or config.get("model_type") in entry.whole_types else 1
            if self.vision:
                tower = config.get("vision_config", {})
                least += 1
                tower_layers = tower.get("num_hidden_layers") or tower.get("depth")
                if tower_layers is None:
                    return None
                most += int(tower_layers)
        return range(least, most + 1)

    @property
    def max_positions(self) -> int | None:
        """The most tokens of a text, by `max_text_length` and a transformers model's config.json; None if unknown."""
        place = MODELS[self.model].assets if self.checkpoint is None else Path(self.checkpoint)
        if not MODELS[self.model].reads_prompts or place is None or not (place / "config.json").is_file():
            return self.max_text_length
        with explain_damage(place / "config.json", "copy the checkpoint again"):
            config = read_json(place / "config.json")
            own = config.get("text_config", config).get("max_position_embeddings")
        known = [number for number in (own, self.max_text_length) if isinstance(number, int)]
        return min(known, default=None)

    @property
    def weights(self) -> Path:
        """The folder or file of the weights; ValueError if none is given or bundled."""
        return Path(self.checkpoint) if self.checkpoint else self.bundled_path("")

    @property
    def supernet_path(self) -> str | Path | None:
        """Path of the supernet; None if masks are scored without one; ValueError if a bundled one is needed and missing."""
        if self.supernet is None and (self.checkpoint is not None or MODELS[self.model].reads_prompts):
            return None
        return self.supernet or self.bundled_path(f"{self.task}_supernet.safetensors")

    @property
    def env_id(self) -> str:
        """Id of the environment of model and task, such as `DAS-METER-VQA-v0`."""
        return find_environment(self.model, self.task).id

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if getattr(self, each.name) != each.default}

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environment: `changed` without model and task, which are part of its id."""
        return {name: value for name, value in self.changed.items() if name not in ("model", "task")}

    @property
    def score_settings(self) -> dict[str, Any]:
        """The fields in `SCORE_SETTINGS` that differ from their defaults; a table records them."""
        return {name: value for name, value in self.changed.items() if name in SCORE_SETTINGS}

    @property
    def options(self) -> dict[str, Any]:
        """The settings in `OPTIONS`, which only some models take, that are not None."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    def _check_options(self) -> None:
        taken = MODELS[self.model].options
        for name, value in self.options.items():
            if name not in (*taken, "tokenizer", REMOTE_CODE):  # a command may confirm it for a record of another model
                others = [entry.name for entry in MODELS.values() if name in entry.options]
                raise ValueError(
                    f"`{name}` is not supported by {self.model}, only by {', '.join(others)}: got {value}. Leave it out."
                )
        if self.skip is not None and not MODELS[self.model].reads_prompts:
            raise ValueError(f"`skip` is for transformers models: got {self.skip} for {self.model}. Leave it out.")
        if self.skip is not None and self.supernet is not None:
            raise ValueError(
                f"`skip` is not for a supernet, which has trained skip adapters: got {self.skip}. Leave it out."
            )
        if "dtype" in taken and self.precision != "float32":
            raise ValueError(f"`precision` is not supported by {self.model}: got {self.precision}. Use `dtype` instead.")

    def bundled_path(self, file: str) -> Path:
        """Return the path of a file in the model's bundled folder, or of the folder for ""; ValueError if it is missing."""
        folder = MODELS[self.model].assets
        if folder is None or not (folder / file).exists():
            needed = (
                "pass checkpoint=" if folder is None else f"train one with `{supernet_command(self)}`, then pass supernet="
            )
            raise ValueError(f"{file!r} is not bundled for {self.model}: {needed}")
        return folder / file


def check_before_loading(config: ProblemConfig, settings: Mapping[str, Any] | None = None) -> None:
    """Check model and data without loading them, which takes seconds to minutes.

    Of the `settings` of a command, those in `UNIT_NUMBERS` are checked.

    Raises:
        FileNotFoundError: A checkpoint's folder has no config.json.
        ValueError: Data are needed, columns are given without data, Ray is not installed, or a number is too large.
    """
    task = TASKS[config.task]
    if task.needs_data and config.data_root is None:
        reads = task.data.removesuffix(" (none bundled)")
        raise ValueError(f"`data_root` is missing: the task {config.task} has no bundled data. It reads {reads}.")
    if config.columns is not None and config.data_root is None:
        raise ValueError(f"`columns` is not supported by the bundled data: got {config.columns!r}. Leave it out")
    if config.workers is not None:
        require_ray()
    folder = None if config.checkpoint is None else Path(config.checkpoint)
    is_ours = str(MODELS[config.model].load).startswith("das_gym.")  # a user's function may read other files
    if is_ours and folder is not None and folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"`checkpoint` is not a model: {folder} holds no config.json. Pass the folder of a model.")
    if is_ours and folder is not None and folder.is_dir():
        _check_weights(folder)
    longest = config.max_positions
    if config.context is not None and longest is not None and config.context > longest:
        raise ValueError(f"`context` is too large: got {config.context}, expected at most {longest}, the model's positions")
    counts = config.unit_counts if settings else None
    for name in UNIT_NUMBERS:
        value = (settings or {}).get(name)
        if counts is not None and isinstance(value, int) and value > counts[-1]:
            raise ValueError(f"`{name}` is out of range: got {value}, expected at most {counts[-1]}, the number of units")


def _check_weights(folder: Path) -> None:
    """Raise FileNotFoundError for a model's folder without weights, or without some of several files of weights."""
    for file in ("model.safetensors", "pytorch_model.bin"):  # as transformers looks for them
        index = folder / f"{file}.index.json"
        if (folder / file).is_file():
            return
        if index.is_file():
            with explain_damage(index, "copy the checkpoint again"):
                parts = set(read_json(index)["weight_map"].values())
                missing = sorted(part for part in parts if not (folder / part).is_file())
            if missing:
                raise FileNotFoundError(
                    f"`checkpoint` lacks weights: {folder} has no {', '.join(missing[:3])}. Copy it again."
                )
            return
    if not any(path.suffix in (".safetensors", ".bin") for path in folder.iterdir()):
        raise FileNotFoundError(
            f"`checkpoint` has no weights: got {folder}, expected model.safetensors or pytorch_model.bin beside its "
            "config.json. Copy it again."
        )


def require_ray() -> None:
    """Raise ValueError if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise ValueError("`workers` needs Ray: got ray. Run pip install 'das_gym[ray]', or leave `workers` out")


def recorded_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a record keeps them: without those of this machine, so that it can be replayed anywhere."""
    return {name: value for name, value in settings.items() if name not in ("workers", "latency_again")}


def format_problem(config: ProblemConfig, *more: str) -> str:
    """Return model and data as typed after `with`: the named config, settings that are not the default, and more words."""
    given = format_settings({name: value for name, value in config.env_kwargs.items() if name != "supernet"})
    return " ".join([find_environment(config.model, config.task).short, *given, *more])


def supernet_command(config: ProblemConfig) -> str:
    """Return the command that trains a supernet."""
    return format_command("adapt supernet", format_problem(config))


def warn_at_chance(
    config: ProblemConfig | None, task: Task, examples: Sequence[Any], score: float, split: str, name: str = "full model"
) -> None:
    """Warn where a model's mean score on some examples is not above that of answers drawn at random.

    `score` is its mean metric, 0..1. The message names the model and the examples' split, and, with a `config`, the command
    that fine-tunes; None is for a model put together in Python, or one that was fine-tuned.
    """
    chance = task.chance(examples)
    if score > chance + STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / len(examples)):
        return
    advice = "" if config is None else f" Train it on these data first: {training_command(config)}"
    warnings.warn(
        f"the {name} is no better than chance on these data: {100 * score:.1f} % {task.metric_name} on {len(examples)} "
        f"{split} examples, where answers at random get {100 * chance:.1f} %. What is found and saved means little.{advice}",
        stacklevel=3,
    )


def training_command(config: ProblemConfig) -> str:
    """Return the command that trains the model of a configuration on its data, and what to do with the result."""
    if not MODELS[config.model].reads_prompts:
        return f"`{supernet_command(config)}`, then give supernet=<the file it writes>"
    whole = replace(config, units=None, vision=None, skip=None, skip_rank=None)  # other units are not fine-tuned
    train = format_command("adapt compare", format_problem(whole, "'methods=[\"lora\"]'"))
    export = format_command("adapt export", "run=<id>", "method=lora", "out=FOLDER")
    return f"`{train}`, `{export}`, then give checkpoint=FOLDER"
