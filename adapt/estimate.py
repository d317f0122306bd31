"""The parts of `adapt` and `shrink`, for their estimates: see `das_gym.problem.estimate`.

Training takes steps * examples of a step * seconds of a forward and backward pass of an example, which is timed on a copy
that shares the model's weights. It holds, in bytes,

    trained parameters * (gradient and two moments of AdamW) + examples at a time * activations of an example

With gradient checkpointing, activations are the hidden states before each layer, and those within one layer. A recovered
model has its own weights in the end, so that its layers are in memory twice until both models are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from das_gym.adapt.base_model import cut
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.memory import ADAMW_BYTES, activation_bytes, saved_bytes
from das_gym.adapt.recipe import resolve_defaults
from das_gym.adapt.references import find_reference
from das_gym.adapt.refining import lengths
from das_gym.adapt.report import BASELINE, FULL_MODEL, one_example
from das_gym.adapt.shrink.checks import budget_of, is_removable
from das_gym.adapt.shrink.job import LATENCY_BLOCKS
from das_gym.adapt.shrink.measuring import DECODED_TOKENS, GENERATE_BATCH_SIZE, latencies, loss_of
from das_gym.adapt.shrink.recovery import (
    RecoveryConfig,
    Teacher,
    checkpointed_layers,
    insert_trained,
    recovery_loss,
    trainable_parts,
    training_rows,
)
from das_gym.adapt.shrink.settings import ShrinkSettings
from das_gym.adapt.step_loss import set_up
from das_gym.agents.estimate import search_parts
from das_gym.agents.search_experiment import SearchSettings
from das_gym.agents.searching.environment import find_scorer, make_env
from torch import Tensor

from das_gym.config import build
from das_gym.data.splits import Splits
from das_gym.models.base import bytes_of
from das_gym.models.transformers.generation import generate
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.estimate import Part, seconds_of, seconds_per_example, time_encoders
from das_gym.problem.latency import BLOCKS, RUNS
from das_gym.problem.loading import AdaptedModel, Problem
from das_gym.problem.mask_space import MaskSpace
from das_gym.tasks.base import Task

SUBPROCESS_SECONDS = 12.0
"""Time in which a fresh process imports torch and transformers; what it does with a small model is short."""

WARM_UPS = 2
"""Runs of a block of `measure_latency` that are not counted."""


def search_first_parts(values: Mapping[str, Any]) -> list[Part]:
    """Return the parts of the search that runs first, from its settings (`das_gym.adapt.choosing.search_values`)."""
    config = build(SearchSettings, values).search_config()
    env = make_env(config.env_id, config.mask_kwargs, 1, free=False)
    return search_parts(find_scorer(env.unwrapped), config.evaluations, config.masks_per_turn)


def total_steps(steps: int, refine: int) -> int:
    """Return the steps of the final training, and of those that choose among `refine` masks before it."""
    rounds = lengths(refine, steps) if refine > 1 else []
    return steps + sum(each * -(-refine // 2**number) for number, each in enumerate(rounds))


def adapt_parts(settings: Any, model: AdaptedModel, splits: Splits[Any]) -> list[Part]:
    """Return the parts of `python -m adapt` after its search.

    Args:
        settings: The command's.
        model: The full model.
        splits: The data.
    """
    subject = cut(model, np.zeros(len(model.backbone.vlp.layers), dtype=bool))
    task, device = subject.task, subject.backbone.vlp.device
    config, _ = resolve_defaults(settings.training, subject)
    problem, rng = settings.problem_config, torch.get_rng_state()
    step_loss, trainer = set_up(subject, splits.train, replace(config, trackers=(), patience=None), None)
    size, activations = step_loss.batch_size, activation_bytes(step_loss)
    at_a_time, seen = step_loss.micro_batch_size or size, min(config.steps * size, len(splits.train))

    def step(count: int) -> None:
        step_loss.batch_size = count
        trainer.take_step(lambda _: step_loss.parts(0))

    pairs = task.pairs(splits.train[:size])
    encode, cached, _ = time_encoders(step_loss.encoder, pairs)
    seconds = seconds_per_example(step, size, device)
    torch.set_rng_state(rng)
    names = [FULL_MODEL, BASELINE] if settings.references else []
    models = 1 + sum(find_reference(problem, config, name, task.labels) is None for name in names)
    steps = total_steps(config.steps, settings.refine) + (models - 1) * config.steps
    training = seen / size * encode + steps * size * seconds
    kept = min(step_loss.encoder.max_bytes, seen * cached // size)
    test = min(len(splits.test), settings.test_examples or len(splits.test))
    batch = min(test, task.examples_for_pairs(128))
    evaluated = test * seconds_per_example(lambda n: evaluate(subject, splits.test[:n], "", rank_images=1), batch, device)
    alone = one_example(subject, splits)
    alone()
    timing = 3 * BLOCKS * (RUNS + WARM_UPS) * seconds_of(alone, device)
    return [
        Part("training", training, kept, at_a_time * activations),
        Part("evaluation", (1 + len(names)) * evaluated + timing),
    ]


def shrink_parts(settings: ShrinkSettings, problem: Problem) -> list[Part]:
    """Return the parts of `python -m adapt shrink` after its search.

    Args:
        settings: The command's. Without a mask, a random one within the budget stands for it.
        problem: The full model and its data.
    """
    choice = settings.choice()
    if choice is not None:
        mask = choice.mask
    else:
        space, rng = MaskSpace(budget_of(settings, problem, settings.budget)), np.random.default_rng(0)
        draws = [space.sample(rng) for _ in range(10)]
        mask = next((draw for draw in draws if is_removable(problem, draw)), np.zeros_like(draws[0]))
    full, task, config, device = problem.vlp, problem.task, settings.recovery(), problem.vlp.device
    assert isinstance(full, VLM)
    student = pruned_copy(full, mask)
    parts = (
        [] if config.method is None else recovery_parts(student, full, task, problem.splits.train, config, settings.refine)
    )
    models = 2 + bool(parts)
    count = min(settings.test_examples or len(problem.splits.test), len(problem.splits.test))
    examples = problem.splits.test[: min(count, GENERATE_BATCH_SIZE)]
    open_ended, processor = task.open_ended(examples), task.processor
    prompts: Any = task.pairs(open_ended)

    def measure(n: int) -> None:
        generate(full, processor, prompts[:n], "", GENERATE_BATCH_SIZE)
        loss_of(full, task, open_ended[:n], GENERATE_BATCH_SIZE, "")

    scored = seconds_per_example(measure, len(prompts), device)
    first, further = latencies({"full": full}, processor, prompts[0], 1)["full"]
    generation = (2 * float(first[0]) + DECODED_TOKENS * float(further[0])) / 1000
    seconds = models * count * scored + 2 * LATENCY_BLOCKS * (1 + WARM_UPS) * generation
    return [*parts, Part("measuring", seconds), Part("verification", 2 * SUBPROCESS_SECONDS)]


def recovery_parts(
    student: VLM, full: VLM, task: Task, train: Sequence[Any], config: RecoveryConfig, refine: int
) -> list[Part]:
    """Return the parts of a recovery.

    Args:
        student: A copy without some layers, which shares the weights of the full model; it cannot be used afterwards.
        full: The full model.
        task: Its task.
        train: The train split.
        config: Settings of the recovery, with a method.
        refine: How many masks are compared after short recoveries.
    """
    size, rows = min(config.batch_size, len(train)), training_rows(len(train), config)
    batch = task.open_ended([train[row] for row in sorted(rows)[:size]])
    teacher = Teacher(full, task, batch, size)
    taught = seconds_per_example(lambda n: Teacher(full, task, batch[:n], n), size, full.device)
    weights = bytes_of([p for part in trainable_parts(student).values() for p in part.parameters()])
    trained = insert_trained(student, full, config.method)

    def step(count: int) -> None:
        with checkpointed_layers(student, config.gradient_checkpointing):
            loss = recovery_loss(student, teacher, task, batch[:count], config)["loss"]
        loss.backward()

    seconds = seconds_per_example(step, size, full.device)
    forward = partial(recovery_loss, student, teacher, task, batch[:1], config)
    activations = saved_bytes(lambda: forward()["loss"], student.parameters())
    if config.gradient_checkpointing:
        tokens = len(task.processor.encode(task.pairs(batch[:1])[0]).ids)  # type: ignore[attr-defined]
        state = tokens * full.feature_size * full.model.dtype.itemsize
        activations = checkpointed_bytes(activations, len(student.stack.layers), state)
    steps = total_steps(config.steps, refine)
    held = training_bytes(trained) + size * activations
    parts = [Part("teacher", len(rows) * taught), Part("recovery", steps * size * seconds, held=held)]
    return [*parts, Part("merging", 0.0, kept=weights)]


def training_bytes(parameters: Sequence[Tensor]) -> int:
    """Return the bytes of the gradients and the optimizer's state of parameters."""
    return sum(p.numel() * (p.element_size() + ADAMW_BYTES) for p in parameters)


def checkpointed_bytes(activations: int, layers: int, state: int) -> int:
    """Return the activations of an example with gradient checkpointing.

    Args:
        activations: Without.
        layers: Number of layers.
        state: Hidden states before a layer.
    """
    return layers * state + activations // layers
