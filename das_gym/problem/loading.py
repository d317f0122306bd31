"""A validation problem: a frozen model with its supernet, a task and its data, ready to be scored."""

from __future__ import annotations

import inspect
import textwrap
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
from das_gym.engine.precision import resolve_precision
from das_gym.models.base import VLP, State, check_model, fingerprint
from das_gym.models.inputs import Processor, PromptError
from das_gym.models.macs import MacCounter
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, supernet_command
from das_gym.problem.costs import Costs, count_costs
from das_gym.registration import MODELS, TASKS, ModelEntry, TaskEntry, find_class, register_model, register_task
from das_gym.streams import shown
from das_gym.tasks.base import Task, check_task

SHOWN_BAD_EXAMPLES = 3
"""How many of the examples left out are told of."""

PAIRS_PER_BATCH = 128
"""Pairs that go through the tree of masks at a time, unless told otherwise."""

STATE_BYTES = 2**31
"""Hidden vectors of prompts that the tree of masks holds at a time, at most, in bytes."""

TRUNK_BYTES = 2**30
"""Hidden vectors of the unskipped model that are kept from turn to turn where pairs are prompts, at most, in bytes."""

COST_SAMPLE = 1000
"""MACs are counted at the longest text of this many reward examples."""


SEEING_MARGIN = 0.02
"""How much better than blind a supernet has to be, of its metric's 0..1, before scores of masks mean something."""


@dataclass(frozen=True)
class Backbone:
    """A pre-trained model as loaded: frozen, with untrained adapters.

    Attributes:
        vlp: The model.
        processor: Makes its batches.
        base: Its fingerprint.
        heads: What tasks may begin their heads from, of the heads that came with the checkpoint.
        config: What it was loaded from; None for one put together by hand.
        settings: The settings of the model that it was loaded with beside that.
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
    """A model with trained adapters, a head and a task: a supernet, or a subnet once its model is pruned.

    Attributes:
        backbone: The model.
        head: Its head.
        task: The task, with the head's labels.
    """

    backbone: Backbone
    head: nn.Module
    task: Task

    def adaptation(self, **info: object) -> Adaptation:
        """What training added to the frozen model."""
        fields = {"task": self.task.name, "answers": self.task.labels, "base": self.backbone.base, "info": info}
        return Adaptation.of(self.backbone.vlp, self.head, **fields)


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
    """

    backbone: Backbone
    head: nn.Module
    task: Task
    splits: Splits[Any]
    costs: Costs
    evaluator: Evaluator

    @property
    def vlp(self) -> VLP:
        """The model."""
        return self.backbone.vlp

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the skippable layers, in mask order."""
        return tuple(layer.name for layer in self.vlp.layers)


def pick_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        message = textwrap.shorten(str(error), 100, placeholder=" ...")  # torch lists all kinds of devices
        raise ValueError(f"device={device!r} cannot be used here ({message}); use auto or cpu") from error


def takes(model: str, setting: str) -> bool:
    """Whether the function that loads a model takes a setting."""
    parameters = inspect.signature(find_class(MODELS[model].load)).parameters
    return setting in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def load_backbone(config: ProblemConfig, **settings: Any) -> Backbone:
    """The frozen model of a configuration, in memory of its own.

    Warns of what the checkpoint lacks (its adapters excepted), and of what in it is not used.

    Args:
        config: What to load.
        **settings: Of the model, where they are not the checkpoint's own: `dropout`, `bottleneck`, `skip_bottleneck`.

    Raises:
        ValueError: a checkpoint or tokenizer of another model, or one that is not whole; or a setting that it does not take.
    """
    entry, asked = MODELS[config.model], dict(settings)
    checkpoint = Path(config.checkpoint) if config.checkpoint else config.bundled("")
    settings |= {name: value for name, value in config.options.items() if name in entry.options}
    for name, value in settings.items():
        if not takes(config.model, name):
            raise ValueError(f"{name}={value} is no setting of {entry.name}: what loads it takes none of that name")
    loaded = find_class(entry.load)(checkpoint, generator=torch.Generator().manual_seed(0), **settings)
    vlp = loaded if isinstance(loaded, VLP) else loaded.vlp
    if not isinstance(vlp, find_class(entry.vlp)):
        raise ValueError(
            f"{checkpoint} holds a {type(vlp).__name__}; this environment needs a {entry.name} checkpoint, "
            f"or choose model={type(vlp).__name__}"
        )
    check_model(vlp)
    report = getattr(loaded, "report", None)
    doubts = report and report.doubts("adapter")
    if doubts:
        warnings.warn(f"{checkpoint}: {doubts}", stacklevel=2)
    if config.size is not None and vlp.size not in (None, config.size):
        raise ValueError(f"size={config.size!r}, but {checkpoint} is of the size {vlp.size!r}; leave size out")
    vlp.freeze()
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    processor = vlp.inputs(Path(config.tokenizer) if config.tokenizer else folder, config.max_text_length)
    base = fingerprint(vlp)
    heads = getattr(loaded, "heads", {})
    untrained = tuple(name for name in getattr(report, "missing", ()) if "adapter" not in name)
    return Backbone(vlp.to(pick_device(config.device)), processor, base, heads, config, asked, untrained)


def task_class(name: str) -> type[Task]:
    """The class of the task of that name.

    Raises:
        TypeError: it lacks something that a task has to offer.
    """
    task = find_class(TASKS[name].task)
    check_task(task, name)
    return task


def load_splits(config: ProblemConfig) -> Splits[Any]:
    """The examples of a configuration; warns of those that were left out."""
    splits = task_class(config.task).load_splits(config.data_root, config.on_bad_example)
    if splits.left_out:
        first = shown("\n".join(splits.left_out[:SHOWN_BAD_EXAMPLES]))
        warnings.warn(f"{splits.left_out_count} bad examples were left out; the first of them:\n{first}", stacklevel=2)
    return splits


def example_costs(model: AdaptedModel, splits: Splits[Any], sample: tuple[State, int] | None = None) -> Costs:
    """MACs and parameters of one example through the model and its head.

    Args:
        model: The model.
        splits: The data.
        sample: What `sample_of` gives of them, where it is known.
    """
    vlp, task = model.backbone.vlp, model.task
    return count_costs(vlp, sample or sample_of(model, splits), model.head, task.group_features, task.passes)


def sample_of(model: AdaptedModel, splits: Splits[Any]) -> tuple[State, int]:
    """The encoder outputs of one pair of text and image, and the MACs of its encoders; see `VLP.sample`.

    Raises:
        ValueError: the model cannot read it; names the example.
    """
    vlp, task, examples = model.backbone.vlp, model.task, splits.reward[:COST_SAMPLE]
    try:
        return vlp.sample(task.processor, task.pairs(examples), MacCounter(vlp))
    except PromptError as error:
        key = next(example.key for example in examples if error.prompt in task.pairs([example]))
        raise ValueError(f"{key}: {error}") from error


def check_prompts(backbone: Backbone, config: ProblemConfig) -> None:
    """Refuse prompts that the model cannot read: the longest is tried. Data are read for it where it reads prompts alone.

    Raises:
        ValueError: as `sample_of`.
    """
    if MODELS[config.model].reads == "prompts":
        task = task_class(config.task)(backbone.processor)
        sample_of(AdaptedModel(backbone, new_head(backbone, task), task), load_splits(config))


def pairs_that_fit(vlp: VLP, sample: State) -> int:
    """How many pairs go through the tree of masks at a time within `STATE_BYTES`, 1 to `PAIRS_PER_BATCH`.

    Args:
        vlp: The model.
        sample: Encoder outputs of one pair.
    """
    hidden = vlp.state_bytes(sample)
    held = 2 * len(vlp.stages) + 2  # on the way down the tree a stage holds its state and two outputs at most
    return max(1, min(PAIRS_PER_BATCH, STATE_BYTES // (hidden * held)))


def find_supernet(config: ProblemConfig) -> tuple[str | Path, Adaptation] | None:
    """The supernet's file and what it holds; quick, so that mistakes are told before data are read.

    Returns:
        None where a model is searched without one, as it came: it brings a head for the task.

    Raises:
        ValueError: there is none and it is needed, or it is for another task or of one mask.
    """
    if config.supernet is None and MODELS[config.model].reads == "prompts":
        return None
    if config.supernet is None and config.checkpoint is not None:
        if task_class(config.task).pretrained_head in _head_names(config, _stamps(config)):
            return None
        raise ValueError(
            f"checkpoint={config.checkpoint} comes without a supernet, and without a head for {config.task}: train a "
            f"supernet with `{supernet_command(config)}`, then pass supernet=<the file it writes>"
        )
    path = config.supernet or config.bundled(f"{config.task}_supernet.safetensors")
    supernet = Adaptation.load(path)
    if supernet.mask is not None or supernet.method is not None:
        what = "the adapters of one mask" if supernet.method is None else f"what {supernet.method.name} learnt"
        raise ValueError(f"{path} holds {what}, not a supernet: train one with `{supernet_command(config)}`")
    _check_task(supernet, config.task, path)
    return path, supernet


def load_supernet(config: ProblemConfig, splits: Splits[Any]) -> AdaptedModel:
    """Model, head and task with a supernet's parameters, in memory of their own.

    Raises:
        ValueError: parts that do not belong together; the text says which.
        FileNotFoundError: a path that does not exist.
    """
    found = find_supernet(config)
    if found is None:
        return without_training(load_backbone(config), config.task, splits)
    path, supernet = found
    _warn_of_blindness(supernet, path)
    if config.supernet is None and config.data_root is not None:
        warnings.warn(
            f"data_root={config.data_root} is scored by the bundled supernet, which learnt das_gym's own pictures and "
            "answers: unless yours are like those, it says nothing of masks, and is a poor start; train one on these data: "
            f"`{supernet_command(config)}`, then pass supernet=<the file it writes>",
            stacklevel=2,
        )
    model = restore(load_backbone(config), supernet, config.task, path)
    if not model.task.covers_labels(splits.reward):
        raise ValueError(
            f"fewer than half of the reward examples in {config.data_root or 'the bundled data'} have an answer that "
            f"{path} knows: train a supernet on this data with `{supernet_command(config)}`, "
            "then pass supernet=<the file it writes>"
        )
    return model


def _warn_of_blindness(supernet: Adaptation, path: str | Path) -> None:
    """Warn of a supernet that says of itself that it is hardly better with the pictures than without them."""
    seeing, blind = (supernet.info.get(name) for name in ("seeing", "blind"))
    if not (isinstance(seeing, Mapping) and isinstance(blind, Mapping)):
        return  # of before this was measured
    if hardly_seeing(seeing, blind):
        warnings.warn(
            f"{path} is hardly better with the pictures than without them: {told_blindness(seeing, blind)}; what it says "
            "of masks means little there: train it longer",
            stacklevel=3,
        )


def hardly_seeing(seeing: Mapping[str, float], blind: Mapping[str, float]) -> tuple[str, ...]:
    """Names of the scores, 0..1, that are hardly better with the pictures than without them."""
    return tuple(n for n, value in seeing.items() if n in blind and value < blind[n] + SEEING_MARGIN and value < 1)


def told_blindness(seeing: Mapping[str, float], blind: Mapping[str, float]) -> str:
    """Those scores, in words: `accuracy 41 % (40 % blind)`."""
    return ", ".join(f"{n} {100 * seeing[n]:.0f} % ({100 * blind[n]:.0f} % blind)" for n in hardly_seeing(seeing, blind))


def without_training(backbone: Backbone, task: str, splits: Splits[Any]) -> AdaptedModel:
    """The model as it came, with a head of its own: skipped layers are left out, and nothing takes their place.

    Raises:
        ValueError: it has no head for the task, or lacks parameters.
    """
    kind, vlp = task_class(task), backbone.vlp
    if backbone.untrained:
        raise ValueError(
            f"this checkpoint lacks {', '.join(backbone.untrained[:3])}, so that its scores without training mean nothing: "
            "train a supernet first, or use a whole checkpoint"
        )
    labelled = kind(backbone.processor, kind.choose_labels(splits))
    head = _head(vlp, labelled)
    if vlp.own_head() is None:
        untrained = {name: tensor.clone() for name, tensor in head.state_dict().items()}
        labelled.init_head(head, backbone.heads)
        if all(torch.equal(tensor, untrained[name]) for name, tensor in head.state_dict().items()):
            raise ValueError(f"this checkpoint has no head for {task} that fits these data: train a supernet for it first")
    vlp.remove_adapters()
    return AdaptedModel(backbone, head.to(vlp.device), labelled)


@lru_cache(maxsize=16)
def _head_names(config: ProblemConfig, stamps: tuple[int, ...]) -> frozenset[str]:
    """What the checkpoint calls its heads; it is read for that once, and not at every question."""
    del stamps  # part of the cache's key
    return frozenset(load_backbone(config).heads)


def _stamps(config: ProblemConfig) -> tuple[int, ...]:
    """Times of change of the files and folders that a configuration names."""
    paths = (config.checkpoint, config.supernet, config.data_root, config.tokenizer)
    return tuple(Path(path).stat().st_mtime_ns for path in paths if path is not None)


def _check_task(adaptation: Adaptation, task: str, path: str | Path) -> None:
    if adaptation.task != task:
        raise ValueError(f"{path} is for task {adaptation.task!r}, not {task!r}: pass one trained for it")


def restore(backbone: Backbone, adaptation: Adaptation, task: str, path: str | Path) -> AdaptedModel:
    """The model with the head and parameters of an adaptation file.

    Raises:
        ValueError: it is for another task or model.
    """
    model = unadapted(backbone, adaptation, task, path)
    adaptation.apply(backbone.vlp, model.head, backbone.base)
    return model


def unadapted(backbone: Backbone, adaptation: Adaptation, task: str, path: str | Path) -> AdaptedModel:
    """The model that an adaptation file is for, with an untrained head for its labels.

    Raises:
        ValueError: the file is for another task.
    """
    _check_task(adaptation, task, path)
    labelled = task_class(task)(backbone.processor, adaptation.answers)
    return AdaptedModel(backbone, _head(backbone.vlp, labelled).to(backbone.vlp.device), labelled)


def new_head(backbone: Backbone, task: Task) -> nn.Module:
    """The model's own head, or an untrained one, begun from the checkpoint's where the task can; where the model lies."""
    head = _head(backbone.vlp, task)
    task.init_head(head, backbone.heads)
    return head.to(backbone.vlp.device)


def _head(vlp: VLP, task: Task) -> nn.Module:
    """The model's own head, or a new one of the task."""
    own = vlp.own_head()
    return task.build_head(vlp.feature_size, vlp.head_size) if own is None else own


def build_problem(config: ProblemConfig) -> Problem:
    """Load everything anew, sharing nothing with other problems; raises what `load_supernet` raises."""
    find_supernet(config)  # a mistake is told before data are read
    splits = load_splits(config)
    supernet = load_supernet(config, splits)
    backbone, head, task = supernet.backbone, supernet.head, supernet.task
    head.eval().requires_grad_(False)
    sample = sample_of(supernet, splits)
    long = MODELS[config.model].reads == "prompts"  # a prompt may be a thousand times as long as a sentence
    pairs = pairs_that_fit(backbone.vlp, sample[0]) if long else PAIRS_PER_BATCH
    evaluator = _evaluator(config, supernet, config.eval_batch_size or task.examples_for_pairs(pairs))
    return Problem(backbone, head, task, splits, example_costs(supernet, splits, sample), evaluator)


def _evaluator(config: ProblemConfig, model: AdaptedModel, batch_size: int) -> Evaluator:
    """What scores masks of the model, here or by workers."""
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "cache_folder": config.encoder_cache,
        "trunk_bytes": TRUNK_BYTES if MODELS[config.model].reads == "prompts" else 0,
        "precision": config.precision,
    }
    parts = (model.backbone.vlp, model.head, model.task)
    if config.workers is None:
        return Evaluator(*parts, **settings)
    from das_gym.engine.sharded import ShardedEvaluator

    found = resolve_precision(config.precision, model.backbone.vlp.device)
    alone = replace(config, workers=None, num_workers=None, gpus_per_worker=0.0)
    settings |= {"num_workers": config.num_workers, "gpus_per_worker": config.gpus_per_worker}
    recipe = partial(_recipe, replace(alone, eval_batch_size=batch_size, precision=found), model)
    return ShardedEvaluator(*parts, recipe=recipe, **settings)


def _recipe(config: ProblemConfig, model: AdaptedModel) -> Callable[[], Evaluator]:
    """What makes a worker's evaluator of the model as it is now: what is frozen is loaded there, what trains is sent."""
    return partial(_worker_evaluator, MODELS[config.model], TASKS[config.task], config, model.adaptation())


def _worker_evaluator(
    model_entry: ModelEntry, task_entry: TaskEntry, config: ProblemConfig, adaptation: Adaptation
) -> Evaluator:
    """A worker's own; entries come along, since a person's own may have been registered elsewhere alone.

    Raises:
        ValueError: the worker finds another checkpoint than the process that sent the adaptation.
    """
    register_model(model_entry)
    register_task(task_entry)
    backbone = load_backbone(config)
    if find_supernet(config) is None:
        backbone.vlp.remove_adapters()
    model = restore(backbone, adaptation, config.task, config.supernet or "the supernet")
    model.head.eval().requires_grad_(False)
    return _evaluator(config, model, cast(int, config.eval_batch_size))


@lru_cache(maxsize=4)
def _load_problem(config: ProblemConfig, stamps: tuple[int, ...]) -> Problem:
    del stamps  # part of the cache's key: a supernet trained anew is loaded anew
    return build_problem(config)


def load_problem(config: ProblemConfig) -> Problem:
    """The problem of a configuration, from a process-wide cache: do not train it.

    Files are known by path and time of change; data or a checkpoint edited inside its folder wants a new process.
    """
    return _load_problem(config, _stamps(config))


def shuffled(task: Task, examples: Sequence[Any], count: int | None = None) -> tuple[Any, ...]:
    """The examples, or the first `count` of them, in `Task.order`."""
    return tuple(examples[i] for i in task.order(examples)[:count].tolist())


def check_problem(problem: ProblemConfig) -> None:
    """Refuse a problem without a supernet or on a device that is not there, before a run begins and data are read.

    Raises:
        ValueError: what is missing, and how to get it.
        FileNotFoundError: a path that is not there.
    """
    find_supernet(problem)
    pick_device(problem.device)
