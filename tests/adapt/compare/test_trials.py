"""How the choice of a learning rate is told."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from das_gym.adapt.compare.entrants import Entrant
from das_gym.adapt.compare.trials import Trial, chosen_rate, told

COURSE = SimpleNamespace(metric_name="accuracy")
ROW = Entrant("lora", "LoRA", "lora")


def trials(*scores: float) -> list[Trial]:
    return [
        Trial("lora", rate, 0, score, 1.0, 1, 1, 1.0, (0,)) for rate, score in zip((5e-4, 2e-3, 8e-3), scores, strict=False)
    ]


@pytest.mark.parametrize(
    ("scores", "end"),
    [
        ((0.7, 0.8, 0.6), "takes 0.002"),
        ((0.7, 0.8, 0.9), "takes 0.008, the largest of the grid: a better one may lie beyond it"),
        ((0.7, 0.5, 0.6), "takes 0.0005, the smallest of the grid: a better one may lie beyond it"),
        ((0.7,), "takes 0.0005"),
    ],
)
def test_a_rate_at_the_end_of_the_grid_is_told(scores: tuple[float, ...], end: str):
    done = trials(*scores)
    line = told(ROW, done, 0, chosen_rate(done), COURSE)
    assert line.startswith("LoRA: accuracy on the reward split by learning rate: 70.0 % with 0.0005")
    assert line.endswith(f"; {end}")
