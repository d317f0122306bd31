"""In which order methods are trained, with which rates, and how the choice of one is told."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from das_gym.adapt.compare import trials as module
from das_gym.adapt.compare.entrants import Entrant, entrants
from das_gym.adapt.compare.trials import Course, Trial, chosen_rate, run_all, told
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits

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


class Played(SimpleNamespace):
    """In the place of a course: rewards are known, and what was asked for is kept."""

    metric_name = "accuracy"

    def train(self, row: Entrant, rate: float, seed: int) -> tuple[Any, Trial]:
        self.trained.append((row.key, rate, seed))
        reward = -abs(rate - 2e-3) if seed == 0 else 1e3 * rate
        return SimpleNamespace(model=(row.key, rate, seed)), Trial(row.key, rate, seed, reward, 1.0, 1, 1, 1.0, (0,))

    def measure(self, model: Any, trial: Trial, clock: bool) -> Trial:
        assert model == (trial.entrant, trial.rate, trial.seed)
        self.measured.append((*model, clock))
        return dataclasses.replace(trial, test=0.5)


def test_each_row_has_its_rate_chosen_with_the_first_seed_and_all_rows_come_before_the_next_seed():
    rows = [ROW, *entrants(["das"], {}, {1: (0, 1)})]
    course: Any = Played(trained=[], measured=[])
    kept: list[tuple[str, bool]] = []
    rates = (5e-4, 2e-3, 8e-3)
    done = run_all(course, rows, rates, (0, 1), [], lambda all, last, tuned: kept.append((last.entrant, tuned is not None)))
    grids = [(key, rate, 0) for key in ("lora", "das_1") for rate in rates]
    later = [("random_1", 2e-3, 0), *((key, 2e-3, 1) for key in ("lora", "das_1", "random_1"))]
    assert course.trained == [*grids, *later]
    assert course.measured == [(key, 2e-3, seed, seed == 0) for seed in (0, 1) for key in ("lora", "das_1", "random_1")]
    assert [last for last, measured in kept if measured] == ["lora", "das_1", "random_1"] * 2
    before = [trial for trial in done if (trial.entrant, trial.seed) != ("das_1", 1)]
    course.trained.clear()
    again = run_all(course, rows, rates, (0, 1), before, lambda *_: None)
    assert course.trained == [("das_1", 2e-3, 1)]
    assert sorted(again, key=str) == sorted(done, key=str)


def test_a_rate_that_comes_to_no_number_counts_as_the_worst(capsys: pytest.CaptureFixture[str]):
    class Diverging(Played):
        def train(self, row: Entrant, rate: float, seed: int) -> tuple[Any, Trial]:
            if rate > 1e-3:
                raise FloatingPointError("the loss is nan")
            return super().train(row, rate, seed)

    course: Any = Diverging(trained=[], measured=[])
    done = run_all(course, [ROW], (5e-4, 8e-3), (0,), [], lambda *_: None)
    assert course.measured == [("lora", 5e-4, 0, True)]
    assert [(t.rate, t.reward_loss) for t in done] == [(5e-4, 1.0), (8e-3, None)]
    assert "by learning rate: -0.1 % with 0.0005, none with 0.008; takes 0.0005" in capsys.readouterr().out
    with pytest.raises(FloatingPointError, match=r"LoRA comes to no number with a learning rate of 0\.002, 0\.008: give"):
        run_all(course, [ROW], (2e-3, 8e-3), (0,), [], lambda *_: None)


@pytest.mark.slow
def test_a_training_has_its_rate_and_seed_throughout(small_kwargs: dict[str, str], tmp_path, monkeypatch):
    problem = ProblemConfig(**{name: value for name, value in small_kwargs.items() if name != "supernet"})
    splits, seen = load_splits(problem), []
    set_up = module.set_up
    monkeypatch.setattr(
        module, "set_up", lambda model, train, config, *a, **k: seen.append(config) or set_up(model, train, config, *a, **k)
    )
    monkeypatch.setattr(module, "measure_latency", lambda calls: {"own": np.array([2.0]), "plain": np.array([3.0])})
    course = Course(problem, splits, TrainingConfig(steps=1, batch_size=4, seed=7), tmp_path, test_examples=4)
    (row,) = entrants(["lora"], {}, {})
    head = lambda seed: course._new(row, seed)[0].head.state_dict()  # noqa: E731
    assert all(torch.equal(value, head(5)[name]) for name, value in head(5).items())
    assert any(not torch.equal(value, head(6)[name]) for name, value in head(5).items())
    tuned, trial = course.train(row, 3e-3, 5)
    (config,) = seen
    assert (config.learning_rate, config.head_learning_rate, config.seed) == (3e-3, 3e-3, 5)
    assert not any("lora" in name for name, _ in tuned.model.backbone.vlp.named_parameters())
    assert course.macs_full == course.measure(tuned.model, trial).macs  # LoRA is merged, and the baseline has no adapters
    assert course.measure(tuned.model, trial).speedup == (1.5, 1.5, 1.5)
    assert trial.reward == module.evaluate(tuned.model, course.reward_examples, "", rank_images=1).metric
    assert not list(tmp_path.glob("*.pt"))


def test_a_training_that_comes_to_no_number_leaves_no_checkpoint(small_kwargs: dict[str, str], tmp_path, monkeypatch):
    problem = ProblemConfig(**{name: value for name, value in small_kwargs.items() if name != "supernet"})
    recipe = TrainingConfig(steps=1, batch_size=4, save_every=1)
    course = Course(problem, load_splits(problem), recipe, tmp_path, test_examples=4)
    seen: list[str] = []

    def broken(*_: Any, **__: Any) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise FloatingPointError("what it says is not a number")

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(FloatingPointError):
        course.train(ROW, 3e-3, 5)
    assert seen == ["lora_0.003_5.pt"]
    assert not list(tmp_path.iterdir())
