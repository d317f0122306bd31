from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from das_gym.adapt.training import TRAINING_RANGES, Group, Trainer, TrainingConfig, adamw, check_ranges, decay
from torch import nn


def trainer(checkpoint: Path | None, steps: int = 12, size: int = 3) -> tuple[nn.Linear, Trainer]:
    torch.manual_seed(0)
    model = nn.Linear(size, 1)
    optimizer = adamw([Group(list(model.parameters()), 0.1)], weight_decay=0.01)
    schedule = partial(decay, steps=steps, warmup=0.25)
    return model, Trainer({"model": model}, optimizer, steps, schedule, checkpoint, save_every=4)


def step(model: nn.Linear, index: int) -> dict[str, torch.Tensor]:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(index)) + torch.rand(())
    return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path):
    model, whole = trainer(None)
    whole.run(partial(step, model), "whole")

    def stop_at_nine(model: nn.Linear, index: int) -> dict[str, torch.Tensor]:
        if index == 9:
            raise KeyboardInterrupt
        return step(model, index)

    stopped, first = trainer(tmp_path / "checkpoint.pt")
    with pytest.raises(KeyboardInterrupt):
        first.run(partial(stop_at_nine, stopped), "first")
    resumed, second = trainer(tmp_path / "checkpoint.pt")
    steps = []
    second.run(lambda index: (steps.append(index), step(resumed, index))[1], "second")
    assert steps == [8, 9, 10, 11]
    assert torch.equal(resumed.weight, model.weight)
    assert torch.equal(resumed.bias, model.bias)


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path):
    model, first = trainer(tmp_path / "checkpoint.pt")
    first.run(partial(step, model), "first")
    other = nn.Sequential(nn.Linear(3, 1))
    optimizer = adamw([Group(list(other.parameters()), 0.1)], 0.0)
    with pytest.raises(ValueError, match=r"checkpoint\.pt was saved by another configuration"):
        Trainer({"model": other}, optimizer, 1, lambda _: 1.0, tmp_path / "checkpoint.pt").run(lambda _: {}, "other")


@pytest.mark.parametrize("damage", [lambda whole: whole[:-200], lambda whole: b"something else", lambda whole: b""])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage):
    path = tmp_path / "checkpoint.pt"
    model, first = trainer(path)
    first.run(partial(step, model), "first")
    path.write_bytes(damage(path.read_bytes()))
    model, again = trainer(path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged \(.*remove it to begin anew"):
        again.run(partial(step, model), "again")


def test_any_flipped_bit_of_a_checkpoint_is_named_or_changes_nothing(tmp_path: Path):
    path, rng = tmp_path / "checkpoint.pt", np.random.default_rng(0)
    model, first = trainer(path)
    first.run(partial(step, model), "first")
    whole = path.read_bytes()
    for place in rng.integers(0, len(whole), 60):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.integers(8)
        path.write_bytes(flipped)
        again, second = trainer(path)
        try:
            second.run(partial(step, again), "again")
        except ValueError as error:
            told = str(error)
        else:
            told = ""
            assert torch.equal(again.weight, model.weight)
        assert not told or "checkpoint.pt is damaged" in told


@pytest.mark.parametrize("name", ["step", "parameters", "optimizer", "rng", "logged", "window", "companions"])
@pytest.mark.parametrize("value", [None, "x", {}])
def test_a_checkpoint_with_something_else_in_it_is_named(tmp_path: Path, name: str, value: object):
    path = tmp_path / "checkpoint.pt"
    model, first = trainer(path)
    first.run(partial(step, model), "first")
    torch.save({**torch.load(path, weights_only=True), name: value}, path)
    again, second = trainer(path)
    if value == {} and name in ("window", "companions"):
        second.run(partial(step, again), "again")
        return
    with pytest.raises(ValueError, match=r"checkpoint\.pt (is damaged|was saved by another)"):
        second.run(partial(step, again), "again")


@pytest.mark.parametrize("value", [torch.full((1, 3), math.nan), torch.ones(5), torch.ones(1).expand(10**9)])
def test_an_optimizer_with_something_else_in_it_is_named(tmp_path: Path, value: torch.Tensor):
    path = tmp_path / "checkpoint.pt"
    model, first = trainer(path)
    first.run(partial(step, model), "first")
    state = torch.load(path, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = value
    torch.save(state, path)
    again, second = trainer(path)
    with pytest.raises(
        ValueError,
        match=r"checkpoint\.pt is damaged \(.*(exp_avg has 3 values|of other shapes|is larger than what)",
    ):
        second.run(partial(step, again), "again")


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["rng", "optimizer", "more"])
def test_resume_executes_no_pickle(tmp_path: Path, name: str):
    path = tmp_path / "checkpoint.pt"
    model, first = trainer(path)
    first.run(partial(step, model), "first")
    torch.save({**torch.load(path, weights_only=True), name: Evil(tmp_path / "ran")}, path)
    again, second = trainer(path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        second.run(partial(step, again), "again")
    assert not (tmp_path / "ran").exists()


def test_a_loss_that_is_no_number_stops_the_training():
    model, broken = trainer(None)
    with pytest.raises(FloatingPointError, match="at step 0: try a lower learning rate"):
        broken.run(lambda _: {"loss": model.weight.sum() * float("nan")}, "broken")


def test_schedule_warms_up_and_decays_to_nothing():
    factors = [decay(i, steps=10, warmup=0.2) for i in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[10] == 0
    assert decay(6, 10, 0.2, power=2.0) == pytest.approx(0.25)


def test_biases_and_vectors_are_not_decayed():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = adamw([Group(list(model.parameters()), 0.1)], weight_decay=0.5)
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decayed[id(p)] for p in model.parameters()] == [0.5, 0, 0, 0]


def test_the_optimizer_is_meters():
    optimizer = adamw([Group([nn.Parameter(torch.zeros(2, 2))], 0.1), Group([nn.Parameter(torch.zeros(2))], 0.2)], 0.01)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [(g["lr"], g["betas"], g["eps"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.1, (0.9, 0.98), 1e-8, 0.01),
        (0.2, (0.9, 0.98), 1e-8, 0.0),
    ]


def test_gradients_are_clipped_together():
    model, clipped = trainer(None, steps=1)
    clipped.run(lambda _: {"loss": 3e3 * model.weight.sum() + 4e3 * model.bias.sum()}, "clipped")
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    assert np.hypot(*norms) == pytest.approx(1.0, rel=1e-4)
    assert norms[0] / norms[1] == pytest.approx(3**1.5 / 4, rel=1e-4)


def test_gradients_below_the_norm_are_left_alone():
    model, calm = trainer(None, steps=1)
    calm.run(lambda _: {"loss": 0.1 * model.bias.sum()}, "calm")
    assert model.bias.grad is not None
    assert float(model.bias.grad) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "allowed", "refused"),
    [
        ("seed", (0, 2**32 - 1), (-1, 2**32)),
        ("warmup", (0.0, 1.0), (-0.1, 1.1)),
        ("weight_decay", (0.0, 0.5), (-0.1, math.inf)),
        ("steps", (1,), (0, math.inf)),
    ],
)
def test_ranges_to_their_ends(name, allowed, refused):
    for value in (*allowed, None):
        check_ranges(SimpleNamespace(**{name: value}), **{name: TRAINING_RANGES[name]})
    for value in refused:
        with pytest.raises(ValueError, match=rf"^{name}={value} is not allowed; give (0\.\.|more than 0)"):
            check_ranges(SimpleNamespace(**{name: value}), **{name: TRAINING_RANGES[name]})


def test_the_weight_of_matching_is_0_or_more():
    assert TrainingConfig().itm_weight == 0
    with pytest.raises(ValueError, match="itm_weight=-1 is not allowed"):
        TrainingConfig(itm_weight=-1)


def test_the_learning_rate_rises_and_falls_to_nothing():
    factors = [decay(step, 10, warmup=0.2, power=2.0) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.25)
    assert factors[10] == 0.0
    assert decay(0, 1, warmup=1.0) == 1.0


def test_means_are_logged_every_fifty_steps_and_at_the_end():
    parameter = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(parameter.parameters(), lr=0.0)
    logged = []
    trainer = Trainer({"m": parameter}, optimizer, 120, lambda step: 1.0)
    trainer.run(
        lambda step: {"loss": parameter.weight.sum() * 0 + step},
        "testing",
        lambda name, value, step: logged.append((step, value)),
    )
    assert logged == [(50, 24.5), (100, 74.5), (120, 109.5)]
