"""Defaults of training settings, and the estimate of memory before the first step."""

import pytest
from das_gym.adapt import step_loss as module
from das_gym.adapt.settings import SupernetConfig, TrainingConfig
from das_gym.adapt.step_loss import make_loss_and_trainer, resolve_defaults

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_splits
from tests.small_world import load_supernet


@pytest.fixture
def model(small_kwargs) -> AdaptedModel:
    config = ProblemConfig(**small_kwargs)
    return load_supernet(config, load_splits(config))


def test_defaults_are_ours_for_small_models_and_the_papers_for_base_size(model, monkeypatch):
    ours, line = resolve_defaults(TrainingConfig(), model)
    assert (ours.learning_rate, ours.head_learning_rate, ours.batch_size) == (1e-3, 1e-3, None)
    assert line == "300 steps of 64 examples, learning rate 0.001, of the head 0.001"
    assert resolve_defaults(SupernetConfig(), model)[0].learning_rate == 2e-3
    monkeypatch.setattr(type(model.backbone.vlp), "size", "base")
    papers, line = resolve_defaults(TrainingConfig(steps=7), model)
    assert papers.learning_rate == pytest.approx(5 * 2.5e-5)
    assert papers.head_learning_rate == pytest.approx(50 * 2.5e-5)
    assert papers.batch_size == 512
    assert "defaults of the paper; images of 96 px, the paper has image_size=384" in line
    own, _ = resolve_defaults(TrainingConfig(learning_rate=0.5, batch_size=3), model)
    assert (own.learning_rate, own.head_learning_rate, own.batch_size) == (0.5, pytest.approx(50 * 2.5e-5), 3)


def test_micro_batch_size_is_what_fits_in_memory(model, monkeypatch):
    splits = load_splits(model.backbone.origin.config)
    step_loss, trainer = make_loss_and_trainer(model, splits.train, TrainingConfig(batch_size=16), None)
    assert step_loss.micro_batch_size is None
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    fixed = 12 * sum(p.numel() for p in parameters)
    per_example = step_loss.activation_bytes()
    cache = step_loss.expected_cache_bytes()
    assert cache > 0
    monkeypatch.setattr(module, "free_bytes", lambda vlp: (fixed + 5.5 * per_example) / module.USABLE_MEMORY + cache)
    with pytest.warns(UserWarning, match="gradients are accumulated"):
        step_loss.choose_micro_batch_size(parameters, 16)
    assert step_loss.micro_batch_size == 4
    assert sum(1 for _ in step_loss.parts(0)) == 4
    step_loss.micro_batch_size = 8
    with pytest.warns(UserWarning, match="use a smaller micro_batch_size"):
        step_loss.choose_micro_batch_size(parameters, 16)
    assert step_loss.micro_batch_size == 8
