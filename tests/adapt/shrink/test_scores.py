"""Scores of answers as the task has them; intervals by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.shrink.scores import bootstrap, difference_interval, interval, scored

from das_gym.problem.loading import Problem
from das_gym.tasks.answering.examples import AnswerExample


def test_answers_are_scored_as_the_task_has_it(problem_of: Callable[[str], Problem]):
    examples: list[Any] = [
        AnswerExample("1", (), "what", "Two dogs"),
        AnswerExample("2", (), "which", "B", options=("A", "B")),
        AnswerExample("3", (), "who", "cat", answers=("cat", "cat", "dog", *["bird"] * 7)),
    ]
    task = problem_of("llava").task
    assert scored(task, examples, ["two dogs.", "(B)", "cat"]).tolist() == pytest.approx([1, 1, 0.6])
    assert scored(task, examples, ["dogs", "A", ""]).tolist() == [0, 0, 0]
    assert [e.options for e in task.open_ended(examples)] == [(), (), ()]


def test_wilsons_interval():
    low, high = interval(np.array([1.0] * 8 + [0.0] * 2))
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # R: prop.test(8, 10, correct=FALSE)
    assert interval(np.zeros(6))[0] == 0.0
    assert interval(np.zeros(6))[1] == pytest.approx(0.3903, abs=1e-4)


def test_fractions_are_resampled():
    values = np.array([0.3, 0.6, 1.0, 0.0] * 50)
    low, high = interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)
    assert (low, high) == bootstrap(values)


def test_a_difference_of_pairs():
    apart = np.array([1.0] * 4 + [-1.0] * 10 + [0.0] * 86)
    low, high = difference_interval(apart)
    assert (low, high) == pytest.approx((-0.13236, 0.01472), abs=1e-5)  # -6 / 102, 1.96 sqrt(15 - 36 / 102) / 102
    assert difference_interval(np.zeros(6)) == pytest.approx((-0.2450, 0.2450), abs=1e-4)
