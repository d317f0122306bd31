"""Warn before hours of work where the full model is no better than chance on the data."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from das_gym.commands.commandline import format_command
from das_gym.problem.config import ProblemConfig, problem_words, supernet_command
from das_gym.registration import MODELS
from das_gym.tasks.base import Task

STANDARD_ERRORS = 2.0
"""A score up to this many standard errors above chance counts as chance."""


def warn_at_chance(
    config: ProblemConfig | None, task: Task, examples: Sequence[Any], score: float, split: str, name: str = "full model"
) -> None:
    """Warn where a model's mean score on some examples is not above that of answers drawn at random.

    Args:
        config: Model and data, for the command that fine-tunes; None for a model put together in Python, or one that was
            fine-tuned.
        task: The task.
        examples: What was scored.
        score: The model's mean metric, 0..1.
        split: The examples' split, for the message.
        name: The model, for the message.
    """
    chance = task.chance(examples)
    if score > chance + STANDARD_ERRORS * math.sqrt(chance * (1 - chance) / len(examples)):
        return
    advice = "" if config is None else f" Train it on these data first: {training_command(config)}"
    warnings.warn(
        f"the {name} is no better than chance on these data: {100 * score:.1f} % {task.metric_name} on {len(examples)} "
        f"{split} examples, where answers at random get {100 * chance:.1f} %. What is found and saved means little.{advice}",
        stacklevel=3,
    )


def training_command(config: ProblemConfig) -> str:
    """Return the command that trains the model of a configuration on its data, and what to do with the result."""
    if not MODELS[config.model].reads_prompts:
        return f"`{supernet_command(config)}`, then give supernet=<the file it writes>"
    train = format_command("adapt compare", problem_words(config, "'methods=[\"lora\"]'"))
    export = format_command("adapt export", "run=<id>", "method=lora", "out=FOLDER")
    return f"`{train}`, `{export}`, then give checkpoint=FOLDER"
