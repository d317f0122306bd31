"""The parts of `shrink`, for its estimate: see `das_gym.adapt.estimate` and `das_gym.problem.estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from das_gym.adapt.estimate import WARM_UPS, checkpointed_bytes, total_steps
from das_gym.adapt.memory import saved_bytes, training_bytes
from das_gym.adapt.shrink.checks import budget_of, is_removable
from das_gym.adapt.shrink.job import LATENCY_BLOCKS
from das_gym.adapt.shrink.measuring import DECODED_TOKENS, GENERATE_BATCH_SIZE, latencies, loss_of
from das_gym.adapt.shrink.recovery import (
    RecoveryConfig,
    Teacher,
    checkpointed_layers,
    insert_trained,
    recovery_loss,
    training_rows,
)
from das_gym.adapt.shrink.settings import ShrinkSettings

from das_gym.models.transformers.generation import generate
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.estimate import Part, time_examples
from das_gym.problem.loading import load_problem
from das_gym.problem.mask_space import MaskSpace
from das_gym.tasks.base import Task

SUBPROCESS_SECONDS = 6.0
"""Time in which a fresh process loads a small model and answers: imports alone take 5 s of a 2-core machine's processor."""


def shrink_parts(settings: ShrinkSettings) -> list[Part]:
    """Return the parts of `python -m adapt shrink` after its search; a random mask stands for the result of that."""
    choice = settings.choice()
    problem = load_problem(settings.problem_config if choice is None else choice.problem)
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
    open_ended = task.open_ended(examples)
    prompts: Any = task.pairs(open_ended)
    processor: Any = task.processor

    def measure(n: int) -> None:
        generate(full, processor, prompts[:n], "", GENERATE_BATCH_SIZE)
        loss_of(full, task, open_ended[:n], GENERATE_BATCH_SIZE, "")

    scored, _ = time_examples(measure, len(prompts), device)
    first, further = latencies({"full": full}, processor, prompts[0], 1)["full"]
    generation = (2 * float(first[0]) + DECODED_TOKENS * float(further[0])) / 1000
    seconds = models * count * scored + 2 * LATENCY_BLOCKS * (1 + WARM_UPS) * generation
    control = []
    if settings.control:  # None trains a control only if the recovered model wins, which is not known before
        recovery, macs = parts[1], problem.costs.macs
        alone = config.steps / total_steps(config.steps, settings.refine)
        training = recovery.seconds * alone * macs(np.zeros_like(mask)) / macs(mask)
        control = [replace(recovery, name="control", seconds=training + count * scored)]
    return [*parts, Part("measuring", seconds), Part("verification", 2 * SUBPROCESS_SECONDS), *control]


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
    taught, _ = time_examples(lambda n: Teacher(full, task, batch[:n], n), size, full.device)
    method = config.method
    assert method is not None
    trained = insert_trained(student, full, method)

    def step(count: int) -> None:
        with checkpointed_layers(student, config.gradient_checkpointing):
            loss = recovery_loss(student, teacher, task, batch[:count], config)["loss"]
        loss.backward()

    seconds, timed = time_examples(step, size, full.device)
    forward = partial(recovery_loss, student, teacher, task, batch[:1], config)
    activations = saved_bytes(lambda: forward()["loss"], student.parameters())
    if config.gradient_checkpointing:
        tokens = len(task.processor.encode(task.pairs(batch[:1])[0]).ids)  # type: ignore[attr-defined]
        state = tokens * full.feature_size * full.model.dtype.itemsize
        activations = checkpointed_bytes(activations, len(student.stack.layers), state)
    steps = total_steps(config.steps, refine)
    held = training_bytes(trained) + (size - timed) * activations
    return [Part("teacher", len(rows) * taught), Part("recovery", steps * size * seconds, held=held)]
