"""One training of one method: how it is done, and what is measured of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.compare.entrants import Entrant
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.methods.base import Method
from das_gym.adapt.methods.learnt import learnt
from das_gym.adapt.recipe import resolve_defaults
from das_gym.adapt.report import one_example
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.training import Log, TrainingConfig, add_prefix

from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.files import damage_named, read_json
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.latency import Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs, load_backbone, new_head, shuffled, task_class
from das_gym.processes import of_first
from das_gym.progress import progress


@dataclass(frozen=True)
class Trial:
    """One training and what it came to; what is None was not measured, since another learning rate is better.

    Attributes:
        entrant: Key of its row.
        rate: Peak learning rate.
        seed: Of head, inserted parameters, order of examples, and a random mask.
        reward: The task's metric on examples of the reward split, 0..1.
        reward_loss: Likewise, nats; None where training came to no number.
        updated: Parameters of the model that the method updates, without head and poolers.
        trained: All that trains.
        seconds: Of the training.
        mask: 0 or 1 a layer, 1 = skipped.
        test: The metric on the test split, 0..1.
        test_loss: Likewise, nats.
        macs: Of one example, of the finished model.
        macs_full: Of the baseline, the pre-trained model.
        latency: Of one example, milliseconds: median and quartiles; with the first seed alone, as is the next.
        speedup: How many times as fast as the baseline, timed in turns: ratio of the medians and its 95 % interval.
    """

    entrant: str
    rate: float
    seed: int
    reward: float
    reward_loss: float | None
    updated: int
    trained: int
    seconds: float
    mask: tuple[int, ...]
    test: float | None = None
    test_loss: float | None = None
    macs: int | None = None
    macs_full: int | None = None
    latency: tuple[float, ...] | None = None
    speedup: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Tuned:
    """A trained model.

    Attributes:
        model: As it is used, see `Method.finish`.
        learnt: What its method learnt, as it is kept.
    """

    model: AdaptedModel
    learnt: Adaptation


class Course:
    """What all trainings have in common: model, data, recipe, and encoder outputs, which are computed once for all.

    Args:
        problem: Model and data.
        splits: Its data.
        recipe: Of the training; its learning rates and seed are those of each trial.
        folder: For intermediate checkpoints.
        test_examples: At most so many are reported on, None = all.
        log: Called with name, value and step.
    """

    def __init__(
        self,
        problem: ProblemConfig,
        splits: Splits[Any],
        recipe: TrainingConfig,
        folder: Path,
        test_examples: int | None = None,
        log: Log | None = None,
    ) -> None:
        self.problem = problem
        self.splits = splits
        self.folder = folder
        self.log = log
        kind = task_class(problem.task)
        backbone = load_backbone(problem)
        self.task = kind(backbone.processor, kind.choose_labels(splits))
        self.plain = AdaptedModel(backbone, new_head(backbone, self.task), self.task)
        self.recipe, self.about = resolve_defaults(recipe, self.plain)
        self.encoder = EncoderCache(backbone.vlp, self.task.processor, int(recipe.encoder_cache_gib * 2**30))
        self.n_layers = len(backbone.vlp.layers)
        self.metric_name = self.task.metric_name
        self.reward_examples = shuffled(self.task, splits.reward, self.task.reward_examples)
        self.test_examples = shuffled(self.task, splits.test, test_examples)
        backbone.vlp.remove_adapters()
        self.macs_full = example_costs(self.plain, splits).macs_full

    def train(self, entrant: Entrant, rate: float, seed: int) -> tuple[Tuned, Trial]:
        """Train one, in memory of its own, and score it on the reward split.

        Raises:
            ValueError: the model cannot have the method.
            FloatingPointError: the loss is not a number any more.
        """
        checkpoint = self.folder / f"{entrant.key}_{rate:g}_{seed}.pt"
        try:
            found = self._train(entrant, rate, seed, checkpoint)
        except FloatingPointError:
            checkpoint.unlink(missing_ok=True)
            raise
        checkpoint.unlink(missing_ok=True)
        return found

    def _train(self, entrant: Entrant, rate: float, seed: int, checkpoint: Path) -> tuple[Tuned, Trial]:
        started = time.perf_counter()
        model, method = self._new(entrant, seed)
        updated = method.apply(model, seed)
        models = {id(p): p for module in (model.backbone.vlp, model.head) for p in module.parameters() if p.requires_grad}
        config = dataclasses.replace(self.recipe, learning_rate=rate, head_learning_rate=rate, seed=seed)
        torch.manual_seed(seed)
        step_loss, trainer = set_up(model, self.splits.train, config, checkpoint, self.encoder, held_out=self.splits.reward)
        trainer.run(step_loss.parts, f"{entrant.title}, {rate:g}, seed {seed}", add_prefix(checkpoint.stem, self.log))
        kept = learnt(model, entrant.method, method, row=entrant.key, learning_rate=rate, seed=seed)
        method.finish(model.backbone.vlp)
        scored = evaluate(model, self.reward_examples, f"{entrant.title}, reward split", rank_images=1)
        mask = tuple(model.backbone.vlp.check_mask(None).astype(int).tolist())
        seconds = time.perf_counter() - started
        trained = sum(p.numel() for p in models.values())
        trial = Trial(entrant.key, rate, seed, scored.metric, scored.loss, updated, trained, seconds, mask)
        return Tuned(model, kept), trial

    def _new(self, entrant: Entrant, seed: int) -> tuple[AdaptedModel, Method]:
        backbone = load_backbone(self.problem)
        torch.manual_seed(seed)
        task = type(self.task)(backbone.processor, self.task.labels)
        return AdaptedModel(backbone, new_head(backbone, task), task), entrant.made(seed, self.n_layers)

    def measure(self, model: AdaptedModel, trial: Trial, clock: bool = True) -> Trial:
        """The trial with what its finished model scores on the test split, costs, and, with `clock`, how long it takes."""
        scored = evaluate(model, self.test_examples, f"{trial.entrant}, test split", rank_images=1)
        timed = {"own": model, "plain": self.plain}
        times = measure_latency({name: one_example(each, self.splits) for name, each in timed.items()}) if clock else None
        costs = example_costs(model, self.splits)
        return dataclasses.replace(
            trial,
            test=scored.metric,
            test_loss=scored.loss,
            macs=costs.macs(np.array(trial.mask, dtype=bool)),
            macs_full=self.macs_full,
            latency=None if times is None else tuple(Spread.of(times["own"])),
            speedup=None if times is None else tuple(speedup(times["own"], times["plain"])),
        )


Keep = Callable[[Sequence[Trial], Trial, Tuned | None], None]
"""Called with all trials, the last one, and its model where that was measured on the test split."""


def run_all(
    course: Course, rows: Sequence[Entrant], rates: Sequence[float], seeds: Sequence[int], done: list[Trial], keep: Keep
) -> list[Trial]:
    """Choose the learning rate of each row on the reward split with the first seed, then train the other seeds with it.

    All rows come with one seed before any comes with two, so that a run that is stopped early has compared something.

    Args:
        course: What all have in common.
        rows: Who takes part, in order.
        rates: The grid.
        seeds: All seeds.
        done: Trials of before; what they tell is not done again.
        keep: Called after each.

    Returns:
        All trials.
    """
    trials = {(t.entrant, t.rate, t.seed): t for t in done}
    total = len(rows) * len(seeds) + (len(rates) - 1) * sum(row.rate_of is None for row in rows)
    bar = progress(total, "comparing", unit="training", initial=len(trials))

    def add(trial: Trial, tuned: Tuned | None = None) -> None:
        trials[trial.entrant, trial.rate, trial.seed] = trial
        keep(list(trials.values()), trial, tuned)
        bar.update(len(trials) - bar.n)

    chosen: dict[str, float] = {}
    with bar:
        for seed in seeds:
            for row in rows:
                tuned: Tuned | None = None
                if row.key not in chosen:
                    grid = rates if row.rate_of is None else (chosen[row.rate_of],)
                    tuned, chosen[row.key] = _choose(course, row, grid, seed, trials, add)
                    print(told(row, [t for t in trials.values() if t.entrant == row.key], seed, chosen[row.key], course))
                key = (row.key, chosen[row.key], seed)
                if key in trials and trials[key].test is not None:
                    continue
                tuned, trial = course.train(row, *key[1:]) if tuned is None else (tuned, trials[key])
                add(course.measure(tuned.model, trial, clock=seed == seeds[0]), tuned)
    return list(trials.values())


def _choose(
    course: Course,
    row: Entrant,
    rates: Sequence[float],
    seed: int,
    trials: Mapping[tuple[str, float, int], Trial],
    add: Callable[..., None],
) -> tuple[Tuned | None, float]:
    """The learning rate that is best on the reward split, and its model, unless that was trained before.

    Raises:
        FloatingPointError: none of them comes to a number.
    """
    models: dict[float, Tuned] = {}
    for rate in rates:
        if (row.key, rate, seed) not in trials:
            try:
                tuned, trial = course.train(row, rate, seed)
                models = {rate: tuned, **models}
            except FloatingPointError:
                trial = Trial(row.key, rate, seed, reward=0.0, reward_loss=None, updated=0, trained=0, seconds=0.0, mask=())
            add(trial)
        first = [t for (key, _, s), t in trials.items() if (key, s) == (row.key, seed)]
        best = of_first(lambda first=first: chosen_rate(first))  # type: ignore[misc]
        models = {rate: tuned for rate, tuned in models.items() if rate == best}  # one is enough to keep
    if trials[row.key, best, seed].reward_loss is None:
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise FloatingPointError(
            f"{row.title} comes to no number with a learning rate of {tried}: give lower learning_rates"
        )
    return models.get(best), best


def chosen_rate(trials: Sequence[Trial]) -> float:
    """The learning rate that is best on the reward split."""
    return max(trials, key=merit).rate


def merit(trial: Trial) -> tuple[float, float]:
    """How good a training is, by the metric on the reward split, and by the loss where that is level; more is better."""
    if trial.reward_loss is None:
        return -math.inf, -math.inf
    return trial.reward, -trial.reward_loss if math.isfinite(trial.reward_loss) else -math.inf


def read_trials(path: Path) -> list[Trial]:
    """The trials in a comparison's record; none where there is no such file.

    Raises:
        ValueError: it is damaged.
    """
    if not path.is_file():
        return []
    with damage_named(path, "remove it, and all is trained anew"):
        return [build(Trial, trial) for trial in read_json(path)["trials"]]


def told(row: Entrant, trials: Sequence[Trial], seed: int, rate: float, course: Course) -> str:
    """A line that says how the learning rate was chosen."""
    if row.rate_of is not None:
        return f"{row.title}: learning rate {rate:g}, as of {row.rate_of}"
    scores = {t.rate: "none" if t.reward_loss is None else f"{100 * t.reward:.1f} %" for t in trials if t.seed == seed}
    tried = ", ".join(f"{score} with {rate:g}" for rate, score in scores.items())
    metric = course.metric_name.replace("_", " ")
    line = f"{row.title}: {metric} on the reward split by learning rate: {tried}; takes {rate:g}"
    grid = sorted(t.rate for t in trials if t.seed == seed)
    ends = {grid[0]: "smallest", grid[-1]: "largest"} if len(grid) > 1 else {}
    return f"{line}, the {ends[rate]} of the grid: a better one may lie beyond it" if rate in ends else line
