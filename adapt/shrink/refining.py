"""Which of a search's best masks is best once what is left has been recovered: by short recoveries, see `adapt.refining`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from das_gym.adapt.refining import Round, halve
from das_gym.adapt.shrink.recovery import Recovery, RecoveryConfig, Teacher
from das_gym.adapt.shrink.report import loss_of

from das_gym.models.transformers.layer_removal import pruned_copy
from das_gym.models.transformers.model import VLM
from das_gym.problem.loading import Problem, shuffled


def refine(
    problem: Problem,
    whole: VLM,
    masks: Sequence[np.ndarray],
    config: RecoveryConfig,
    folder: Path,
    teacher: Teacher | None = None,
) -> list[Round]:
    """Halve masks by their loss on the reward split after recovery.

    Args:
        problem: The whole model with its data; it stays as it is.
        whole: Its model.
        masks: (n_layers,) bool each, True = deleted; two or more, the best by reward first.
        config: Of the whole recovery that is to come.
        folder: What is known is kept here; what lies there is not done again.
        teacher: What the whole model says, where it was asked before.

    Raises:
        ValueError: what lies there is damaged.
    """
    task, splits = problem.task, problem.splits
    held_out = task.open_ended(shuffled(task, splits.reward, task.reward_examples))

    def train(mask: np.ndarray, steps: int, title: str, checkpoint: Path) -> float:
        student, short = pruned_copy(whole, mask), dataclasses.replace(config, steps=steps)
        Recovery(student, whole, task, splits.train, short, checkpoint, teacher).run(title=title)
        return loss_of(student, task, held_out, config.batch_size, f"loss, {title}")

    return halve(masks, config.steps, folder, train)
