"""The phases of `shrink` and of a comparison of removals after their searches: see `das_gym.adapt.phases`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from das_gym.adapt.hardware import training_bytes
from das_gym.adapt.shrinking.checks import as_vlm, make_budget, why_not_removable
from das_gym.adapt.shrinking.measuring import DECODED_TOKENS, LATENCY_BLOCKS, score_model, time_tokens
from das_gym.adapt.shrinking.recovery import RecoverySteps, Teacher, insert_trainable, training_rows
from das_gym.adapt.shrinking.repairing import repaired_copy
from das_gym.adapt.shrinking.selecting import SELECTION_EXAMPLES
from das_gym.adapt.shrinking.settings import AnsweringSettings, RecoveryConfig
from das_gym.adapt.shrinking.verifying import NEW_TOKENS, PROMPTS
from das_gym.adapt.step_loss import training_batch

from das_gym.commands.progress import Phase
from das_gym.models.transformers.generation import greedy_settings
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import shuffled
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem

SUBPROCESS_SECONDS = 6.0
"""Time in which a fresh process loads a small model and answers: imports alone take 5 s of a 2-core machine's processor."""


def random_mask(settings: AnsweringSettings, problem: Problem) -> np.ndarray:
    """Return a mask that keeps the budget and can be removed; the full model's if 10 draws have none."""
    space = MaskSpace(make_budget(settings, problem, settings.budget))
    rng = np.random.default_rng(0)
    draws = (space.sample(rng) for _ in range(10))
    nothing = np.zeros(len(problem.vlp.layers), dtype=bool)
    return next((mask for mask in draws if not why_not_removable(problem, mask)), nothing)


def measuring_phases(settings: AnsweringSettings, problem: Problem, mask: np.ndarray, recovered: int) -> list[Phase]:
    """Return the phases that score the full model, the one without the layers of a mask, and recovered ones."""
    full = as_vlm(problem)
    task = problem.task
    test = shuffled(task, problem.splits.test, settings.test_examples)
    smaller = pruned_copy(full, mask)

    def score(vlm: VLM, count: int) -> None:
        score_model(vlm, task, test[:count], "", settings.metric)

    return [
        Phase("measuring", len(test), lambda count: score(full, count), len(test), repeats=1 + recovered),
        # Its answers may not end.
        Phase("measuring without recovery", len(test), lambda count: score(smaller, count), len(test)),
    ]


def selecting_phase(settings: AnsweringSettings, problem: Problem, mask: np.ndarray) -> Phase:
    """Return the phase that scores the pruned model before and after its training."""
    examples = shuffled(problem.task, problem.splits.reward, SELECTION_EXAMPLES)
    smaller = pruned_copy(as_vlm(problem), mask)

    def score(count: int) -> None:
        score_model(smaller, problem.task, examples[:count], "", settings.metric)

    return Phase("selecting", len(examples), score, len(examples), repeats=2)


def checking_phases(settings: AnsweringSettings, problem: Problem) -> list[Phase]:
    """Return the phases that time the models and verify the saved folder, by one prompt and its tokens."""
    full = as_vlm(problem)
    processor: Any = problem.task.processor
    example = problem.task.open_ended(shuffled(problem.task, problem.splits.test, settings.test_examples)[:1])[0]
    encodings = [processor.encode(problem.task.generation_prompt(example), pixels=True)]
    greedy = greedy_settings(full, processor, 1 + DECODED_TOKENS, least=1 + DECODED_TOKENS)

    def answer(count: int) -> None:
        time_tokens(full, processor, encodings, greedy)

    # Without a cache, each token of one prompt takes a forward, and some of an answer's time is for its first token.
    forwards = 10 * PROMPTS + NEW_TOKENS + 1
    return [
        Phase("timing", 2 * (1 + LATENCY_BLOCKS), answer),
        Phase("verification", forwards, answer, extra_seconds=SUBPROCESS_SECONDS),
    ]


def recovery_phases(problem: Problem, mask: np.ndarray, config: RecoveryConfig) -> list[Phase]:
    """Return the phases of a repair in closed form, and of a recovery by training."""
    full = as_vlm(problem)
    found = []
    if config.closed_form is not None:
        size = min(problem.scoring.calibration_examples, len(problem.splits.train))
        found = [Phase("repair", size, lambda count: repaired_copy(problem, mask, config, count), size)]
    if config.method is None or not len(problem.splits.train):
        return found
    train = problem.splits.train
    size = min(config.batch_size, len(train))
    batch: Sequence[Any] = problem.task.open_ended(
        [train[row] for row in training_batch(range(len(train)), size, config.seed, step=0)]
    )
    rows = len(training_rows(len(train), config))
    student = pruned_copy(full, mask)
    trained = insert_trainable(student, full, config.method)
    steps = RecoverySteps(student, Teacher(full, problem.task, batch, size), problem.task, train, config)
    steps.choose_plan(trained)
    at_a_time = steps.plan.micro_batch_size
    return [
        Phase("teacher", rows, lambda count: Teacher(full, problem.task, batch[:count], count), size),
        *found,
        Phase(
            "recovery",
            size,
            lambda count: steps.losses(batch[:count])["loss"].backward(),
            at_a_time,
            repeats=config.num_steps,
            example_bytes=(steps.plan.needed - training_bytes(trained)) // at_a_time,
        ),
    ]
