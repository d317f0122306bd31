"""The rows of a comparison of methods of fine-tuning: the first seed chooses the learning rate, on the reward split."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from das_gym.adapt.compare.record import Trial, kept_file
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import with_method
from das_gym.adapt.hardware import gib_bytes
from das_gym.adapt.methods import MASKED, METHODS
from das_gym.adapt.methods.base import Method, make_method, to_adaptation
from das_gym.adapt.phases import evaluation_phases, training_phases
from das_gym.adapt.report import baseline_model, example_forward
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import StepLoss, make_loss_and_trainer, resolve_defaults
from das_gym.adapt.training import Log, Trainer, add_prefix
from das_gym.agents.comparing.runner import Comparison

from das_gym.commands.progress import Phase
from das_gym.data.splits import Splits
from das_gym.drawing.architecture import Architecture
from das_gym.engine.caches import EncoderCache
from das_gym.names import format_count
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.latency import Spread, measure_latency, speedup
from das_gym.problem.loading import AdaptedModel, example_costs, shuffled
from das_gym.processes import is_main_process, run_on_main_process
from das_gym.registration import find_class

GRID = (5e-4, 2e-3, 8e-3)
"""Learning rates to choose from for small models."""

PAPER_FACTORS = (0.25, 1.0, 4.0)
"""Multiples of the paper's learning rate to choose from, for models of base size."""


@dataclass(frozen=True)
class MethodVariant:
    """A row of the comparison. With `rate_of`, masks are drawn for each seed, and take the learning rate of that row."""

    key: str
    title: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    skip_num: int = 0
    rate_of: str | None = None

    def make(self, seed: int, n_layers: int) -> Method:
        """Return the method with its settings; with `rate_of`, its mask is drawn by the seed."""
        if self.rate_of is None:
            return make_method(self.method, self.settings)
        mask = np.zeros(n_layers, dtype=int)
        # Of the seed alone, so that a resumed comparison trains the same masks.
        mask[np.random.default_rng([seed, self.skip_num]).choice(n_layers, self.skip_num, replace=False)] = 1
        return make_method(self.method, {**self.settings, "mask": tuple(mask.tolist())})


def method_variants(
    methods: Sequence[str], settings: Mapping[str, Mapping[str, Any]], masks: Mapping[int, Sequence[int]]
) -> list[MethodVariant]:
    """Return all rows, given the searched mask for each number of skipped layers."""
    variants: list[MethodVariant] = []
    for name in methods:
        own = dict(settings.get(name, {}))
        make_method(name, own)  # rejects wrong settings before anything trains
        if name != MASKED:
            variants.append(MethodVariant(name, find_class(METHODS[name]).title, name, own))
            continue
        for skip_num, mask in sorted(masks.items()):
            key = f"das_{skip_num}"
            variants.append(MethodVariant(key, f"DAS, {skip_num} skipped", name, {**own, "mask": tuple(mask)}, skip_num))
            if skip_num:
                title = f"DAS, {skip_num} at random"
                variants.append(MethodVariant(f"random_{skip_num}", title, name, own, skip_num, rate_of=key))
    return variants


class TrainingRows:
    """The rows of methods of fine-tuning, which share model, data, recipe and encoder outputs.

    Args:
        base: The model before fine-tuning.
        splits: Train, reward and test examples.
        recipe: Settings of every training but its learning rate and seed.
        variants: The rows.
        rates: Learning rates to choose from with the first seed. Empty means `GRID`, or `PAPER_FACTORS` times the recipe's
            rate for a model of base size.
        seeds: Each row is trained with each.
        folder: Keeps the best model of each row, and the state of the training that is in progress.
        test_examples: Number of test examples to evaluate on. None evaluates on all.
        log: Called with name, value and step of each metric of a training.
    """

    def __init__(
        self,
        base: AdaptedModel,
        splits: Splits[Any],
        recipe: TrainingConfig,
        variants: Sequence[MethodVariant],
        rates: Sequence[float],
        seeds: Sequence[int],
        folder: Path,
        test_examples: int | None = None,
        log: Log | None = None,
    ) -> None:
        self.splits = splits
        self.folder = folder
        self.log = log
        self.base = base
        self.plain = baseline_model(self.base)
        self.task = self.base.task
        vlp = self.base.backbone.vlp
        self.architecture = Architecture.from_layers(vlp.layers)
        self.recipe, self.description = resolve_defaults(recipe, self.base)
        self.encoder_cache = EncoderCache(vlp, self.task.processor, gib_bytes(recipe.encoder_cache_gib))
        self.n_layers = len(vlp.layers)
        self.metric = self.task.metric_name
        self.reward_examples = shuffled(self.task, splits.reward, self.task.reward_examples)
        self.test_examples = shuffled(self.task, splits.test, test_examples)
        self.macs_full = example_costs(self.plain, splits).macs_full
        self.by_key = {variant.key: variant for variant in variants}
        self.variants = tuple(self.by_key)
        self.rates = tuple(rates) or GRID
        if not rates and vlp.size == "base":
            self.rates = tuple((self.recipe.learning_rate or 0.0) * share for share in PAPER_FACTORS)
        self.seeds = seeds
        searched = sum(variant.rate_of is None for variant in variants)
        self.count = len(variants) * len(seeds) + (len(self.rates) - 1) * searched
        tested = format_count(len(self.test_examples), "test example")
        self.title = f"{self.metric.replace('_', ' ')} after {format_count(recipe.steps, 'step')}, {tested}"

    def cells(self, comparison: Comparison[Trial]) -> Iterator[Mapping[str, Any]]:
        """See `comparison_cells`."""
        return comparison_cells(list(self.by_key.values()), self.rates, self.seeds, comparison, self.metric)

    def run_trial(self, comparison: Comparison[Trial], **cell: Any) -> Trial:
        """Train, and measure and keep the model if it may be the best of its row."""
        variant, seed, rate = cell["variant"], cell["seed"], cell["rate"]
        try:
            model, adaptation, trial = self.train(self.by_key[variant], rate, seed)
        except FloatingPointError:
            if seed != self.seeds[0]:
                raise
            return Trial(variant, seed, rate)
        rivals = [each for each in comparison.trials if each.variant == variant]
        # Processes may differ by rounding, and have to agree.
        is_best = run_on_main_process(lambda: all(trial.merit > each.merit for each in rivals))
        if seed == self.seeds[0] and not is_best:  # its learning rate is not chosen
            self.checkpoint(variant, rate, seed).unlink(missing_ok=True)
            return trial
        trial = self.measure(model, trial, next((each for each in rivals if each.latency), None))
        if is_main_process() and is_best:
            # Saved before the record: a resumed run does not train a recorded trial again.
            adaptation.save(kept_file(self.folder, variant))
        return trial

    def phases(self) -> Iterator[Phase]:
        """Yield the phases of all trainings and of their evaluation."""
        first = self.seeds[0]
        for number, variant in enumerate(self.by_key.values()):
            count = len(self.seeds) + (len(self.rates) - 1 if variant.rate_of is None else 0)
            model, _, _ = self.new_model(variant, first)
            step_loss, trainer = self.make_trainer(model, self.rates[0], first)
            yield from training_phases(variant.title, step_loss, trainer, count * self.recipe.steps, encodes=number == 0)
        scored = dataclasses.replace(self.splits, test=[*self.reward_examples, *self.test_examples])
        timed = 2 * len(self.variants)
        yield from evaluation_phases(self.base, scored, rank_images=1, models=self.count, timed=timed)

    def checkpoint(self, key: str, rate: float, seed: int) -> Path:
        """Return the file of a training's state, which exists until the trial is measured."""
        return self.folder / f"{key}_{rate:g}_{seed}.pt"

    def new_model(self, variant: MethodVariant, seed: int) -> tuple[AdaptedModel, Method, int]:
        """Return a new model, the method that is to train it, and how many parameters that updates."""
        method = variant.make(seed, self.n_layers)
        model, updated = with_method(self.base, method, seed)
        return model, method, updated

    def make_trainer(
        self, model: AdaptedModel, rate: float, seed: int, checkpoint: Path | None = None
    ) -> tuple[StepLoss, Trainer]:
        """Return the loss and the trainer of a model of `new_model`, with `rate` for all of its parameters."""
        config = dataclasses.replace(self.recipe, learning_rate=rate, head_learning_rate=rate, seed=seed)
        torch.manual_seed(seed)  # methods draw different amounts of random numbers for what they insert
        return make_loss_and_trainer(model, self.splits.train, config, checkpoint, self.encoder_cache)

    def train(self, variant: MethodVariant, rate: float, seed: int) -> tuple[AdaptedModel, Adaptation, Trial]:
        """Train a new model, and score it on the reward split; return it after `Method.finish`, and what is saved of it."""
        started = time.perf_counter()
        checkpoint = self.checkpoint(variant.key, rate, seed)
        model, method, updated = self.new_model(variant, seed)
        step_loss, trainer = self.make_trainer(model, rate, seed, checkpoint)
        title = f"{variant.title}, {rate:g}, seed {seed}"
        parameters = {id(p): p for module in (model.backbone.vlp, model.head) for p in module.parameters()}
        trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
        try:
            trainer.run(step_loss.parts, title, add_prefix(checkpoint.stem, self.log))
            saved = to_adaptation(model, variant.method, method, row=variant.key, learning_rate=rate, seed=seed)
            method.finish(model.backbone.vlp)
            scored = evaluate(model, self.reward_examples, f"{variant.title}, reward split", rank_images=1)
        except FloatingPointError:  # diverged: a resumed run must not continue from there
            checkpoint.unlink(missing_ok=True)
            raise
        trial = Trial(
            variant=variant.key,
            seed=seed,
            rate=rate,
            reward=scored.metric,
            reward_loss=scored.loss,
            updated=updated,
            trained=trained,
            seconds=time.perf_counter() - started,
            title=variant.title,
            mask=tuple(model.backbone.vlp.check_mask(None).astype(int).tolist()),
        )
        return model, saved, trial

    def measure(self, model: AdaptedModel, trial: Trial, timed: Trial | None = None) -> Trial:
        """Return the trial with test score and costs of its model, and with latency: measured, or copied from `timed`."""
        scored = evaluate(model, self.test_examples, f"{trial.variant}, test split", rank_images=1)
        if timed is None:
            models = {"own": model, "plain": self.plain}
            forwards = {name: example_forward(each, self.splits) for name, each in models.items()}
            times = measure_latency(forwards, model.backbone.vlp.device)
            faster = tuple(speedup(times["own"], times["plain"]))
            timed = dataclasses.replace(trial, latency=tuple(Spread.from_values(times["own"])), speedup=faster)
        assert trial.rate is not None
        self.checkpoint(trial.variant, trial.rate, trial.seed).unlink(missing_ok=True)
        return dataclasses.replace(
            trial,
            latency=timed.latency,
            speedup=timed.speedup,
            test=scored.metric,
            test_loss=scored.loss,
            macs=example_costs(model, self.splits).macs(np.array(trial.mask, dtype=bool)),
            macs_full=self.macs_full,
        )


def comparison_cells(
    variants: Sequence[MethodVariant],
    rates: Sequence[float],
    seeds: Sequence[int],
    comparison: Comparison[Trial],
    metric: str,
) -> Iterator[dict[str, Any]]:
    """Yield the fields of each training: with the first seed every learning rate, with other seeds the best of these.

    All variants are trained with one seed before any is trained with two, so that a run that stops early has a result.
    """
    chosen: dict[str, float] = {}
    for seed in seeds:
        for variant in variants:
            if seed == seeds[0] and variant.rate_of is None:
                for rate in rates:
                    yield {"variant": variant.key, "seed": seed, "rate": rate}
                chosen[variant.key] = _choose_rate(variant, rates, seed, comparison, metric)
                continue
            # Random masks take the rate of the searched one, so that the two differ in their masks alone.
            yield {"variant": variant.key, "seed": seed, "rate": chosen[variant.rate_of or variant.key]}


def _choose_rate(
    variant: MethodVariant, rates: Sequence[float], seed: int, comparison: Comparison[Trial], metric: str
) -> float:
    """Return the learning rate of the training that is best on the reward split, and print the choice."""
    tried = [trial for trial in comparison.trials if (trial.variant, trial.seed) == (variant.key, seed)]
    # Processes may differ by rounding, and have to agree on one rate.
    best = run_on_main_process(lambda: max(tried, key=lambda trial: trial.merit).rate)
    assert best is not None
    if all(trial.reward_loss is None for trial in tried):
        raise FloatingPointError(
            f"{variant.title} diverged (non-finite loss) at learning rate {', '.join(f'{rate:g}' for rate in rates)}. "
            "Try lower values in `learning_rates`."
        )
    if len(rates) > 1:
        scores = ("diverged" if trial.reward_loss is None else f"{100 * trial.reward:.1f} %" for trial in tried)
        described = ", ".join(f"{score} with {trial.rate:g}" for trial, score in zip(tried, scores, strict=True))
        edge = "; a better one may lie beyond the grid" if best in (min(rates), max(rates)) else ""
        print(f"{variant.title}: {metric} on the reward split: {described}; chosen: {best:g}{edge}")
    return best
