"""The parts of a problem, loaded by its configuration: backbone, data, supernet, and the MACs of an example."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from das_gym.data.entries import BadExamples
from das_gym.data.rows import Table, table_of_rows
from das_gym.data.splits import Splits
from das_gym.models.base import VLP, State, check_model, fingerprint
from das_gym.models.inputs import Processor, PromptError
from das_gym.models.macs import MacCounter
from das_gym.names import brief, escape_control_chars
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import UNITS, ProblemConfig, Scoring, supernet_command
from das_gym.problem.costs import Costs, count_costs
from das_gym.problem.origin import Origin
from das_gym.registration import (
    ENVIRONMENTS,
    MODELS,
    TASKS,
    find_class,
)
from das_gym.tasks.base import Task, check_task

FILE_PART = {"train": "train", "validation": "val", "test": "test"}
"""Names of rows in memory, and of the same parts in files."""

COST_SAMPLE = 1000
"""MACs are counted at the longest text of this many reward examples."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model as loaded: frozen, with untrained adapters.

    Attributes:
        vlp, processor: The model, and what makes its batches.
        base: Its fingerprint.
        heads: Heads that came with the checkpoint, from which tasks may start theirs.
        origin: Where it came from.
        untrained: Parameters that the checkpoint lacks, adapters aside.
    """

    vlp: VLP
    processor: Processor
    base: str
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    origin: Origin = field(default_factory=Origin)
    untrained: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdaptedModel:
    """A model with trained adapters, a head and a task: a supernet, or a subnet once its model is pruned."""

    backbone: Backbone
    head: nn.Module
    task: Task

    def adaptation(self, **info: object) -> Adaptation:
        """Return the trained parameters of the model, to save in an adaptation file."""
        fields = {"task": self.task.name, "answers": self.task.labels, "base": self.backbone.base, "info": info}
        return Adaptation.from_model(self.backbone.vlp, self.head, **fields)


def load_splits(config: ProblemConfig) -> Splits[Any]:
    """Return the examples of a configuration; warns of those that were left out."""
    task = task_class(config.task)
    options = reader_options(task, {"columns": config.columns, "context": config.context})
    if reads_tokens(task):
        folder = config.tokenizer or config.weights
        load = find_class(MODELS[config.model].tokenizer)
        options["tokenizer"] = load(Path(folder), bool(config.trust_remote_code))
    try:
        splits = task.load_splits(config.data_root, config.on_bad_example, **options)
    except (FileNotFoundError, ValueError) as error:
        hint = describe_other_format(config)
        if not hint:
            raise
        raise type(error)(f"{str(error).removesuffix('.')}. {hint}") from error
    return warn_of_left_out(splits)


def load_rows(task: type[Task], rows: Mapping[str, Any], tokenizer: Any, scoring: Scoring) -> Splits[Any]:
    """Return the examples of rows in memory; warns of those that were left out.

    Args:
        task: The task that the rows are for.
        rows: Of `train`, `validation` and `test`: a `datasets.Dataset` or a list of dicts; None for a part to split off.
        tokenizer: The model's, for tasks that split texts into tokens.
        scoring: Its `columns`, `context` and `on_bad_example`.
    """
    tables = {FILE_PART[part]: rows_table(each, part) for part, each in rows.items() if each is not None}
    if not tables:
        raise ValueError("`train`, `validation` and `test` are missing: give the rows of one or more of them")
    options = rows_options(task, tokenizer, scoring)
    return warn_of_left_out(task.divide_rows(tables, BadExamples(scoring.on_bad_example), **options))


def rows_table(rows: Any, name: str) -> Table:
    """Return rows in memory as a table; TypeError or ValueError, with `name`, if they are none."""
    table = table_of_rows(rows, name)
    if not len(rows):
        raise ValueError(f"`{name}` has no rows: got {brief(rows)}. Leave it out, or add some")
    return table


def rows_options(task: type[Task], tokenizer: Any, scoring: Scoring) -> dict[str, Any]:
    """Return the arguments of `Task.divide_rows` and `Task.read_rows` besides the rows."""
    options = reader_options(task, {"columns": scoring.columns, "context": scoring.context})
    return {**options, "tokenizer": tokenizer} if reads_tokens(task) else options


def warn_of_left_out(splits: Splits[Any]) -> Splits[Any]:
    """Return the splits, and warn of bad entries that were left out."""
    if splits.left_out:
        first = escape_control_chars("\n".join(splits.left_out[:3]))
        warnings.warn(f"{len(splits.left_out)} bad entries were left out; the first of them:\n{first}", stacklevel=3)
    return splits


def describe_other_format(config: ProblemConfig) -> str:
    """Return a sentence that names the format of `data_root` and who reads it, if its files look like another task's."""
    root = None if config.data_root is None else Path(config.data_root)
    if root is None or not root.is_dir() or task_class(config.task).format_of(root):
        return ""
    for name in TASKS:
        found = task_class(name).format_of(root)
        readers = [entry for entry in ENVIRONMENTS.values() if found and entry.task == name]
        if readers:
            names = [entry.short for entry in readers if entry.model == config.model] or [entry.short for entry in readers]
            return f"It looks like {found}, which the named config {' or '.join(names)} reads (task={name})."
    return ""


def reader_options(task: type[Task], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that are not None, as arguments of `Task.load_splits`; ValueError: the task does not take one."""
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if name not in inspect.signature(task.load_splits).parameters:
            raise ValueError(f"`{name}` is not supported by the task {task.name}: got {value!r}. Leave it out.")
    return given


def reads_tokens(task: type[Task]) -> bool:
    """Return True if `Task.load_splits` takes the model's `tokenizer`, because examples have a number of tokens."""
    return "tokenizer" in inspect.signature(task.load_splits).parameters


def load_backbone(config: ProblemConfig, **settings: Any) -> Backbone:
    """Return the frozen model of a configuration, on its device; `settings`, such as `dropout`, replace the checkpoint's.

    Warns of parameters that the checkpoint lacks (adapters excepted), and of those that are not used.
    """
    entry = MODELS[config.model]
    checkpoint = config.weights
    given = settings | {name: value for name, value in config.options.items() if name in entry.options}
    for name, value in given.items():
        if not accepts_setting(config.model, name):
            raise ValueError(f"`{name}` is not supported by {entry.name}: got {value}. Leave it out.")
    loaded = find_class(entry.load)(checkpoint, generator=torch.Generator().manual_seed(0), **given)
    is_alone = isinstance(loaded, VLP)  # without heads, and a report of what the file lacks
    vlp = loaded if is_alone else loaded.vlp
    if not isinstance(vlp, find_class(entry.vlp)):
        raise ValueError(
            f"`checkpoint` is another model's: {checkpoint} holds a {type(vlp).__name__}, expected a {entry.name}. "
            f"Choose another checkpoint, or model={type(vlp).__name__}."
        )
    check_model(vlp)
    report = None if is_alone else loaded.report
    if report and (problems := report.describe_problems("adapter")):
        warnings.warn(f"{checkpoint}: {problems}", stacklevel=2)
    vlp.freeze()
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    processor = vlp.make_processor(Path(config.tokenizer) if config.tokenizer else folder, config.max_text_length)
    base = fingerprint(vlp)
    heads = {} if is_alone else loaded.heads
    untrained = () if report is None else tuple(name for name in report.missing if "adapter" not in name)
    return Backbone(vlp.to(pick_device(config.device)), processor, base, heads, Origin(config, settings), untrained)


def live_backbone(model: Any, processor: Any, scoring: Scoring) -> Backbone:
    """Return a model in memory, frozen; it shares its parameters with the caller's, which stays as it is."""
    if scoring.precision != "float32":
        raise ValueError(f"`precision` is not for live models: got {scoring.precision}. Give a model of that number format")
    wrap = next(find_class(entry.wrap) for entry in MODELS.values() if entry.wrap is not None)
    generator = torch.Generator().manual_seed(0)
    vlp = wrap(model, processor, generator=generator, units=scoring.units or UNITS[0], vision=bool(scoring.vision))
    check_model(vlp)
    vlp.freeze()
    origin = Origin.of_live(each.detach() for each in model.parameters())
    return Backbone(vlp, vlp.make_processor(Path(), scoring.max_text_length), fingerprint(vlp), origin=origin)


def accepts_setting(model: str, setting: str) -> bool:
    """Return True if the function that loads a model, a key of `MODELS`, takes a setting."""
    parameters = inspect.signature(find_class(MODELS[model].load)).parameters
    return setting in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def pick_device(device: str) -> torch.device:
    """Return the device with a name, `auto` = a GPU if there is one; ValueError if this machine does not have it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].strip().rstrip(".")
        raise ValueError(f"`device` cannot be used here: got {device!r} ({reason}). Use auto or cpu.") from error


def task_class(name: str) -> type[Task]:
    """Return the class of a task, a key of `TASKS`; TypeError if what is registered is no task of that name."""
    task = find_class(TASKS[name].task)
    check_task(task, name)
    return task


def find_supernet(config: ProblemConfig) -> tuple[str | Path, Adaptation] | None:
    """Return the supernet's file and content; None if the model is searched without training, with the checkpoint's head."""
    path = config.supernet_path
    if path is None:
        return None
    supernet = Adaptation.load(path)
    if supernet.mask is not None or supernet.method is not None:
        content = "the adapters of one mask" if supernet.method is None else f"the result of {supernet.method.name}"
        raise ValueError(f"`supernet` is not a supernet: {path} holds {content}. Train one: `{supernet_command(config)}`.")
    _check_task(supernet, config.task, path)
    return path, supernet


def supernet_model(
    config: ProblemConfig, found: tuple[str | Path, Adaptation] | None, splits: Splits[Any], backbone: Backbone
) -> AdaptedModel:
    """Put a supernet, as `find_supernet` returns it, into a loaded model; return it with head and task."""
    if found is None:
        return training_free_model(backbone, config.task, splits)
    path, supernet = found
    advice = f"Train a supernet on these data with `{supernet_command(config)}`, then give supernet=<the file it writes>."
    if config.supernet is None and config.data_root is not None:
        warnings.warn(
            f"data_root={config.data_root} is scored by the bundled supernet, trained on das_gym's generated data: "
            f"on other data its scores mean little, and it is a poor start. {advice}",
            stacklevel=2,
        )
    model = restore(backbone, supernet, config.task, path)
    if not model.task.covers_labels(splits.reward):
        raise ValueError(
            "`supernet` does not fit the data: fewer than half of the reward examples in "
            f"{config.data_root or 'the bundled data'} have an answer that {path} knows. {advice}"
        )
    return model


def training_free_model(backbone: Backbone, task: str, splits: Splits[Any]) -> AdaptedModel:
    """Return the pre-trained model with its own head and no adapters: a skipped layer is dropped, not replaced."""
    kind = task_class(task)
    vlp = backbone.vlp
    if backbone.untrained:
        lacks = ", ".join(backbone.untrained[:3])
        raise ValueError(f"`checkpoint` is incomplete: it lacks {lacks}. Train a supernet first, or use a complete one.")
    labelled = kind(backbone.processor, kind.choose_labels(splits))
    head = _untrained_head(vlp, labelled)
    if vlp.language_head() is None:
        untrained = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        labelled.init_head(head, backbone.heads)
        # `init_head` leaves the head as it is if no head of the checkpoint fits; then its weights are random.
        if all(torch.equal(tensor, untrained[name]) for name, tensor in head.state_dict().items()):
            raise ValueError(
                f"`checkpoint` has neither a supernet nor a head for {task} that fits these data. Train a supernet with "
                "`das-adapt supernet`, then give supernet=<the file it writes>."
            )
    vlp.remove_adapters()
    return AdaptedModel(backbone, head, labelled)


def restore(backbone: Backbone, adaptation: Adaptation, task: str, path: str | Path) -> AdaptedModel:
    """Return the model with the head and parameters of the adaptation file at `path`."""
    model = model_for_adaptation(backbone, adaptation, task, path)
    adaptation.apply(backbone.vlp, model.head, backbone.base)
    return model


def model_for_adaptation(backbone: Backbone, adaptation: Adaptation, task: str, path: str | Path) -> AdaptedModel:
    """Return the model that an adaptation file is for, with an untrained head for its labels."""
    _check_task(adaptation, task, path)
    labelled = task_class(task)(backbone.processor, adaptation.answers)
    return AdaptedModel(backbone, _untrained_head(backbone.vlp, labelled), labelled)


def new_head(backbone: Backbone, task: Task) -> nn.Module:
    """Return the model's own head, or a new one that starts from the checkpoint's where the task can."""
    head = _untrained_head(backbone.vlp, task)
    task.init_head(head, backbone.heads)
    return head


def _untrained_head(vlp: VLP, task: Task) -> nn.Module:
    own = vlp.language_head()
    return task.build_head(vlp.feature_size, vlp.head_size).to(vlp.device) if own is None else own


def _check_task(adaptation: Adaptation, task: str, path: str | Path) -> None:
    if adaptation.task != task:
        raise ValueError(f"{path} was trained for task {adaptation.task!r}, not {task!r}. Pass one trained for it")


def example_costs(model: AdaptedModel, splits: Splits[Any]) -> Costs:
    """Return MACs and parameters of one example through the model and its head."""
    counter = MacCounter(model.backbone.vlp)
    return costs_of_encoded(model, encode_cost_example(model, splits, counter), counter)


def costs_of_encoded(model: AdaptedModel, sample: tuple[State, int], counter: MacCounter) -> Costs:
    """Return MACs and parameters of the example that `encode_cost_example` returned."""
    task = model.task
    return count_costs(model.backbone.vlp, sample, model.head, task.group_features, task.passes, counter=counter)


def encode_cost_example(model: AdaptedModel, splits: Splits[Any], counter: MacCounter) -> tuple[State, int]:
    """Return the encoder outputs of one pair of text and image, and the MACs of its encoders; see `VLP.cost_example`."""
    task = model.task
    examples = splits.reward[:COST_SAMPLE]
    try:
        return model.backbone.vlp.cost_example(task.processor, task.pairs(examples), counter)
    except PromptError as error:
        key = next(example.key for example in examples if error.prompt in task.pairs([example]))
        raise ValueError(f"{key}: {error}") from error


def check_prompts(model: AdaptedModel, splits: Splits[Any]) -> None:
    """Raise the ValueError of `encode_cost_example` where the model reads prompts."""
    if model.backbone.vlp.language_head() is not None:
        encode_cost_example(model, splits, MacCounter(model.backbone.vlp))


def shuffled(task: Task, examples: Sequence[Any], count: int | None = None) -> tuple[Any, ...]:
    """Return the examples, or the first `count` of them, in `Task.shuffled_order`."""
    return tuple(examples[i] for i in task.shuffled_order(examples)[:count].tolist())
