"""Train and measure every variant: the learning rate is chosen on the reward split, then all seeds are trained with it."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.compare.variants import MethodVariant
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetune import with_new_head
from das_gym.adapt.methods.saving import to_adaptation
from das_gym.adapt.recipe import resolve_defaults
from das_gym.adapt.report import baseline_of, one_example
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.training import Log, TrainingConfig, add_prefix

from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.files import explain_damage, read_json
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.config import ProblemConfig
from das_gym.problem.latency import Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs, load_backbone, new_head, shuffled
from das_gym.processes import run_on_main_process
from das_gym.progress import progress


@dataclass(frozen=True)
class Trial:
    """One training and its measurements. Fields from `test` on are None if another learning rate is better.

    Attributes:
        variant: Key of its row.
        rate: Peak learning rate.
        seed: Of head, inserted parameters, order of examples, and a random mask.
        reward: The metric on the reward split, 0..1.
        reward_loss: The loss there, nats; None if the training diverged.
        updated: Number of trained parameters without head and poolers.
        trained: Number of trained parameters.
        seconds: Duration of the training.
        mask: 0 or 1 per layer, 1 = skipped.
        test: The metric on the test split, 0..1.
        test_loss: The loss there, nats.
        macs: Of one example.
        macs_full: Of the baseline, the pre-trained model.
        latency: Of one example, milliseconds: median and quartiles. Only for the first seed, as is `speedup`.
        speedup: Relative to the baseline: ratio of the medians and its 95 % interval.
    """

    variant: str
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

    @property
    def merit(self) -> tuple[float, float]:
        """The metric on the reward split, then the negative loss; more is better."""
        if self.reward_loss is None:
            return -math.inf, -math.inf
        return self.reward, -self.reward_loss if math.isfinite(self.reward_loss) else -math.inf


@dataclass(frozen=True)
class TrainedModel:
    """A trained model.

    Attributes:
        model: The model after `Method.finish`.
        adaptation: The trained parameters, as they are saved.
    """

    model: AdaptedModel
    adaptation: Adaptation


class ComparisonContext:
    """What all trainings share: model, data, recipe and encoder outputs.

    Args:
        problem: Model and data.
        splits: Its data.
        recipe: Of the training. Learning rates and seed are those of each trial.
        folder: For checkpoints.
        test_examples: Number of test examples, None = all.
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
        self.base = with_new_head(load_backbone(problem), problem.task, splits)
        self.plain = baseline_of(self.base)
        self.task, vlp = self.base.task, self.base.backbone.vlp
        self.recipe, self.about = resolve_defaults(recipe, self.base)
        self.encoder = EncoderCache(vlp, self.task.processor, int(recipe.encoder_cache_gib * 2**30))
        self.n_layers = len(vlp.layers)
        self.metric_name = self.task.metric_name
        self.reward_examples = shuffled(self.task, splits.reward, self.task.reward_examples)
        self.test_examples = shuffled(self.task, splits.test, test_examples)
        self.macs_full = example_costs(self.plain, splits).macs_full

    def train(self, variant: MethodVariant, rate: float, seed: int) -> tuple[TrainedModel, Trial]:
        """Train a new model, and score it on the reward split."""
        started = time.perf_counter()
        # A full copy: some methods train what others leave frozen.
        backbone = dataclasses.replace(self.base.backbone, vlp=copy.deepcopy(self.base.backbone.vlp))
        torch.manual_seed(seed)
        model = AdaptedModel(backbone, new_head(backbone, self.task), self.task)
        method = variant.make(seed, self.n_layers)
        updated = method.apply(model, seed)
        parameters = {id(p): p for module in (model.backbone.vlp, model.head) for p in module.parameters()}
        trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
        config = dataclasses.replace(self.recipe, learning_rate=rate, head_learning_rate=rate, seed=seed)
        checkpoint = self.folder / f"{variant.key}_{rate:g}_{seed}.pt"
        torch.manual_seed(seed)
        step_loss, trainer = set_up(model, self.splits.train, config, checkpoint, self.encoder, held_out=self.splits.reward)
        try:
            trainer.run(step_loss.parts, f"{variant.title}, {rate:g}, seed {seed}", add_prefix(checkpoint.stem, self.log))
            saved = to_adaptation(model, variant.method, method, row=variant.key, learning_rate=rate, seed=seed)
            method.finish(model.backbone.vlp)
            scored = evaluate(model, self.reward_examples, f"{variant.title}, reward split", rank_images=1)
        except FloatingPointError:  # diverged: a resumed run must not continue from there
            checkpoint.unlink(missing_ok=True)
            raise
        mask = tuple(model.backbone.vlp.check_mask(None).astype(int).tolist())
        seconds = time.perf_counter() - started
        checkpoint.unlink(missing_ok=True)
        trial = Trial(variant.key, rate, seed, scored.metric, scored.loss, updated, trained, seconds, mask)
        return TrainedModel(model, saved), trial

    def measure(self, model: AdaptedModel, trial: Trial, with_latency: bool = True) -> Trial:
        """Return the trial with test score and costs of its model, and with its latency if asked for."""
        scored = evaluate(model, self.test_examples, f"{trial.variant}, test split", rank_images=1)
        measured = dataclasses.replace(
            trial,
            test=scored.metric,
            test_loss=scored.loss,
            macs=example_costs(model, self.splits).macs(np.array(trial.mask, dtype=bool)),
            macs_full=self.macs_full,
        )
        if not with_latency:
            return measured
        models = {"own": model, "plain": self.plain}
        times = measure_latency({name: one_example(each, self.splits) for name, each in models.items()})
        latency, faster = tuple(Spread.of(times["own"])), tuple(speedup(times["own"], times["plain"]))
        return dataclasses.replace(measured, latency=latency, speedup=faster)


Keep = Callable[[Sequence[Trial], Trial, TrainedModel | None], None]
"""Called with all trials, the last one, and its model if that was measured on the test split."""


def run_all(
    context: ComparisonContext,
    variants: Sequence[MethodVariant],
    rates: Sequence[float],
    seeds: Sequence[int],
    done: list[Trial],
    keep: Keep,
) -> list[Trial]:
    """Choose the learning rate of each variant with the first seed, then train the other seeds with it.

    All variants are trained with one seed before any is trained with two, so that a run that stops early has a result.

    Args:
        context: What all trainings share.
        variants: The rows of the comparison.
        rates: The learning rates to choose from.
        seeds: All seeds.
        done: Trials before the run was stopped, which are not repeated.
        keep: Called after each trial.

    Returns:
        All trials.
    """
    trials = {(t.variant, t.rate, t.seed): t for t in done}
    total = len(variants) * len(seeds) + (len(rates) - 1) * sum(variant.rate_of is None for variant in variants)
    bar = progress(total, "comparing", unit="training", initial=len(trials))

    def add(trial: Trial, model: TrainedModel | None = None) -> None:
        trials[trial.variant, trial.rate, trial.seed] = trial
        keep(list(trials.values()), trial, model)
        bar.update(len(trials) - bar.n)

    chosen: dict[str, float] = {}
    with bar:
        for seed in seeds:
            for variant in variants:
                model: TrainedModel | None = None
                if variant.key not in chosen:
                    grid = rates if variant.rate_of is None else (chosen[variant.rate_of],)
                    model, chosen[variant.key] = _choose_rate(context, variant, grid, seed, trials, add)
                    first = [t for t in trials.values() if t.variant == variant.key and t.seed == seed]
                    print(describe_choice(variant, first, chosen[variant.key], context.metric_name))
                key = (variant.key, chosen[variant.key], seed)
                if key in trials and trials[key].test is not None:
                    continue
                if model is None:
                    model, trial = context.train(variant, *key[1:])
                else:
                    trial = trials[key]
                add(context.measure(model.model, trial, with_latency=seed == seeds[0]), model)
    return list(trials.values())


def _choose_rate(
    context: ComparisonContext,
    variant: MethodVariant,
    grid: Sequence[float],
    seed: int,
    trials: Mapping[tuple[str, float, int], Trial],
    add: Callable[[Trial], None],
) -> tuple[TrainedModel | None, float]:
    """Return the best learning rate and its model; the model is None if it was trained before the run was stopped."""
    best_model, best = None, grid[0]
    for rate in grid:
        model = None
        if (variant.key, rate, seed) not in trials:
            try:
                model, trial = context.train(variant, rate, seed)
            except FloatingPointError:
                trial = Trial(variant.key, rate, seed, 0.0, None, updated=0, trained=0, seconds=0.0, mask=())
            add(trial)
        tried = [trials[variant.key, each, seed] for each in grid if (variant.key, each, seed) in trials]
        best = run_on_main_process(partial(_best_rate, tried))
        if best == rate:
            best_model = model
    if trials[variant.key, best, seed].reward_loss is None:
        raise FloatingPointError(
            f"{variant.title} diverged (non-finite loss) at learning rate {', '.join(f'{rate:g}' for rate in grid)}. "
            "Try lower values in `learning_rates`."
        )
    return best_model, best


def _best_rate(trials: Sequence[Trial]) -> float:
    return max(trials, key=lambda trial: trial.merit).rate


def read_trials(path: Path) -> list[Trial]:
    """Return the trials in a comparison's record, none without a file."""
    if not path.is_file():
        return []
    with explain_damage(path, "remove it, and all is trained again"):
        return [build(Trial, trial) for trial in read_json(path)["trials"]]


def describe_choice(variant: MethodVariant, trials: Sequence[Trial], rate: float, metric_name: str) -> str:
    """Return a line on how a learning rate was chosen from the trials of one seed."""
    if variant.rate_of is not None:
        return f"{variant.title}: learning rate {rate:g}, as {variant.rate_of}"
    scores = ("diverged" if t.reward_loss is None else f"{100 * t.reward:.1f} %" for t in trials)
    tried = ", ".join(f"{score} with {t.rate:g}" for t, score in zip(trials, scores, strict=True))
    line = f"{variant.title}: {metric_name.replace('_', ' ')} on the reward split: {tried}; chosen: {rate:g}"
    rates = [t.rate for t in trials]
    if len(rates) > 1 and rate in (min(rates), max(rates)):
        return f"{line}, the {'smallest' if rate == min(rates) else 'largest'} of the grid: a better one may lie beyond it"
    return line
