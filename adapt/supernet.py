"""Training a supernet: adapters and head of a frozen model, over random masks.

Afterwards any mask can be scored without training, which is what the environment does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.evaluate import evaluate, with_mean_image
from das_gym.adapt.phases import evaluation_phases, training_phases
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.step_loss import check_training, make_loss_and_trainer, resolve_defaults
from das_gym.adapt.training import Log, StepResult

from das_gym.commands.progress import Phase
from das_gym.data.splits import Splits
from das_gym.models.inputs import Pair, Processor
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, check_prompts, load_backbone, load_splits, new_head, shuffled, task_class
from das_gym.processes import is_main_process
from das_gym.tasks.base import Task, read_labels

IMAGE_MARGIN = 0.02
"""A metric (0..1) that is not this much better with the images than without them does not rely on them."""


def random_mask(seed: int, step: int, n_layers: int, max_skipped: int) -> np.ndarray:
    """Return the mask of a step, (n_layers,) bool, with 0..max_skipped layers skipped."""
    rng = np.random.default_rng([seed, step])  # of the step alone: a resumed training draws the same masks
    count = rng.integers(min(max_skipped, n_layers) + 1)
    mask = np.zeros(n_layers, dtype=bool)
    mask[rng.choice(n_layers, count, replace=False)] = True
    return mask


def new_supernet(config: SupernetConfig, problem: ProblemConfig) -> tuple[AdaptedModel, Splits[Any]]:
    """Load the frozen model with new adapters and a new head, and its data; raise for what cannot be trained."""
    backbone = load_backbone(problem)
    check_training(backbone, task_class(problem.task)(backbone.processor), config, config.itm_weight)
    splits = load_splits(problem)
    task = _labelled_task(task_class(problem.task), backbone.processor, splits, config)
    torch.manual_seed(config.seed)
    model = AdaptedModel(backbone, new_head(backbone, task), task)
    check_prompts(model, splits)
    return model, splits


def train_supernet(
    config: SupernetConfig,
    problem: ProblemConfig,
    out: Path,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> Path:
    """Train a supernet, write its adaptation file, and return its path. An existing checkpoint is resumed."""
    model, splits = new_supernet(config, problem)
    config, line = resolve_defaults(config, model)
    print(line)
    step_loss, trainer = make_loss_and_trainer(model, splits.train, config, checkpoint)
    n_layers = len(model.backbone.vlp.layers)

    def step(index: int) -> Iterator[StepResult]:
        return step_loss.parts(index, random_mask(config.seed, index, n_layers, config.max_skipped))

    trainer.run(step, "supernet", log, step_loss.describe_step)
    if is_main_process():
        scores = image_reliance(model, splits)
        model.adaptation(kind="supernet", **vars(config), **scores).save(out)
        if scores:
            print(describe_reliance(**scores))
    return out


def phases(config: SupernetConfig, problem: ProblemConfig) -> list[Phase]:
    """Return the phases of `train_supernet`, timed under one random mask."""
    model, splits = new_supernet(config, problem)
    config, _ = resolve_defaults(config, model)
    step_loss, trainer = make_loss_and_trainer(model, splits.train, replace(config, trackers=()), None)
    mask = random_mask(config.seed, 0, len(model.backbone.vlp.layers), config.max_skipped)
    scored = shuffled(model.task, splits.reward, model.task.reward_examples)
    evaluation = evaluation_phases(model, replace(splits, test=scored), rank_images=1, models=2)
    return [*training_phases("training", step_loss, trainer, config.steps, mask), *evaluation]


def image_reliance(model: AdaptedModel, splits: Splits[Any]) -> dict[str, dict[str, float]]:
    """Return scores on the reward split with the images, `seeing`, and with the mean image instead, `blind`.

    The task's metric comes first, then its groups such as `question/colour`, since a model may answer one of them blindly.
    Prompts and images of many sizes, which have no mean, have no scores.
    """
    examples = shuffled(model.task, splits.reward, model.task.reward_examples)
    pairs = model.task.pairs(examples)
    if not all(isinstance(pair, Pair) for pair in pairs):
        return {}
    if len({model.task.processor.image(pair.image).shape for pair in pairs}) > 1:
        return {}
    models = {"seeing": model, "blind": with_mean_image(model, examples)}
    found = {name: evaluate(each, examples, name, rank_images=1) for name, each in models.items()}
    return {
        name: {each.metric_name: each.metric, **{n: number for n, number in each.numbers.items() if "/" in n}}
        for name, each in found.items()
    }


def describe_reliance(seeing: Mapping[str, float], blind: Mapping[str, float]) -> str:
    """Return a line with both values of the metric, and a second line if some scores do not depend on the image."""
    metric = next(iter(seeing))
    line = (
        f"{metric.replace('_', ' ')} of the full model on the reward split: {100 * seeing[metric]:.1f} %, "
        f"{100 * blind[metric]:.1f} % with every image replaced by the mean image"
    )
    agnostic = [name for name, score in seeing.items() if score < min(blind[name] + IMAGE_MARGIN, 1)]
    if not agnostic:
        return line
    scores = ", ".join(f"{name} {100 * seeing[name]:.0f} % ({100 * blind[name]:.0f} % without)" for name in agnostic)
    return f"{line}\nnot clearly better than without images: {scores}. Raise `train.steps` before a search."


def _labelled_task(kind: type[Task], processor: Processor, splits: Splits[Any], config: SupernetConfig) -> Task:
    """Return the task with the labels of a file, or those that its data contain."""
    labels = read_labels(config.vocabulary) if config.vocabulary else None
    default = kind.choose_labels(splits, config.min_answer_count)
    task = kind(processor, labels or default)
    if labels and not default:
        raise ValueError(f"`vocabulary` is not supported by {kind.name}: got {config.vocabulary}. Leave it out.")
    if labels and not task.covers_labels(splits.train):
        raise ValueError(
            f"`vocabulary` does not fit the data: {config.vocabulary} has no answer for more than half of the training "
            "examples. Pass normalised answers of these data (lower case, no articles, digits), or leave it out."
        )
    return task
