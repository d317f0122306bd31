"""The parts of `shrink`, for its estimate: see `das_gym.adapt.estimate` and `das_gym.problem.estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from das_gym.adapt.choosing import Choice
from das_gym.adapt.hardware import training_bytes
from das_gym.adapt.shrink.checks import budget_of, why_not_removable
from das_gym.adapt.shrink.measuring import DECODED_TOKENS, LATENCY_BLOCKS, loss_of, score_model, time_tokens
from das_gym.adapt.shrink.memory import GENERATE_BATCH_SIZE
from das_gym.adapt.shrink.recovery import RecoveryConfig, RecoverySteps, Teacher, insert_trainable, training_rows
from das_gym.adapt.shrink.settings import ShrinkSettings
from das_gym.adapt.shrink.verifying import NEW_TOKENS, PROMPTS
from das_gym.adapt.step_loss import batch_at

from das_gym.models.transformers.generation import PROBES, batches_of, greedy_settings, longest_answer
from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.estimate import Part, time_examples
from das_gym.problem.loading import Problem, shuffled
from das_gym.problem.mask_space import MaskSpace
from das_gym.tasks.base import Task

SUBPROCESS_SECONDS = 6.0
"""Time in which a fresh process loads a small model and answers: imports alone take 5 s of a 2-core machine's processor."""


def shrink_parts(settings: ShrinkSettings, problem: Problem, choice: Choice | None) -> list[Part]:
    """Return the parts of `python -m adapt shrink` after its search; without a choice, a random mask stands for it."""
    full = problem.vlp
    config = settings.recovery()
    assert isinstance(full, VLM)
    test = shuffled(problem.task, problem.splits.test, settings.test_examples)
    timed = time_answers(full, problem.task, test)
    # Without a cache, each token of one prompt takes a forward.
    forwards = 10 * PROMPTS + NEW_TOKENS + 1
    tokens = (PROMPTS + 1) * NEW_TOKENS
    seconds = SUBPROCESS_SECONDS + forwards * float(timed.alone[0]) + tokens * float(timed.alone[1:].mean())
    verification = Part("verification", seconds)
    answering = timed.scoring_seconds(timed.own_tokens)
    timing = 2 * (1 + LATENCY_BLOCKS) * float(timed.alone.sum())
    # The answers of the model that is not recovered may not end.
    measuring = answering + timed.scoring_seconds(timed.most_tokens) + timing
    if config.method is None:
        return [Part("measuring", measuring), verification]
    mask = random_mask(settings, problem) if choice is None else choice.mask
    teacher, recovery = recovery_parts(pruned_copy(full, mask), full, problem.task, problem.splits.train, config)
    parts = [teacher, recovery, Part("measuring", measuring + answering), verification]
    if settings.control is False:
        return parts
    longer = problem.costs.macs_full / problem.costs.macs(mask)
    control = replace(
        recovery, name="control", seconds=recovery.seconds * longer + answering, is_certain=settings.control is True
    )
    return [*parts, control]


def random_mask(settings: ShrinkSettings, problem: Problem) -> np.ndarray:
    """Return a (n_units,) bool mask that is feasible and can be removed; the full model's if 10 draws give none."""
    space = MaskSpace(budget_of(settings, problem, settings.budget))
    rng = np.random.default_rng(0)
    draws = (space.sample(rng) for _ in range(10))
    nothing = np.zeros(len(problem.vlp.layers), dtype=bool)
    return next((mask for mask in draws if not why_not_removable(problem, mask)), nothing)


class AnswerTimes(NamedTuple):
    """What answering the test examples takes.

    Attributes:
        examples: Their number.
        forward: Seconds of an example's loss.
        first, further: Seconds of an example's first token in a batch, and of each further token of a batch.
        own_tokens: Tokens that the full model's answers have.
        most_tokens: Those that any answer may have.
        alone: (tokens,) seconds of each token of one prompt.
    """

    examples: int
    forward: float
    first: float
    further: float
    own_tokens: int
    most_tokens: int
    alone: np.ndarray

    def scoring_seconds(self, tokens: int) -> float:
        """Return the seconds of scoring a model whose answers have this many tokens."""
        padding = 2 * min(PROBES, self.examples) * self.first  # whether padding changes an answer is tried first
        decoding = -(-self.examples // GENERATE_BATCH_SIZE) * (tokens - 1) * self.further
        return self.examples * (self.forward + self.first) + decoding + padding


def time_answers(full: VLM, task: Task, test: Sequence[Any]) -> AnswerTimes:
    """Time the full model on some of the test examples."""
    processor: Any = task.processor
    open_ended = task.open_ended(test)
    prompts: Any = task.pairs(open_ended)
    size = min(len(test), GENERATE_BATCH_SIZE)
    timed = 1 + DECODED_TOKENS
    settings = greedy_settings(full, processor, timed, least=timed)
    if not task.generates:
        forward, _ = time_examples(lambda n: score_model(full, task, test[:n], ""), size, full.device)
        asked = processor.encode(task.generation_prompt(open_ended[0]), pixels=True)
        return AnswerTimes(len(test), forward, 0.0, 0.0, 1, 1, time_tokens(full, processor, [asked], settings))
    forward, count = time_examples(lambda n: loss_of(full, task, open_ended[:n], n, ""), size, full.device)
    encodings = [processor.encode(prompt, pixels=True) for prompt in prompts[:count]]
    batch = [encodings[row] for row in next(batches_of(encodings, count))]
    most = longest_answer(processor, prompts)
    tokens = time_tokens(full, processor, batch, greedy_settings(full, processor, most))
    alone = time_tokens(full, processor, batch[:1], settings)
    further = float((tokens if len(tokens) > 1 else alone)[1:].mean())
    return AnswerTimes(len(test), forward, float(tokens[0]) / len(batch), further, len(tokens), most, alone)


def recovery_parts(student: VLM, full: VLM, task: Task, train: Sequence[Any], config: RecoveryConfig) -> tuple[Part, Part]:
    """Return the parts of a recovery: running the teacher, and training. The student cannot be used afterwards."""
    size = min(config.batch_size, len(train))
    rows = training_rows(len(train), config)
    batch = task.open_ended([train[row] for row in batch_at(range(len(train)), size, config.seed, step=0)])
    teacher = Teacher(full, task, batch, size)
    taught, _ = time_examples(lambda n: Teacher(full, task, batch[:n], n), size, full.device)
    assert config.method is not None
    trained = insert_trainable(student, full, config.method)
    steps = RecoverySteps(student, teacher, task, train, config)
    steps.choose_plan(trained)
    at_a_time = steps.plan.micro_batch_size
    fixed = training_bytes(trained)
    seconds, timed = time_examples(lambda n: steps.losses(batch[:n])["loss"].backward(), at_a_time, full.device)
    held = fixed + (at_a_time - timed) * ((steps.plan.needed - fixed) // at_a_time)
    return Part("teacher", len(rows) * taught), Part("recovery", config.steps * size * seconds, held=held)
