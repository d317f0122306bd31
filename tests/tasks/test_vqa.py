from __future__ import annotations

import math

import pytest
import torch

from das_gym.data.vqav2 import VQAExample
from das_gym.problem import MINI
from das_gym.tasks.vqa import VQATask


@pytest.fixture
def task() -> VQATask:
    return VQATask(processor=None, answers=("yes", "no", "red"))  # targets and losses read no image


def example(*answers: str) -> VQAExample:
    return VQAExample(1, 1, MINI, "?", "", "", answers[0], answers)


def test_targets_are_soft_scores_and_official_accuracies(task: VQATask):
    targets = task.targets([example(*["yes"] * 7, "no", "no", "red"), example(*["blue"] * 10)])
    torch.testing.assert_close(targets["scores"], torch.tensor([[1.0, 0.6, 0.3], [0.0, 0.0, 0.0]]))
    # "no" was given twice: leaving out one of the two leaves 1 match of 9 (1/3), any other leaves 2 (2/3)
    official = (2 * (1 / 3) + 8 * (2 / 3)) / 10
    assert targets["accuracy"][0].tolist() == pytest.approx([1.0, official, 0.3])


def test_loss_is_summed_over_answers(task: VQATask):
    targets = task.targets([example(*["yes"] * 10)])
    logits = torch.tensor([[2.0, -1.0, 0.0]])
    by_hand = math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)
    assert task.losses(logits, targets).tolist() == pytest.approx([by_hand])


def test_metric_is_the_accuracy_of_the_likeliest_answer(task: VQATask):
    targets = task.targets([example(*["yes"] * 7, "no", "no", "red")] * 2)
    assert task.metrics(torch.tensor([[3.0, 0, 0], [0, 0, 3.0]]), targets).tolist() == pytest.approx([1.0, 0.3])


def test_answerable_is_a_share(task: VQATask):
    assert task.answerable([example("yes"), example("blue"), example("blue", "red"), example("green")]) == 0.5
