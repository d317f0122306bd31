"""The parts of `adapt`, for its estimate, and what training takes: see `das_gym.problem.estimate`.

Training takes steps * examples of a step * seconds of a forward and backward pass of an example, which is timed on a copy
that shares the model's weights. It holds, in bytes,

    trained parameters * (gradient and two moments of AdamW) + examples at a time * activations of an example

With gradient checkpointing, activations are the hidden states before each layer, and those within one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from das_gym.adapt.evaluate import BATCH_PAIRS, evaluate
from das_gym.adapt.finetune import cut, find_reference
from das_gym.adapt.report import BASELINE, FULL_MODEL, one_example
from das_gym.adapt.step_loss import make_loss_and_trainer, resolve_defaults
from das_gym.agents.search_experiment import search_parts
from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.scorer import open_scorer

from das_gym.data.splits import Splits
from das_gym.problem.budget import pick_budget
from das_gym.problem.estimate import Part, seconds_of, time_encoders, time_examples
from das_gym.problem.latency import BLOCKS, RUNS
from das_gym.problem.loading import AdaptedModel, Problem
from das_gym.problem.mask_space import MaskSpace

COUNTED = 20_000
"""Examples whose distinct images are counted; more have as many in proportion."""

WARM_UPS = 2
"""Runs of a block of `measure_latency` that are not counted."""


def search_first_parts(config: SearchConfig, problem: Problem | None) -> tuple[list[Part], np.ndarray]:
    """Return the parts of the search that runs first, and a random mask that stands for its answer."""
    scorer = open_scorer(config.env_id, config.mask_kwargs, problem=problem)
    budget = pick_budget(len(scorer.layer_names), config.budget, scorer.cost_of, scorer.max_skipped)
    nothing = np.zeros(budget.n_layers, dtype=bool)
    mask = nothing if budget.is_free else MaskSpace(budget).sample(np.random.default_rng(0))
    return search_parts(scorer.engine, config.evaluations, config.masks_per_turn), mask


def adapt_parts(settings: Any, model: AdaptedModel, splits: Splits[Any], mask: np.ndarray) -> list[Part]:
    """Return the parts of `python -m adapt` after its search, which removes the layers of a mask from the full model."""
    subject = cut(model, mask)
    task, device = subject.task, subject.backbone.vlp.device
    config, _ = resolve_defaults(settings.training, subject)
    problem = model.backbone.config or settings.problem
    rng = torch.get_rng_state()  # the run has to draw what it would have drawn without an estimate
    step_loss, trainer = make_loss_and_trainer(subject, splits.train, replace(config, trackers=()), None)
    size, activations = step_loss.batch_size, step_loss.activation_bytes()
    at_a_time = step_loss.micro_batch_size or size

    def step(count: int) -> None:
        step_loss.batch_size = count
        trainer.take_step(lambda _: step_loss.parts(0))

    drawn = np.random.default_rng(0).permutation(len(splits.train))[: min(config.steps * size, COUNTED)]
    pairs = task.pairs([splits.train[int(row)] for row in drawn])
    # Encoders run once for an image, however many questions there are about it.
    images = distinct_images(pairs) * max(1.0, min(config.steps * size, len(splits.train)) / COUNTED)
    # The cache holds each image once, and a later epoch costs no encoder.
    batches = images / distinct_images(pairs[:size])
    seconds, timed = time_examples(step, size, device)
    encode, cached, _ = time_encoders(subject.backbone.vlp, task.processor, pairs[:size])
    torch.set_rng_state(rng)
    names = [FULL_MODEL, BASELINE] if settings.references else []
    models = 1 + sum(find_reference(problem, config, name, task.labels) is None for name in names)
    steps = models * config.steps
    training = batches * encode + steps * size * seconds
    kept = min(step_loss.encoder.max_bytes, int(batches * cached))
    test = min(len(splits.test), settings.test_examples or len(splits.test))
    batch = min(test, task.examples_for_pairs(BATCH_PAIRS))
    evaluated = test * time_examples(lambda n: evaluate(subject, splits.test[:n], "", rank_images=1), batch, device)[0]
    gallery = task.gallery(splits.test[:test], settings.rank_images)
    if gallery is not None:  # encoder outputs are kept; a forward takes about a third of a step
        evaluated += len(gallery.images) * len(gallery.texts) * seconds / 3 / task.passes
    alone = one_example(subject, splits)
    alone()
    timing = (2 + settings.references) * BLOCKS * (RUNS + WARM_UPS) * seconds_of(alone, device)
    return [
        Part("training", training, kept, max(0, at_a_time - timed) * activations),
        Part("evaluation", (1 + len(names)) * evaluated + timing),
    ]


def distinct_images(pairs: Sequence[Any]) -> int:
    """Return how often encoders of images run for pairs or prompts: they keep the outputs of each image."""
    return len({tuple(image.key for image in pair.images) for pair in pairs})
