"""The phases of training commands, for their estimates: see `das_gym.commands.progress.Phase`.

Each phase runs on copies that share the model's weights. What training holds besides the examples that are timed follows
from the activations that one example keeps for the backward pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from das_gym.adapt.choosing import Choice, scored_problem
from das_gym.adapt.evaluate import BATCH_PAIRS, evaluate
from das_gym.adapt.finetuning import Start, find_reference, without_layers
from das_gym.adapt.report import BASELINE, FULL_MODEL, example_forward, limit_test
from das_gym.adapt.settings import AdaptSettings
from das_gym.adapt.step_loss import StepLoss, make_loss_and_trainer, resolve_defaults, training_batch
from das_gym.adapt.training import Trainer
from das_gym.agents.search_experiment import search_phases
from das_gym.agents.searching.scorer import open_scorer
from das_gym.agents.settings import SearchConfig

from das_gym.commands.progress import Phase
from das_gym.data.splits import Splits
from das_gym.engine.caches import EncoderCache
from das_gym.problem.budget import pick_budget
from das_gym.problem.latency import BLOCKS, RUNS
from das_gym.problem.loading import AdaptedModel
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem

COUNTED = 20_000
"""Examples whose distinct images are counted; more have as many in proportion."""

WARM_UPS = 2
"""Runs of a block of `measure_latency` that are not counted."""


def search_first_phases(config: SearchConfig, problem: Problem | None) -> tuple[list[Phase], np.ndarray]:
    """Return the phases of a search that a command runs first, and a random mask that stands for its answer."""
    scorer = open_scorer(config.env_id, config.mask_kwargs, problem=scored_problem(config, problem))
    budget = pick_budget(len(scorer.layer_names), config.budget, scorer.cost_of)
    nothing = np.zeros(budget.n_layers, dtype=bool)
    mask = nothing if budget.is_free else MaskSpace(budget).sample(np.random.default_rng(0))
    return search_phases(scorer, config), mask


def training_phases(
    name: str, step_loss: StepLoss, trainer: Trainer, steps: int, mask: np.ndarray | None = None, encodes: bool = True
) -> list[Phase]:
    """Return the phases of a training: encoders, unless another training has filled their cache, and steps under a mask.

    The step loss and the trainer cannot be used afterwards.
    """
    size = step_loss.batch_size
    at_a_time = step_loss.micro_batch_size or size
    seen = min(steps * size, len(step_loss.examples))
    task = step_loss.task

    def batch(count: int) -> Sequence[Any]:
        return task.pairs(training_batch(step_loss.examples, count, step_loss.seed, step=0))

    def step(count: int) -> None:
        step_loss.batch_size = count
        trainer.take_step(lambda _: step_loss.parts(0, mask))

    training = Phase(
        name,
        seen,
        step,
        at_a_time,
        repeats=steps * size / seen,
        prepare=lambda count: step_loss.encoder_cache(batch(count)),
        example_bytes=step_loss.activation_bytes(),
    )
    if not (encodes and step_loss.caches_encoders):
        return [training]
    # Encoders run once for an image, however many questions there are about it.
    counted = batch(min(seen, COUNTED))
    share = len({tuple(image.key for image in pair.images) for pair in counted}) / len(counted)
    images = max(1, round(share * seen))
    timed: list[EncoderCache] = []

    def encode(count: int) -> None:
        timed[:] = [step_loss.encoder_cache.with_empty_caches()]
        timed[0](batch(count))

    kept = Phase("encoders", images, encode, size, kept_bytes=lambda: [(timed[0].kept_bytes, timed[0].max_bytes)])
    return [kept, training]


def evaluation_phases(
    model: AdaptedModel, splits: Splits[Any], rank_images: int | None, models: int, timed: int = 0
) -> list[Phase]:
    """Return the phases of evaluating models on the test split, and of timing some of them."""
    task = model.task
    vlp = model.backbone.vlp
    examples = splits.test
    phases = [
        Phase(
            "evaluation",
            len(examples),
            lambda count: evaluate(model, examples[:count], "", rank_images=1),
            task.examples_for_pairs(BATCH_PAIRS),
            repeats=models,
        )
    ]
    gallery = task.gallery(examples, rank_images)
    if gallery is not None:
        from das_gym.engine.ranking import score_pairs

        images = gallery.images
        texts = gallery.texts
        phases.append(
            Phase(
                "ranking",
                len(images) * len(texts),
                lambda count: score_pairs(vlp, model.head, task.processor, images[:1], texts[:count]),
                min(BATCH_PAIRS, len(texts)),
                repeats=models,
            )
        )
    if timed:
        alone = example_forward(model, splits)
        phases.append(Phase("timing", timed * BLOCKS * (RUNS + WARM_UPS), lambda count: alone()))
    return phases


def adapt_phases(settings: AdaptSettings, start: Start, choice: Choice | None, search: SearchConfig) -> list[Phase]:
    """Return the phases of the run. Without a choice there is a search; a random mask stands for its answer."""
    found: list[Phase] = []
    if choice is not None:
        mask = choice.mask
    else:
        found, mask = search_first_phases(search, start.problem)
    subnet = without_layers(start.model, mask)
    config, _ = resolve_defaults(settings.train, subnet)
    problem = start.model.backbone.origin.config or settings.problem
    references = [FULL_MODEL, BASELINE] if settings.references else []
    trained = 1 + sum(find_reference(problem, config, name, subnet.task.labels) is None for name in references)
    step_loss, trainer = make_loss_and_trainer(subnet, start.splits.train, replace(config, trackers=()), None)
    splits = limit_test(start.splits, subnet.task, settings.test_examples)
    return [
        *found,
        *training_phases("training", step_loss, trainer, trained * config.steps),
        *evaluation_phases(subnet, splits, settings.rank_images, 1 + len(references), timed=2 + settings.references),
    ]
