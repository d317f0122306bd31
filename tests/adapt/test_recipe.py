"""What is taken where nobody said, and what is told of memory before the first step."""

from __future__ import annotations

import pytest
import torch
from das_gym.adapt import memory
from das_gym.adapt.memory import activation_bytes, make_room
from das_gym.adapt.recipe import settled
from das_gym.adapt.step_loss import set_up
from das_gym.adapt.supernet import SupernetConfig
from das_gym.adapt.training import TrainingConfig

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_splits, load_supernet


@pytest.fixture
def model(small_kwargs: dict[str, str]) -> AdaptedModel:
    config = ProblemConfig(**small_kwargs)
    return load_supernet(config, load_splits(config))


def test_small_models_have_our_rates_and_those_of_base_size_the_papers(model: AdaptedModel, monkeypatch):
    ours, told = settled(TrainingConfig(), model)
    assert (ours.learning_rate, ours.head_learning_rate, ours.batch_size) == (1e-3, 1e-3, None)
    assert told == "300 steps of 64 examples, learning rate 0.001, of the head 0.001"
    assert settled(SupernetConfig(), model)[0].learning_rate == 2e-3
    monkeypatch.setattr(type(model.backbone.vlp), "size", "base")
    papers, told = settled(TrainingConfig(steps=7), model)
    assert papers.learning_rate == pytest.approx(5 * 2.5e-5)
    assert papers.head_learning_rate == pytest.approx(50 * 2.5e-5)
    assert papers.batch_size == 512
    assert told == (
        "7 steps of 512 examples, learning rate 0.000125, of the head 0.00125: the paper's where none was given; "
        "images of 96 px, the paper has image_size=384"
    )
    own, _ = settled(TrainingConfig(learning_rate=0.5, batch_size=3), model)
    assert (own.learning_rate, own.head_learning_rate, own.batch_size) == (0.5, pytest.approx(50 * 2.5e-5), 3)


def test_what_an_example_keeps_is_what_torch_keeps(model: AdaptedModel):
    """Of a head alone, by hand: Linear keeps its input, LayerNorm input, mean and deviation, GELU its input."""
    splits = load_splits(model.backbone.config)
    step_loss, _ = set_up(model, splits.train, TrainingConfig(batch_size=4), None)
    whole = activation_bytes(step_loss)
    model.backbone.vlp.requires_grad_(False)
    head = activation_bytes(step_loss)
    width, answers = 2 * 64, len(model.task.labels)
    by_hand = 4 * (width + width + 2 + width + width + 2 * answers)  # the loss keeps logits and targets
    assert head == pytest.approx(by_hand, rel=0.05)
    assert whole > 100 * head


def test_as_many_examples_at_a_time_as_there_is_room_for(model: AdaptedModel, monkeypatch: pytest.MonkeyPatch):
    splits = load_splits(model.backbone.config)
    config = TrainingConfig(batch_size=16)
    step_loss, trainer = set_up(model, splits.train, config, None)
    assert step_loss.micro_batch_size is None
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    fixed = 12 * sum(p.numel() for p in parameters)
    each = activation_bytes(step_loss)
    monkeypatch.setattr(memory, "free_bytes", lambda device: (fixed + 5.5 * each) / memory.SHARE)
    line = make_room(step_loss, parameters, 16)
    assert step_loss.micro_batch_size == 4
    assert line.startswith("memory: ")
    assert "4 at a time" in line
    assert line.endswith("16 at a time would not fit, so that a step's 16 examples come in parts")
    assert sum(1 for _ in step_loss.parts(0)) == 4
    step_loss.micro_batch_size = 8
    assert make_room(step_loss, parameters, 16).endswith("give a smaller micro_batch_size, or gradient_checkpointing=True")
    assert step_loss.micro_batch_size == 8


def test_asking_what_memory_is_taken_draws_nothing(model: AdaptedModel):
    splits = load_splits(model.backbone.config)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    set_up(model, splits.train, TrainingConfig(batch_size=4), None)
    assert torch.equal(torch.get_rng_state(), before)
