"""Losses, metrics and divergences of generated answers, by hand; prompts, order, targets."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from das_gym.models.inputs import Prompt
from das_gym.tasks.answering.examples import AnswerExample
from das_gym.tasks.answering.task import AnsweringTask


class Letters:
    """A stand-in for a processor: every letter of the answer is a token, 0 to 4 for a to e."""

    @property
    def tokenizer(self) -> Letters:
        return self

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "".join(chr(ord("a") + token) for token in ids)

    def encode(self, prompt: Prompt) -> SimpleNamespace:
        ids = torch.tensor([9, *(ord(letter) - ord("a") for letter in prompt.answer)])
        return SimpleNamespace(ids=ids, answer=1)


TASK = AnsweringTask(Letters())
OPEN = AnswerExample("1", (), "what", "ab")
CHOICE = AnswerExample("2", (), "which", "b", options=("cd", "b", "a"))


def logits_of(*probabilities: float) -> torch.Tensor:
    """Logits that give each label of `OPEN` and `CHOICE` its probability, the rest to token 4."""
    labels = TASK.targets([OPEN, CHOICE])["labels"]
    table = torch.full((len(labels), 5), 1e-9, dtype=torch.float64)
    table[:, 4] = 1 - torch.tensor(probabilities, dtype=torch.float64)
    table[torch.arange(len(labels)), labels] = torch.tensor(probabilities, dtype=torch.float64)
    return table.log()


def test_losses_are_means_over_the_references_tokens():
    losses = TASK.losses(logits_of(0.5, 0.25, 0.9, 0.9, 0.125, 0.9), TASK.targets([OPEN, CHOICE]))
    assert losses.tolist() == pytest.approx([(math.log(2) + math.log(4)) / 2, math.log(8)], abs=1e-6)


@pytest.mark.parametrize(
    ("probabilities", "right"),
    [
        ((0.6, 0.6, 0.5, 0.5, 0.3, 0.2), [1, 1]),  # 0.3 against 0.25 of two tokens and 0.2
        ((0.6, 0.4, 0.9, 0.9, 0.3, 0.2), [0, 0]),  # greedy generation misses the second letter; 0.81 is likelier
        ((0.4, 0.6, 0.1, 0.9, 0.1, 0.2), [0, 0]),
    ],
)
def test_metrics_are_greedy_exact_match_or_the_likeliest_option(probabilities, right):
    assert TASK.metrics(logits_of(*probabilities), TASK.targets([OPEN, CHOICE])).tolist() == right


def test_example_as_text():
    asked = replace(OPEN, question="<image>\nwhat is <image>")
    assert (TASK.question(asked), TASK.reference(asked)) == ("what is", "ab")
    said = TASK.predictions([OPEN, CHOICE], logits_of(0.9, 0.25, 0.9, 0.9, 0.125, 0.5))
    assert [TASK.format_prediction(e, given) for e, given in zip([OPEN, CHOICE], said, strict=True)] == ["ae", "cd"]


def test_summary_by_kind():
    examples = [AnswerExample("1", (), "q", "a", kind="OPEN"), AnswerExample("2", (), "q", "a", kind="CLOSED")]
    summary = TASK.summary(examples, np.array([1.0, 3.0]), np.array([1.0, 0.0]))
    assert summary == {"exact_match": 0.5, "loss": 2.0, "kind/OPEN": 1.0, "kind/CLOSED": 0.0}


def test_head_cannot_be_built():
    with pytest.raises(TypeError, match="the task answering"):
        TASK.build_head(8)
