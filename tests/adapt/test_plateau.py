"""Training ends when the reward split stops improving, and resumes to the same bits."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from das_gym.adapt.plateau import Plateau
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.training import Group, Trainer, TrainingConfig, adamw

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_splits, load_supernet


def falling(losses: list[float]) -> Plateau:
    return Plateau(400, 0.05, 2, iter(losses).__next__)


def test_plateau_begins_the_decay_when_nothing_improves():
    plateau = falling([3.0, 2.0, 1.0, 1.0, 0.9999])
    assert (plateau.every, plateau.warmup_steps, plateau.end) == (10, 20, 400)
    for step in range(1, 51):
        plateau.check(step)
    assert plateau.decay_start == 50
    assert plateau.end == 63
    assert [plateau.factor(step) for step in (0, 9, 19, 49, 50)] == [1 / 20, 0.5, 1.0, 1.0, 1.0]
    assert plateau.factor(56) == pytest.approx(1 - 6 / 13)
    assert plateau.factor(63) == 0.0
    plateau.check(60)  # nothing is measured any more
    assert plateau.end == 63


def training(checkpoint: Path | None) -> tuple[torch.nn.Linear, Trainer]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    plateau = Plateau(80, 0.1, 2, lambda: float((model.weight.detach() - 1).square().sum()))
    optimizer = adamw([Group(list(model.parameters()), 0.05)], 0.0)
    return model, Trainer({"m": model}, optimizer, 80, plateau.factor, checkpoint, save_every=3, plateau=plateau)


def step(model: torch.nn.Linear, stop: int | None, index: int) -> dict[str, torch.Tensor]:
    if index == stop:
        raise KeyboardInterrupt
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(index))
    return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}


@pytest.mark.parametrize("stop", [10, 37, 44])
def test_trainer_with_a_plateau_resumes_to_the_same_bits(tmp_path: Path, stop: int):
    model, whole = training(None)
    whole.run(partial(step, model, None), "whole")
    assert 30 < whole.step < 80
    stopped, first = training(tmp_path / "c.pt")
    with pytest.raises(KeyboardInterrupt):
        first.run(partial(step, stopped, min(stop, whole.step - 1)), "first")
    resumed, second = training(tmp_path / "c.pt")
    second.run(partial(step, resumed, None), "second")
    assert second.step == whole.step
    assert torch.equal(resumed.weight, model.weight)


def test_patience_measures_the_reward_split(small_kwargs: dict[str, str]):
    config = ProblemConfig(**small_kwargs)
    splits = load_splits(config)
    model = load_supernet(config, splits)
    training_config = TrainingConfig(steps=40, batch_size=2, learning_rate=1e-9, head_learning_rate=1e-9, patience=1)
    step_loss, trainer = set_up(model, splits.train, training_config, None, held_out=splits.reward[:10])
    trainer.run(step_loss.parts, "patience")
    assert trainer.step == 3  # two checks, one a step, then a quarter of that
    assert trainer.plateau is not None
    assert trainer.plateau.best == pytest.approx(step_loss.held_out_loss(splits.reward[:10]), rel=1e-3)
