"""A validation problem: a frozen model with its supernet, a task and its data, ready to be scored.

`load_problem` is the way in: data, backbone, supernet, costs and evaluator of a configuration.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from das_gym.data.splits import Splits
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.tree import WalkMemory, resolve_precision
from das_gym.models.base import VLP, State, check_model, fingerprint
from das_gym.models.inputs import Processor, PromptError
from das_gym.models.macs import MacCounter, meta_twin
from das_gym.names import escape_control_chars
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, require_ray, supernet_command
from das_gym.problem.costs import Costs, count_costs
from das_gym.registration import (
    ENVIRONMENTS,
    MODELS,
    TASKS,
    ModelEntry,
    TaskEntry,
    find_class,
    register_model,
    register_task,
)
from das_gym.tasks.base import Task, check_task

PAIRS_PER_BATCH = 128
"""Pairs that go through the mask tree at a time, unless `eval_batch_size` is given."""

PAIR_SAMPLE = 16
"""Examples whose pairs are counted, to know how many an example has: some tasks have one for each option."""

COST_SAMPLE = 1000
"""MACs are counted at the longest text of this many reward examples."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model as loaded: frozen, with untrained adapters.

    Attributes:
        vlp, processor: The model, and what makes its batches.
        base: Its fingerprint.
        heads: Heads that came with the checkpoint, from which tasks may start theirs.
        config: What it was loaded from; None for one put together in Python.
        settings: Settings of the model that `config` lacks, such as `dropout`.
        untrained: Parameters that the checkpoint lacks, adapters aside.
    """

    vlp: VLP
    processor: Processor
    base: str
    heads: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    config: ProblemConfig | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
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


@dataclass(frozen=True)
class Problem:
    """Everything that a score depends on.

    Attributes:
        backbone: Model, processor and fingerprint; the model holds the supernet's adapters.
        head: The supernet's head.
        task: The task, with the supernet's labels.
        splits: Train, reward and test examples.
        costs: MACs and parameters at the longest text of the data.
        evaluator: Scores masks of this model.
        walk_bytes: The most bytes that scoring holds for one pair of that text; see `das_gym.engine.tree`.
    """

    backbone: Backbone
    head: nn.Module
    task: Task
    splits: Splits[Any]
    costs: Costs
    evaluator: Evaluator
    walk_bytes: int

    @property
    def vlp(self) -> VLP:
        """The model."""
        return self.backbone.vlp

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the skippable layers, in mask order."""
        return tuple(layer.name for layer in self.vlp.layers)


def load_problem(config: ProblemConfig) -> Problem:
    """Return the problem of a configuration from a process-wide cache; do not train or change it.

    It is loaded again if a path of the configuration, or a file directly in the folder of its model, changes. After other
    changes, such as of an image, start a new process. A checkpoint, supernet or data set that does not exist raises a
    FileNotFoundError, one that cannot be read or does not fit a ValueError.

    Example:
        >>> import numpy as np
        >>> problem = load_problem(ProblemConfig(model="METER", task="vqa"))
        >>> masks = np.eye(12, dtype=bool)
        >>> losses = problem.evaluator.losses(masks, problem.splits.reward[:16])
    """
    return _load_problem(config, _versions(config))


@lru_cache(maxsize=4)
def _load_problem(config: ProblemConfig, versions: tuple[int, ...]) -> Problem:
    del versions  # part of the cache's key: a supernet that was trained again is loaded again
    return build_problem(config)


def build_problem(config: ProblemConfig) -> Problem:
    """Load a problem, as `load_problem`, that shares nothing with other problems."""
    pick_device(config.device)  # both fail before data are read
    found = find_supernet(config)
    splits = load_splits(config)
    return problem_from_model(supernet_model(config, found, splits, load_backbone(config)), splits, config)


def problem_from_model(supernet: AdaptedModel, splits: Splits[Any], config: ProblemConfig) -> Problem:
    """Return the problem of scoring masks of a loaded model, which is not trained any more."""
    backbone = supernet.backbone
    supernet.head.eval().requires_grad_(False)
    counter = MacCounter(backbone.vlp)
    sample = encode_cost_example(supernet, splits, counter)
    walk = walk_bytes(supernet, sample[0], counter)
    room = int(config.tree_gib * 2**30) - _trunk_bytes(config)
    pairs = max(1, min(PAIRS_PER_BATCH, room // walk))
    few = splits.reward[:PAIR_SAMPLE]
    batch_size = config.eval_batch_size or max(pairs * len(few) // len(supernet.task.pairs(few)), 1)
    evaluator = _make_evaluator(config, supernet, batch_size, counter)
    if config.skip == "linear":
        from das_gym.problem.skip_adapters import add_linear_skips

        add_linear_skips(evaluator, backbone.base, splits.train, config.calibration_examples, config.skip_rank)
        counter = evaluator.counter = MacCounter(backbone.vlp)  # with the new adapters
    return Problem(backbone, supernet.head, supernet.task, splits, _costs_of(supernet, sample, counter), evaluator, walk)


def walk_bytes(model: AdaptedModel, encoded: State, counter: MacCounter) -> int:
    """Return the most bytes that a walk down the tree of masks holds for one pair, with logits of the model's head."""
    head = meta_twin(model.head)
    passes = model.task.passes

    def logits(features: Tensor) -> Tensor:
        return head(model.task.group_features(torch.cat([features] * passes)))

    return WalkMemory(model.backbone.vlp, counter).bytes(encoded, logits)


def _trunk_bytes(config: ProblemConfig) -> int:
    return int(config.tree_gib * 2**30 / 3)


def load_splits(config: ProblemConfig) -> Splits[Any]:
    """Return the examples of a configuration; warns of those that were left out."""
    task = task_class(config.task)
    options = reader_options(task, {"columns": config.columns, "context": config.context})
    if reads_tokens(task):
        folder = config.tokenizer or config.checkpoint or config.bundled_path("")
        load = find_class(MODELS[config.model].tokenizer)
        options["tokenizer"] = load(Path(folder), bool(config.trust_remote_code))
    try:
        splits = task.load_splits(config.data_root, config.on_bad_example, **options)
    except (FileNotFoundError, ValueError) as error:
        hint = describe_other_format(config)
        if not hint:
            raise
        raise type(error)(f"{str(error).removesuffix('.')}. {hint}") from error
    if splits.left_out:
        first = escape_control_chars("\n".join(splits.left_out[:3]))
        warnings.warn(f"{len(splits.left_out)} bad entries were left out; the first of them:\n{first}", stacklevel=2)
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
    checkpoint = Path(config.checkpoint) if config.checkpoint else config.bundled_path("")
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
    return Backbone(vlp.to(pick_device(config.device)), processor, base, heads, config, settings, untrained)


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


def _versions(config: ProblemConfig) -> tuple[int, ...]:
    given = (config.checkpoint, config.supernet, config.tokenizer, config.data_root)
    found = [Path(path).stat().st_mtime_ns for path in given if path is not None]
    for folder in (Path(path) for path in given[:3] if path is not None and Path(path).is_dir()):
        # A file that is written again in place leaves its folder's time. Links may lead nowhere.
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            found += [file.stat().st_mtime_ns, file.stat().st_size]
    return tuple(found)


def example_costs(model: AdaptedModel, splits: Splits[Any]) -> Costs:
    """Return MACs and parameters of one example through the model and its head."""
    counter = MacCounter(model.backbone.vlp)
    return _costs_of(model, encode_cost_example(model, splits, counter), counter)


def _costs_of(model: AdaptedModel, sample: tuple[State, int], counter: MacCounter) -> Costs:
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
    config = model.backbone.config
    if config is not None and MODELS[config.model].reads_prompts:
        encode_cost_example(model, splits, MacCounter(model.backbone.vlp))


def shuffled(task: Task, examples: Sequence[Any], count: int | None = None) -> tuple[Any, ...]:
    """Return the examples, or the first `count` of them, in `Task.shuffled_order`."""
    return tuple(examples[i] for i in task.shuffled_order(examples)[:count].tolist())


def _make_evaluator(
    config: ProblemConfig, model: AdaptedModel, batch_size: int, counter: MacCounter | None = None
) -> Evaluator:
    settings: dict[str, Any] = {
        "counter": counter,
        "batch_size": batch_size,
        "cache_folder": config.encoder_cache,
        "trunk_bytes": _trunk_bytes(config),
        "precision": config.precision,
    }
    parts = (model.backbone.vlp, model.head, model.task)
    if config.workers is None:
        return Evaluator(*parts, **settings)
    require_ray()
    from das_gym.engine.sharded import ShardedEvaluator
    from das_gym.problem.skip_adapters import skip_adapter_tensors

    # Workers load what is frozen, and are sent what is trained. They must not choose another precision, and Ray shows each
    # of them one GPU alone, whose number is 0.
    device = model.backbone.vlp.device
    precision = resolve_precision(config.precision, device)
    alone = replace(config, workers=None, eval_batch_size=batch_size, precision=precision, device=device.type)

    def recipe() -> Callable[[], Evaluator]:  # of the model in its current state
        entries = MODELS[config.model], TASKS[config.task]
        skips = skip_adapter_tensors(model.backbone.vlp) if config.skip == "linear" else None
        return partial(_worker_evaluator, *entries, alone, model.adaptation(), skips)

    return ShardedEvaluator(*parts, recipe=recipe, **settings)


def _worker_evaluator(
    model_entry: ModelEntry,
    task_entry: TaskEntry,
    config: ProblemConfig,
    adaptation: Adaptation,
    skips: Mapping[str, Tensor] | None,
) -> Evaluator:
    register_model(model_entry)  # entries are sent along, since those of users are not registered on the worker
    register_task(task_entry)
    backbone = load_backbone(config)
    if config.supernet_path is None:
        backbone.vlp.remove_adapters()
    model = restore(backbone, adaptation, config.task, config.supernet or "the supernet")
    model.head.eval().requires_grad_(False)
    evaluator = _make_evaluator(config, model, cast(int, config.eval_batch_size))
    if skips is not None:  # after the encoder cache, whose folder is named after the model, as in the main process
        backbone.vlp.put_skip_adapters(skips)
        evaluator.counter = MacCounter(backbone.vlp)
    return evaluator
