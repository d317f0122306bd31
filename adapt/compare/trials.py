"""Train and measure every variant: the learning rate is chosen on the reward split, then all seeds are trained with it."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.compare.record import MethodVariant, Trial
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.methods.base import to_adaptation
from das_gym.adapt.report import baseline_of, one_example
from das_gym.adapt.step_loss import make_loss_and_trainer, resolve_defaults
from das_gym.adapt.training import Log, TrainingConfig, add_prefix

from das_gym.commands.progress import progress
from das_gym.data.splits import Splits
from das_gym.engine.encoder_cache import EncoderCache
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.latency import Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs, new_head, shuffled
from das_gym.processes import run_on_main_process

Trained = tuple[AdaptedModel, Adaptation, Trial]
"""A trained model after `Method.finish`, what was trained as it is saved, and its trial."""


class ComparisonContext:
    """What all trainings share: model, data, recipe and encoder outputs. Learning rate and seed are those of each trial."""

    def __init__(
        self,
        base: AdaptedModel,
        splits: Splits[Any],
        recipe: TrainingConfig,
        folder: Path,
        test_examples: int | None = None,
        log: Log | None = None,
    ) -> None:
        self.splits = splits
        self.folder = folder
        self.log = log
        self.base = base
        self.plain = baseline_of(self.base)
        self.task, vlp = self.base.task, self.base.backbone.vlp
        self.recipe, self.about = resolve_defaults(recipe, self.base)
        self.encoder = EncoderCache(vlp, self.task.processor, int(recipe.encoder_cache_gib * 2**30))
        self.n_layers = len(vlp.layers)
        self.metric_name = self.task.metric_name
        self.reward_examples = shuffled(self.task, splits.reward, self.task.reward_examples)
        self.test_examples = shuffled(self.task, splits.test, test_examples)
        self.macs_full = example_costs(self.plain, splits).macs_full

    def train(self, variant: MethodVariant, rate: float, seed: int) -> Trained:
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
        torch.manual_seed(seed)  # again: methods draw different amounts of random numbers for what they insert
        step_loss, trainer = make_loss_and_trainer(model, self.splits.train, config, checkpoint, self.encoder)
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
        return model, saved, Trial(variant.key, rate, seed, scored.metric, scored.loss, updated, trained, seconds, mask)

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


Keep = Callable[[Sequence[Trial], Trial, Adaptation | None], None]
"""Called with all trials, the last one, and what it trained if it was measured on the test split."""


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
    Trials that are `done` are not repeated, and `keep` is called after each of the others.
    """
    trials = {(t.variant, t.rate, t.seed): t for t in done}
    total = len(variants) * len(seeds) + (len(rates) - 1) * sum(variant.rate_of is None for variant in variants)
    bar = progress(total, "comparing", unit="training", initial=len(trials))

    def add(trial: Trial, trained: Adaptation | None = None) -> None:
        trials[trial.variant, trial.rate, trial.seed] = trial
        keep(list(trials.values()), trial, trained)
        bar.update(len(trials) - bar.n)

    chosen: dict[str, float] = {}
    with bar:
        for seed in seeds:
            for variant in variants:
                trained = None
                if variant.key not in chosen:
                    # Random masks take the rate of the searched one, so that the two differ in their masks alone.
                    grid = rates if variant.rate_of is None else (chosen[variant.rate_of],)
                    trained, chosen[variant.key] = _choose_rate(context, variant, grid, seed, trials, add)
                key = (variant.key, chosen[variant.key], seed)
                if key in trials and trials[key].test is not None:
                    continue
                model, adaptation, trial = trained or context.train(variant, *key[1:])
                add(context.measure(model, trial, with_latency=seed == seeds[0]), adaptation)
    return list(trials.values())


def _choose_rate(
    context: ComparisonContext,
    variant: MethodVariant,
    grid: Sequence[float],
    seed: int,
    trials: Mapping[tuple[str, float, int], Trial],
    add: Callable[[Trial], None],
) -> tuple[Trained | None, float]:
    """Return the training with the best learning rate, None if it ran before this run was stopped, and the rate."""
    best_trained, best = None, grid[0]
    for rate in grid:
        trained = None
        if (variant.key, rate, seed) not in trials:
            try:
                trained = context.train(variant, rate, seed)
                add(trained[-1])
            except FloatingPointError:
                add(Trial(variant.key, rate, seed, 0.0, None, updated=0, trained=0, seconds=0.0, mask=()))
        tried = [trials[variant.key, each, seed] for each in grid if (variant.key, each, seed) in trials]
        # Processes may differ by rounding, and have to agree on one rate.
        best = run_on_main_process(partial(max, tried, key=attrgetter("merit"))).rate
        if best == rate:
            best_trained = trained
    if trials[variant.key, best, seed].reward_loss is None:
        raise FloatingPointError(
            f"{variant.title} diverged (non-finite loss) at learning rate {', '.join(f'{rate:g}' for rate in grid)}. "
            "Try lower values in `learning_rates`."
        )
    if len(grid) > 1:
        scores = ("diverged" if t.reward_loss is None else f"{100 * t.reward:.1f} %" for t in tried)
        described = ", ".join(f"{score} with {t.rate:g}" for t, score in zip(tried, scores, strict=True))
        edge = "; a better one may lie beyond the grid" if best in (min(grid), max(grid)) else ""
        metric = context.metric_name.replace("_", " ")
        print(f"{variant.title}: {metric} on the reward split: {described}; chosen: {best:g}{edge}")
    return best_trained, best
