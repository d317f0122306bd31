"""Losses that are shipped are the model's own, and are read for the same weights and examples alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import Problem, build_problem, load_problem
from das_gym.tables.build import table_examples
from das_gym.tables.shipped_losses import shipped_losses


def examples_of(problem: Problem) -> tuple:
    return table_examples(problem, "reward", problem.task.reward_examples)


@pytest.mark.slow
@pytest.mark.parametrize(("checkpoint", "count"), [(None, 2), ("llava_mini", 1)])
def test_shipped_losses_agree_with_the_model(checkpoint: str | None, count: int):
    problem = load_problem(ProblemConfig(model="VLM", task="answering", checkpoint=checkpoint))
    masks = np.zeros((2, len(problem.layer_names)), dtype=bool)
    masks[0, 5] = masks[1, [1, 5]] = True  # the second is not shipped
    masks = masks[:count]
    losses = shipped_losses(problem, examples_of(problem))
    assert losses is not None
    problem.evaluator.reset_spent()
    found = losses(masks)
    assert problem.evaluator.spent.masks <= 1
    np.testing.assert_allclose(found, problem.evaluator.losses(masks, examples_of(problem)), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_other_weights_examples_or_settings_have_no_shipped_losses():
    problem = load_problem(ProblemConfig(model="VLM", task="answering"))
    examples = examples_of(problem)
    for others in (examples[:40], (*examples[1:], examples[0])):
        assert shipped_losses(problem, others) is None
    changed = dataclasses.replace(problem, backbone=dataclasses.replace(problem.backbone, base="0" * 16))
    assert shipped_losses(changed, examples) is None
    for other in ({"units": "sublayers"}, {"dtype": "bfloat16"}):
        changed = build_problem(ProblemConfig(model="VLM", task="answering", **other))
        assert shipped_losses(changed, examples) is None
