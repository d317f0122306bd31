"""Fine-tune a model without the layers of a mask: `finetune` returns the trained model in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.adapt.evaluate import evaluate, predict
from das_gym.adapt.finetuning import (
    WITHOUT_EFFECT,
    full_model,
    new_full_model,
    train_subnet,
    with_method,
    without_layers,
)
from das_gym.adapt.finished_runs import NEW_TOKENS
from das_gym.adapt.methods import MASKED, METHODS
from das_gym.adapt.methods.base import make_method, method_class, to_adaptation
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import check_training, resolve_defaults
from das_gym.adapt.subnets import save
from das_gym.adapt.training import Log
from torch import nn

from das_gym.commands.progress import show_progress
from das_gym.commands.settings import build
from das_gym.files import claim_folder
from das_gym.intervals import mean_interval
from das_gym.models.random_states import kept_random_states
from das_gym.names import brief, check_names
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.evaluation import Evaluation, evaluate_in_words
from das_gym.problem.loading import AdaptedModel, check_prompts, shuffled
from das_gym.problem.mask_space import skipped_names
from das_gym.problem.origin import sampled_sum
from das_gym.problem.problem import Problem
from das_gym.summaries import Summary
from das_gym.tables.build import data_hash

ADAPTER = "adapter"
"""The method of `finetune` that trains a model's own adapters, as `python -m adapt` does."""

CHECKPOINT = "finetuning.pt"
"""What a stopped fine-tuning continues from."""

HASHED_EXAMPLES = 64
"""Training examples that tell data sets apart."""


@dataclass(eq=False, repr=False)
class Tuned(Summary):
    """A fine-tuned model in memory, without the layers of a mask. Weights that did not train are shared with the problem.

    Attributes:
        subnet: The model with its head and task, as `load_subnet` returns it.
        problem: The problem that it was trained for, which stays as it is.
        method: How it was trained: `adapter`, a method of `das_gym.adapt.methods`, or `das` for the paper's pipeline.
        info: Settings of the training, JSON values.
        trained: What a method of `das_gym.adapt.methods` trained; None for `adapter`, whose adapters are in the model.
        trained_parameters: Number of parameters that trained.
    """

    subnet: AdaptedModel
    problem: Problem
    method: str
    info: Mapping[str, Any]
    trained: Adaptation | None
    trained_parameters: int

    @property
    def model(self) -> nn.Module:
        """The model: a METER, a ViLT, or a decoder, whose `model` is that of transformers."""
        return self.subnet.backbone.vlp

    @property
    def mask(self) -> np.ndarray:
        """(n_layers,) bool, True = removed."""
        return self.subnet.backbone.vlp.check_mask(None)

    def facts(self) -> dict[str, str]:
        """Return how it was trained, in words, by name."""
        skipped = skipped_names(self.problem.layer_names, self.mask)
        return {
            "model": type(self.model).__name__,
            "task": self.subnet.task.name,
            "method": self.method,
            "skipped layers": ", ".join(skipped) or "none",
            "trained parameters": f"{self.trained_parameters:,}",
        }

    def evaluate(self, rows: Any = None, metric: str | None = None) -> Evaluation:
        """Return score with its 95 % interval, and loss, on the test rows of the problem, or on given rows.

        Args:
            rows: What `Problem.evaluate` takes; None is the test rows.
            metric: As for `Problem.evaluate`.
        """
        task = self.subnet.task
        examples = shuffled(task, self.problem.splits.test) if rows is None else self.problem.examples_of(rows)
        with kept_random_states(self.model):
            in_words = evaluate_in_words(self.subnet.backbone.vlp, task, examples, "fine-tuned model", metric)
            if in_words is not None:
                return in_words
            found = evaluate(self.subnet, examples, "evaluating")
        low, high = mean_interval(np.array(found.metrics))
        return Evaluation(found.metric, low, high, found.loss, found.examples, found.metric_name, found.numbers)

    def predict(self, rows: Any = None, max_new_tokens: int = NEW_TOKENS) -> list[dict[str, Any]]:
        """Return the answer to each row, in the format of the task, such as `{"question_id": 1, "answer": "red"}`.

        Args:
            rows: As for `evaluate`.
            max_new_tokens: Most tokens of an answer of a model that generates.
        """
        examples = self.problem.splits.test if rows is None else self.problem.examples_of(rows)
        with kept_random_states(self.model):
            return predict(self.subnet, examples, "predicting", max_new_tokens)

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `load_subnet` reads, and return the path of its record.

        Raises:
            ValueError: The model is one in memory, which `load_subnet` could not load.
        """
        if self.subnet.backbone.origin.config is None:
            raise ValueError(
                "the model came from memory, where `load_subnet` cannot find it. Save it to a folder, and make the problem "
                "by Problem.from_pretrained(..., checkpoint=FOLDER)"
            )
        return save(self.subnet, folder, self.info, adaptation=self.trained)


def finetune(
    problem: Problem,
    mask: Any,
    method: str = ADAPTER,
    *,
    steps: int = TrainingConfig.steps,
    seed: int = TrainingConfig.seed,
    folder: str | Path | None = None,
    log: Log | None = None,
    progress: bool = True,
    **settings: Any,
) -> Tuned:
    """Remove the layers of a mask from a model, and fine-tune what is left. The problem stays as it is.

    Args:
        problem: Its model is trained on its train split.
        mask: (n_layers,) bool or 0 and 1, True = removed, as a search finds it. None removes nothing.
        method: `adapter` trains the model's own adapters, poolers and head, from the supernet if the problem has one, as
            `python -m adapt` does. Others are those of `das_gym.adapt.methods`: `lora`, `full`, `head`, `bitfit`,
            `parallel`, `das`, which start from the pre-trained weights and a new head, as `python -m adapt compare` does. In
            all but `adapter` and `das`, a removed layer has no adapter in its place.
        steps: Number of training steps.
        seed: Random seed, of new parameters and the order of examples among others.
        folder: Keeps a checkpoint, from which a call with the same arguments continues. None keeps nothing.
        log: Called with name, value and step of each metric of the training.
        progress: Whether to show progress.
        settings: Further fields of `das_gym.adapt.settings.TrainingConfig`, such as `batch_size` and `learning_rate`, and
            those of the method, such as `rank` of `lora`.

    Returns:
        The trained model: `model`, `evaluate()`, `predict(rows)`, `save(folder)`.

    Raises:
        TypeError: An argument is of another type.
        ValueError: A setting is unknown or not allowed, the model cannot be trained, or `folder` holds the work of another
            model, mask or setting.
        FloatingPointError: The training diverged.

    Example:
        >>> import das_gym
        >>> problem = das_gym.Problem.from_pretrained("METER", task="vqa")
        >>> tuned = finetune(problem, [0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], steps=1)  # one step shows how, 300 train
        >>> [name for name, skipped in zip(problem.layer_names, tuned.mask) if skipped]
        ['text.4']
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"`problem` is not a Problem: got {brief(problem)}, expected das_gym.Problem.from_model(...)")
    check_names([method], (ADAPTER, *METHODS), "method", own=True)
    own = _method_settings(method)
    check_names(settings, [*(each.name for each in fields(TrainingConfig)), *own], "setting")
    of_method = {name: settings.pop(name) for name in own if name in settings}
    config = build(TrainingConfig, {"steps": steps, "seed": seed, **settings})
    problem.backbone.origin.check_unchanged()
    removed = problem.vlp.check_mask(mask)
    check_training(problem.backbone, problem.task, config, config.itm_weight)
    if not len(problem.splits.train):
        raise ValueError("`problem` has no training examples: give `train` rows where it is made")
    with kept_random_states(problem.vlp), show_progress(progress):
        base = full_model(problem) if method == ADAPTER else new_full_model(problem)
        check_prompts(base, problem.splits)
        checkpoint = None
        if folder is not None:
            claim_folder(Path(folder), "finetuning", _inputs(base, problem, removed, method, of_method, config))
            checkpoint = Path(folder) / CHECKPOINT
        if method == ADAPTER:
            return tuned_adapters(problem, base, removed, config, checkpoint, log)
        return _tuned_by_method(problem, base, removed, method, of_method, config, checkpoint, log)


def tuned_adapters(
    problem: Problem,
    base: AdaptedModel,
    mask: np.ndarray,
    config: TrainingConfig,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> Tuned:
    """Train the adapters that are left without the layers of a mask, and the head; see `finetune`.

    Args:
        problem: Its train split is trained on.
        base: The full model; it stays as it is.
        mask: (n_layers,) bool, True = removed.
        config: Settings of the training.
        checkpoint: File to save to and to resume from. None saves nothing.
        log: Called with name, value and step of each metric.
    """
    subnet = without_layers(base, mask)
    config, _ = resolve_defaults(config, subnet)
    train_subnet(subnet, problem.splits, config, "fine-tuning", checkpoint, log)
    return _finished(problem, subnet, ADAPTER, asdict(config), None, count_trained(subnet))


def _tuned_by_method(
    problem: Problem,
    base: AdaptedModel,
    mask: np.ndarray,
    name: str,
    settings: Mapping[str, Any],
    config: TrainingConfig,
    checkpoint: Path | None,
    log: Log | None,
) -> Tuned:
    own_mask = {"mask": tuple(mask.astype(int).tolist())} if name == MASKED else {}
    method = make_method(name, {**settings, **own_mask})
    config, _ = resolve_defaults(config, base)
    model, _ = with_method(base, method, config.seed)
    if mask.any() and name != MASKED:
        model.backbone.vlp.prune(mask)
    count = count_trained(model)
    train_subnet(model, problem.splits, config, f"fine-tuning, {method.title}", checkpoint, log)
    trained = to_adaptation(model, name, method, **asdict(config))
    method.finish(model.backbone.vlp)
    return _finished(problem, model, name, asdict(config), trained, count)


def _finished(
    problem: Problem, model: AdaptedModel, method: str, info: Mapping[str, Any], trained: Adaptation | None, count: int
) -> Tuned:
    model.head.eval()
    return Tuned(model, problem, method, info, trained, count)


def count_trained(model: AdaptedModel) -> int:
    """Return the number of parameters of a model and its head that require a gradient."""
    parameters: set[nn.Parameter] = {*model.backbone.vlp.parameters(), *model.head.parameters()}  # a head may be a part
    return sum(p.numel() for p in parameters if p.requires_grad)


def _method_settings(method: str) -> tuple[str, ...]:
    """Return the names of a method's own settings; its mask is an argument of `finetune`."""
    if method == ADAPTER:
        return ()
    return tuple(each.name for each in fields(method_class(method)) if each.name != "mask")


def _inputs(
    base: AdaptedModel,
    problem: Problem,
    mask: np.ndarray,
    method: str,
    of_method: Mapping[str, Any],
    config: TrainingConfig,
) -> dict[str, Any]:
    """Return what a fine-tuned model depends on, as JSON values by name."""
    train: Sequence[Any] = problem.splits.train
    start = sampled_sum([*base.backbone.vlp.tunable_state().values(), *base.head.parameters()])
    return {
        "model": base.backbone.base,
        "task": base.task.name,
        "data": f"{len(train)} examples, {data_hash(problem.task, train[:HASHED_EXAMPLES])}",
        "mask": mask.astype(int).tolist(),
        "method": method,
        **of_method,
        **{name: value for name, value in asdict(config).items() if name not in WITHOUT_EFFECT},
        "initial_parameters": f"{start:.6g}",  # of the supernet or new ones; another device rounds otherwise
    }
