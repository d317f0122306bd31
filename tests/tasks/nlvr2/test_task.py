from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from das_gym.data.images import ImageFile
from das_gym.tasks.base import Task
from das_gym.tasks.nlvr2.files import NLVR2Example
from das_gym.tasks.nlvr2.task import NLVR2Task


@pytest.fixture
def task() -> NLVR2Task:
    return NLVR2Task(processor=None)  # targets and losses read no image


def example(identifier: str = "dev-1-0-0", label: bool = True) -> NLVR2Example:
    return NLVR2Example(identifier, "there is 1 owl.", (ImageFile(Path("a.png")), ImageFile(Path("b.png"))), label)


def test_head_reads_concatenated_features(task: NLVR2Task):
    pooled = torch.arange(12.0).reshape(4, 3)
    assert task.group_features(pooled).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert task.build_head(3)(task.group_features(pooled)).shape == (2, 2)


def test_losses_are_cross_entropy_and_metrics_accuracy(task: NLVR2Task):
    targets = task.targets([example(label=True), example(label=False), example(label=False)])
    logits = torch.tensor([[0.0, 2.0], [0.0, 1.0], [3.0, 1.0]])
    by_hand = [math.log1p(math.exp(-2)), math.log1p(math.exp(1)), math.log1p(math.exp(-2))]
    assert task.losses(logits, targets).tolist() == pytest.approx(by_hand)
    assert task.metrics(logits, targets).tolist() == [1.0, 0.0, 1.0]


def test_consistency_needs_every_pair_of_a_sentence(task: NLVR2Task):
    names = ["dev-1-0-0", "dev-1-1-0", "dev-1-0-1", "dev-2-0-0", "dev-2-1-0", "dev-2-2-0"]
    metrics = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])  # dev-1-0 is wrong once, dev-1-1 and dev-2-0 never
    found = task.summary([example(name) for name in names], np.full(6, 0.25), metrics)
    assert found == pytest.approx({"accuracy": 5 / 6, "loss": 0.25, "consistency": 2 / 3})


def test_example_as_text(task: NLVR2Task):
    one = example(label=False)
    assert (task.question(one), task.reference(one)) == ("there is 1 owl.", "False")
    (given,) = task.predictions([one], torch.tensor([[0.0, 1.0]]))
    assert task.format_prediction(one, given) == "True"
    assert [Task.format_prediction(task, one, {"prediction": n}) for n in (0, 7, None)] == [
        "False",
        "7",
        "",
    ]  # of a task without words
