from pathlib import Path

import numpy as np
import pytest
import torch

from das_gym.data.images import ImageFile
from das_gym.tasks.vqa.files import VQAExample
from das_gym.tasks.vqa.task import VQATask


@pytest.fixture
def task() -> VQATask:
    return VQATask(processor=None, labels=("yes", "no", "red"))  # targets and losses read no image


def example(*answers: str) -> VQAExample:
    return VQAExample(1, 1, ImageFile(Path("1.jpg")), "?", "what", "other", answers[0], answers)


def test_targets_are_soft_scores_and_official_accuracies(task):
    targets = task.targets([example(*["yes"] * 7, "no", "no", "red"), example(*["blue"] * 10)])
    torch.testing.assert_close(targets["scores"], torch.tensor([[1.0, 0.6, 0.3], [0.0, 0.0, 0.0]]))
    # "no" was given twice: leaving out one of the two leaves 1 match of 9 (1/3), any other leaves 2 (2/3)
    official = (2 * (1 / 3) + 8 * (2 / 3)) / 10
    assert targets["accuracy"][0].tolist() == pytest.approx([1.0, official, 0.3])


def test_metrics_are_the_accuracy_of_the_likeliest_answer(task):
    targets = task.targets([example(*["yes"] * 7, "no", "no", "red")] * 2)
    assert task.metrics(torch.tensor([[3.0, 0, 0], [0, 0, 3.0]]), targets).tolist() == pytest.approx([1.0, 0.3])


def test_covers_labels_where_half_have_a_known_answer(task):
    assert task.covers_labels([example("yes"), example("blue"), example("blue", "red"), example("green")])
    assert not task.covers_labels([example("yes"), example("blue"), example("green")])


def test_divergences_are_those_of_bernoulli_distributions(task):
    full, other = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 2.0, -2.0]])
    p, q = full.sigmoid(), other.sigmoid()
    by_hand = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(-1)
    torch.testing.assert_close(task.divergences(other, full, {}), by_hand)
    assert task.divergences(full, full, {}).tolist() == pytest.approx([0.0])


def test_summary_has_groups_and_the_ceiling_of_the_vocabulary(task):
    summary = task.summary([example("yes"), example("no")], np.array([1.0, 3.0]), np.array([1.0, 0.0]))
    groups = {"question/what": 0.5, "answer/other": 0.5}
    assert summary == {"accuracy": 0.5, "loss": 2.0, "ceiling": 1.0, "blank": 0.0, **groups}
    examples = [example(*["blue"] * 7, "no", "no", "red"), example(*[""] * 10), example(*["two"] * 10)]
    numbers = task.summary(examples, np.ones(3), np.zeros(3))
    assert (numbers["ceiling"], numbers["blank"]) == (pytest.approx((2 * (1 / 3) + 8 * (2 / 3)) / 10 / 3), 1.0)


def test_example_as_text(task):
    unanimous = example(*["yes"] * 10)
    assert (task.question(unanimous), task.reference(unanimous)) == ("?", "yes")
    assert task.reference(example(*["no"] * 3, *["red"] * 7)) == "red (7), no (3)"
    (given,) = task.predictions([unanimous], torch.tensor([[0.0, 1.0, 0.0]]))
    assert task.format_prediction(unanimous, given) == "no"
