"""A validation problem: a frozen model with its supernet, a task and its data, ready to be scored.

`Problem.from_model` makes one of objects in memory, `Problem.from_pretrained` of folders or of what is bundled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from das_gym.commands.settings import build
from das_gym.data.entries import BadExamples
from das_gym.data.splits import Splits
from das_gym.engine.caches import usable_bytes
from das_gym.engine.evaluator import Evaluator
from das_gym.engine.tree import WalkMemory, resolve_precision
from das_gym.models.base import VLP, State
from das_gym.models.macs import MacCounter, meta_twin
from das_gym.models.random_states import kept_random_states
from das_gym.names import brief, check_names
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig, Scoring, require_ray
from das_gym.problem.costs import Costs
from das_gym.problem.evaluation import Evaluation, evaluate_full
from das_gym.problem.loading import (
    AdaptedModel,
    Backbone,
    costs_of_encoded,
    encode_cost_example,
    find_supernet,
    live_backbone,
    load_backbone,
    load_rows,
    load_splits,
    pick_device,
    restore,
    rows_options,
    rows_table,
    shuffled,
    supernet_model,
    task_class,
    training_free_model,
)
from das_gym.registration import MODELS, TASKS, ModelEntry, TaskEntry, register_model, register_task
from das_gym.summaries import Summary
from das_gym.tasks.base import Task

PAIRS_PER_BATCH = 128
"""Pairs that go through the mask tree at a time, unless `eval_batch_size` is given."""

TREE_BYTES = 3 * 2**30
"""Bytes for scoring on a CPU, unless `tree_gib` is given."""

PRECISION_SAMPLE = 64
"""Examples on which `precision=auto` compares the full model's losses."""

PAIR_SAMPLE = 16
"""Examples whose pairs are counted, to know how many an example has: some tasks have one for each option."""


class Problem(Summary):
    """Everything that a score of a mask depends on.

    Attributes:
        backbone: Model, processor, fingerprint and origin; the model holds the supernet's adapters.
        head: The supernet's head, or the model's own.
        task: The task, with the supernet's labels.
        splits: Train, reward and test examples.
        costs: MACs and parameters at the longest text of the data.
        evaluator: Scores masks of this model.
        walk_bytes: The most bytes that scoring holds for one pair of that text; see `das_gym.engine.tree`.
        scoring: How masks are scored.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        task: Task,
        splits: Splits[Any],
        costs: Costs,
        evaluator: Evaluator,
        walk_bytes: int,
        scoring: Scoring,
    ) -> None:
        self.backbone = backbone
        self.head = head
        self.task = task
        self.splits = splits
        self.costs: Costs = costs
        self.evaluator = evaluator
        self.walk_bytes = walk_bytes
        self.scoring = scoring

    @classmethod
    def from_model(
        cls,
        model: Any,
        processor: Any,
        task: str = "answering",
        *,
        train: Any = None,
        validation: Any = None,
        test: Any = None,
        **settings: Any,
    ) -> Self:
        """Return the problem of a transformers model and rows in memory. Model, processor and rows stay as they are.

        Args:
            model: A model with a language head, on its device. Its parameters are shared: once it is trained, make a new
                problem.
            processor: Its processor, or the tokenizer of a text model.
            task: `answering` (rows have `image`, `question` and `answer`), `text` (rows have `text`) or `choices` (rows have
                `question`, `choices`, `answer`, and `image` if they like). An image is PIL, bytes, a path, a dict of
                `datasets`, a list of these, or None.
            train: Rows to train and calibrate on: a `datasets.Dataset` or a list of dicts. Images are decoded when needed.
            validation: Rows that masks are scored on.
            test: Rows that `evaluate` reports. What is missing is split off from another part.
            settings: Settings of `das_gym.problem.config.Scoring`, such as `units`, `vision` and `skip`.

        Raises:
            TypeError: An argument is of another type.
            ValueError: The model is not supported, a setting is unknown or not allowed, or a row is damaged.
        """
        if isinstance(model, str | Path):  # a common slip, whose error should name the other way in
            advice = f"Problem.from_pretrained(..., checkpoint={str(model)!r:.80})"
            raise TypeError(f"`model` is a name or path: got {str(model)!r:.80}, expected a loaded model. Use {advice}")
        of_folders = {each.name for each in fields(ProblemConfig)} - {each.name for each in fields(Scoring)}
        for name in settings.keys() & of_folders:
            got = brief(settings[name])
            raise TypeError(f"`{name}` is for models in folders: got {got}. Use Problem.from_pretrained(...)")
        scoring = build(Scoring, settings)
        check_names([task], TASKS, "task", own=True)
        kind = task_class(task)
        with kept_random_states():
            backbone = live_backbone(model, processor, scoring)
            tokenizer = getattr(processor, "tokenizer", processor)
            splits = load_rows(kind, {"train": train, "validation": validation, "test": test}, tokenizer, scoring)
            adapted = training_free_model(backbone, task, splits)
            return cast(Self, problem_from_model(adapted, splits, scoring))

    @classmethod
    def from_pretrained(
        cls, model: str, task: str, *, checkpoint: str | None = None, data_root: str | None = None, **settings: Any
    ) -> Self:
        """Return the problem of a model and data in folders. The same arguments return the same object.

        Args:
            model: Kind of model: `METER`, `ViLT`, `VLM`, or another key of `das_gym.registration.MODELS`.
            task: A task that the model has: `vqa`, `answering`, ..., a key of `das_gym.registration.TASKS`.
            checkpoint: Folder or file of the weights. None is the bundled model.
            data_root: Folder of the data. None is the bundled data.
            settings: Further settings of `das_gym.ProblemConfig`, such as `device` and `units`.

        Raises:
            FileNotFoundError: A path does not exist.
            ValueError: A setting is unknown or not allowed, or a file cannot be read.
        """
        given = {"model": model, "task": task, "checkpoint": checkpoint, "data_root": data_root, **settings}
        with kept_random_states():
            return cast(Self, load_problem(build(ProblemConfig, given)))

    @property
    def vlp(self) -> VLP:
        """The model."""
        return self.backbone.vlp

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the skippable layers, in mask order."""
        return tuple(layer.name for layer in self.vlp.layers)

    @property
    def reward_examples(self) -> tuple[Any, ...]:
        """The validation examples that score a mask by default: a fair sample in the order of the task."""
        return shuffled(self.task, self.splits.reward, self.task.reward_examples)

    def losses(self, masks: Any) -> np.ndarray:
        """Return the (m,) float64 mean losses in nats of (m, n_layers) masks, True = skipped, on `reward_examples`."""
        self.backbone.origin.check_unchanged()
        return self.evaluator.losses(masks, self.reward_examples)

    def evaluate(self, rows: Any = None, metric: str | None = None) -> Evaluation:
        """Return score with its 95 % interval, and loss, of the full model.

        Args:
            rows: What it is evaluated on, see `examples_of`; None is the test rows.
            metric: Score of generated answers, as registered by `das_gym.register_metric`. None is the task's own.
        """
        self.backbone.origin.check_unchanged()
        examples = shuffled(self.task, self.splits.test) if rows is None else self.examples_of(rows)
        with kept_random_states(self.vlp):
            return evaluate_full(self.vlp, self.task, self.evaluator, examples, metric)

    def examples_of(self, rows: Any) -> Sequence[Any]:
        """Return the examples of rows in memory.

        Args:
            rows: A `datasets.Dataset` or a list of dicts, as `from_model` takes them; examples of the task, such as
                `problem.splits.test[:100]`, are returned as they are.
        """
        if isinstance(rows, Sequence) and len(rows) and not isinstance(rows, str) and not isinstance(rows[0], Mapping):
            return rows
        tokenizer = getattr(self.task.processor, "tokenizer", None)
        options = rows_options(type(self.task), tokenizer, self.scoring)
        return type(self.task).read_rows(rows_table(rows, "rows"), BadExamples(self.scoring.on_bad_example), **options)

    def facts(self) -> dict[str, str]:
        """Return model, data and costs in words, by name."""
        names = self.layer_names
        folder = self.backbone.origin.folder
        counts = zip(("train", "validation", "test"), (self.splits.train, self.splits.reward, self.splits.test), strict=True)
        model = type(getattr(self.vlp, "model", self.vlp)).__name__
        return {
            "task": self.task.name,
            "model": f"{model}, {'in memory' if folder is None else folder}",
            "units": f"{len(names)}: {names[0]} ... {names[-1]}",
            "MACs of an example": f"{self.costs.macs_full:,}",
            "examples": ", ".join(f"{len(part):,} {name}" for name, part in counts),
            "fingerprint": self.backbone.base,
        }

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Gymnasium copies the arguments of an environment into its spec and out of it; the model stays in memory once.
        return self

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Problem cannot be pickled or copied to another process. Make it there: Problem.from_pretrained(...)"
        )


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
    if not isinstance(config, ProblemConfig):
        raise TypeError(
            f"`config` is not a ProblemConfig: got {brief(config)}. Give ProblemConfig(model='METER', task='vqa')"
        )
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


def problem_from_model(supernet: AdaptedModel, splits: Splits[Any], scoring: Scoring) -> Problem:
    """Return the problem of scoring masks of a loaded model, which is not trained any more."""
    backbone = supernet.backbone
    supernet.head.eval().requires_grad_(False)
    counter = MacCounter(backbone.vlp)
    sample = encode_cost_example(supernet, splits, counter)
    walk = walk_bytes(supernet, sample[0], counter)
    most = _tree_bytes(scoring, backbone.vlp.device)
    trunk_bytes = most // 3
    pairs = max(1, min(PAIRS_PER_BATCH, 2 * trunk_bytes // walk))
    few = splits.reward[:PAIR_SAMPLE]
    pairs_of_few = len(supernet.task.pairs(few))
    batch_size = scoring.eval_batch_size or max(pairs * len(few) // pairs_of_few, 1)
    # One example may need more than two thirds.
    trunk_bytes = min(trunk_bytes, max(0, most - walk * batch_size * pairs_of_few // len(few)))
    sample_of_split = shuffled(supernet.task, splits.reward, PRECISION_SAMPLE)
    precision = _choose_precision(scoring.precision, supernet, sample_of_split, batch_size)
    evaluator = _make_evaluator(scoring, supernet, batch_size, trunk_bytes, precision, counter)
    if scoring.skip == "linear":
        from das_gym.problem.skip_adapters import add_linear_skips

        add_linear_skips(evaluator, backbone.base, splits.train, scoring.calibration_examples, scoring.skip_rank)
        counter = evaluator.counter = MacCounter(backbone.vlp)  # with the new adapters
    costs = costs_of_encoded(supernet, sample, counter)
    return Problem(backbone, supernet.head, supernet.task, splits, costs, evaluator, walk, scoring)


def walk_bytes(model: AdaptedModel, encoded: State, counter: MacCounter) -> int:
    """Return the most bytes that a walk down the tree of masks holds for one pair, with logits of the model's head."""
    head = meta_twin(model.head)
    passes = model.task.passes

    def logits(features: Tensor) -> Tensor:
        return head(model.task.group_features(torch.cat([features] * passes)))

    return WalkMemory(model.backbone.vlp, counter).bytes(encoded, logits)


def _tree_bytes(scoring: Scoring, device: torch.device) -> int:
    return usable_bytes(device, TREE_BYTES, 0.5) if scoring.tree_gib is None else int(scoring.tree_gib * 2**30)


def _choose_precision(precision: str, model: AdaptedModel, examples: Sequence[Any], batch_size: int) -> str:
    """Return `float32` or `bfloat16`; see `Scoring.precision`."""
    device = model.backbone.vlp.device
    if precision != "auto" or resolve_precision(precision, device) == "float32":
        return resolve_precision(precision, device)
    full_model = np.zeros((1, len(model.backbone.vlp.layers)), dtype=bool)
    losses = {}
    for each in ("float32", "bfloat16"):
        evaluator = Evaluator(model.backbone.vlp, model.head, model.task, batch_size, precision=each)
        losses[each] = evaluator.evaluate_each(full_model, examples, block=(0, len(examples))).losses[0]
    noise = losses["float32"].std() / np.sqrt(len(examples))
    return "bfloat16" if abs(losses["bfloat16"].mean() - losses["float32"].mean()) <= noise else "float32"


def _versions(config: ProblemConfig) -> tuple[int, ...]:
    given = (config.checkpoint, config.supernet, config.tokenizer, config.data_root)
    found = [Path(path).stat().st_mtime_ns for path in given if path is not None]
    for folder in (Path(path) for path in given[:3] if path is not None and Path(path).is_dir()):
        # A file that is written again in place leaves its folder's time. Links may lead nowhere.
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            found += [file.stat().st_mtime_ns, file.stat().st_size]
    return tuple(found)


def _make_evaluator(
    scoring: Scoring,
    model: AdaptedModel,
    batch_size: int,
    trunk_bytes: int,
    precision: str,
    counter: MacCounter | None = None,
) -> Evaluator:
    settings: dict[str, Any] = {
        "counter": counter,
        "batch_size": batch_size,
        "cache_folder": scoring.encoder_cache,
        "trunk_bytes": trunk_bytes,
        "precision": precision,
    }
    parts = (model.backbone.vlp, model.head, model.task)
    if scoring.workers is None:
        return Evaluator(*parts, **settings)
    require_ray()
    from das_gym.engine.sharded import ShardedEvaluator
    from das_gym.problem.skip_adapters import skip_adapter_tensors

    config = model.backbone.origin.config
    if config is None:
        raise ValueError(f"`workers` needs a model in a folder: got {scoring.workers} for a live model. Leave it out.")
    # Workers load what is frozen, and are sent what is trained. They must not choose another precision, and Ray shows each
    # of them one GPU alone, whose number is 0.
    device = model.backbone.vlp.device
    same = {each.name: getattr(scoring, each.name) for each in fields(Scoring)}
    same |= {"workers": None, "eval_batch_size": batch_size, "precision": precision}
    alone = replace(config, **same, device=device.type)

    def recipe() -> Callable[[], Evaluator]:  # of the model in its current state
        entries = MODELS[config.model], TASKS[config.task]
        skips = skip_adapter_tensors(model.backbone.vlp) if scoring.skip == "linear" else None
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
    trunk_bytes = _tree_bytes(config, backbone.vlp.device) // 3
    evaluator = _make_evaluator(config, model, cast(int, config.eval_batch_size), trunk_bytes, config.precision)
    if skips is not None:  # after the encoder cache, whose folder is named after the model, as in the main process
        backbone.vlp.put_skip_adapters(skips)
        evaluator.counter = MacCounter(backbone.vlp)
    return evaluator
