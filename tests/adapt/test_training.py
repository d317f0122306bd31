import math
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.training import Trainer, adamw, learning_rate_factor
from torch import nn

from tests.evil import Evil


def make_trainer(checkpoint: Path | None, steps: int = 12, save_seconds: float = 60.0) -> tuple[nn.Linear, Trainer]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = adamw([(list(model.parameters()), 0.1)], weight_decay=0.01)
    schedule = partial(learning_rate_factor, steps=steps, warmup=0.25)
    modules = {"model": model}
    return model, Trainer(modules, optimizer, steps, schedule, checkpoint, save_every=4, save_seconds=save_seconds)


def step(model: nn.Linear, index: int, stop: int | None = None) -> dict[str, torch.Tensor]:
    if index == stop:
        raise KeyboardInterrupt
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(index)) + torch.rand(())
    return {"loss": (model(x) - x.sum(1, keepdim=True)).square().mean()}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint of step 12."""
    model, trainer = make_trainer(tmp_path / "checkpoint.pt")
    trainer.run(partial(step, model), "first")
    return tmp_path / "checkpoint.pt"


@pytest.mark.parametrize(("save_seconds", "left"), [(60.0, [8, 9, 10, 11]), (0.0, [9, 10, 11])])
def test_trainer_resumes_to_the_same_bits(tmp_path, save_seconds: float, left: list[int]):
    model, uninterrupted = make_trainer(None)
    uninterrupted.run(partial(step, model), "uninterrupted")
    interrupted, first = make_trainer(tmp_path / "checkpoint.pt", save_seconds=save_seconds)
    with pytest.raises(KeyboardInterrupt):
        first.run(partial(step, interrupted, stop=9), "first")
    resumed, second = make_trainer(tmp_path / "checkpoint.pt")
    steps = []
    second.run(lambda index: (steps.append(index), step(resumed, index))[1], "second")
    assert steps == left
    assert torch.equal(resumed.weight, model.weight)
    assert torch.equal(resumed.bias, model.bias)


def test_a_finished_training_is_not_repeated(tmp_path):
    """Its number of steps is no multiple of `save_every`."""
    model, trainer = make_trainer(tmp_path / "checkpoint.pt", steps=6)
    trainer.run(partial(step, model), "first")
    resumed, second = make_trainer(tmp_path / "checkpoint.pt", steps=6)
    second.run(partial(step, resumed, stop=5), "second")
    assert torch.equal(resumed.weight, model.weight)


def test_resume_rejects_a_checkpoint_of_another_configuration(checkpoint):
    other = nn.Sequential(nn.Linear(3, 1))
    optimizer = adamw([(list(other.parameters()), 0.1)], 0.0)
    with pytest.raises(ValueError, match=r"differ in model\.0\.bias"):
        Trainer({"model": other}, optimizer, 1, lambda _: 1.0, checkpoint).resume()


def test_resume_rejects_a_checkpoint_of_another_number_of_processes(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "rng": torch.cat((state["rng"], state["rng"]))}, checkpoint)
    with pytest.raises(ValueError, match="saved by 2 processes, expected 1"):
        make_trainer(checkpoint)[1].resume()


def test_resume_on_another_kind_of_device(checkpoint):
    """A GPU's random state has another size: the training goes on, and says that its dropout differs."""
    state = torch.load(checkpoint, weights_only=True)
    torch.save({**state, "device_rng": torch.zeros(1, 1, 16, dtype=torch.uint8)}, checkpoint)
    _, trainer = make_trainer(checkpoint)
    with pytest.warns(UserWarning, match="on other devices"):
        trainer.resume()
    assert trainer.step == 12
    assert torch.equal(torch.get_rng_state(), state["rng"][0, 0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(("first", "then"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_resume_on_a_gpu(tmp_path, first, then):
    def training(device: str, stop: int | None = None) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1)).to(device)
        trainer = Trainer({"m": model}, torch.optim.SGD(model.parameters(), 0.1), 8, lambda _: 1.0, tmp_path / "c.pt", 4)
        losses = []

        def take(index: int) -> dict[str, torch.Tensor]:
            if index == stop:
                raise KeyboardInterrupt
            loss = model(torch.ones(4, 3, device=device)).square().mean()
            losses.append(float(loss.detach()))
            return {"loss": loss}

        trainer.run(take, "training")
        return losses

    whole = training(then)
    (tmp_path / "c.pt").unlink()
    with pytest.raises(KeyboardInterrupt):
        training(first, stop=6)
    with nullcontext() if first == then else pytest.warns(UserWarning, match="on other devices"):
        left = training(then)
    assert len(left) == 4
    assert (left == whole[4:]) == (first == then)


@pytest.mark.parametrize("name", ["parameters", "optimizer", "rng"])
def test_resume_names_a_checkpoint_with_other_content(checkpoint, name):
    torch.save({**torch.load(checkpoint, weights_only=True), name: None}, checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        make_trainer(checkpoint)[1].resume()


@pytest.mark.parametrize("value", [torch.full((1, 3), math.nan), torch.ones(1).expand(10**9)])
def test_resume_names_an_optimizer_with_other_content(checkpoint, value):
    state = torch.load(checkpoint, weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = value
    torch.save(state, checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged.*exp_avg"):
        make_trainer(checkpoint)[1].resume()


def test_resume_executes_no_pickle(checkpoint, tmp_path):
    torch.save({**torch.load(checkpoint, weights_only=True), "more": Evil(tmp_path / "ran")}, checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged"):
        make_trainer(checkpoint)[1].resume()
    assert not (tmp_path / "ran").exists()


def test_adamw_has_the_hyper_parameters_of_meter():
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    optimizer = adamw([(list(model.parameters()), 0.1)], weight_decay=0.5)
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert [decayed[id(p)] for p in model.parameters()] == [0.5, 0, 0, 0]
    assert {(g["lr"], g["betas"], g["eps"]) for g in optimizer.param_groups} == {(0.1, (0.9, 0.98), 1e-8)}


def test_trainer_clips_gradients_together():
    model, trainer = make_trainer(None, steps=1)
    trainer.run(lambda _: {"loss": 3e3 * model.weight.sum() + 4e3 * model.bias.sum()}, "clipped")
    norms = [float(p.grad.norm()) for p in model.parameters() if p.grad is not None]
    assert np.hypot(*norms) == pytest.approx(1.0, rel=1e-4)
    assert norms[0] / norms[1] == pytest.approx(3**1.5 / 4, rel=1e-4)


def test_trainer_logs_means_every_fifty_steps_and_at_the_end():
    model = nn.Linear(1, 1)
    logged = []
    trainer = Trainer({"m": model}, torch.optim.SGD(model.parameters(), lr=0.0), 120, lambda step: 1.0)
    trainer.run(
        lambda step: {"loss": model.weight.sum() * 0 + step},
        "testing",
        lambda name, value, step: logged.append((step, value)),
    )
    assert logged == [(50, 24.5), (100, 74.5), (120, 109.5)]


@pytest.mark.parametrize("settings", [{"itm_weight": -1}, {"encoder_cache_gib": -1.0}])
def test_training_config_names_a_setting_out_of_range(settings):
    with pytest.raises(ValueError, match=f"`{next(iter(settings))}` is out of range"):
        TrainingConfig(**settings)


def test_decay_warms_up_and_falls_to_zero():
    factors = [learning_rate_factor(step, 10, warmup=0.2) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)
    assert factors[10] == 0.0
    assert learning_rate_factor(0, 1, warmup=1.0) == 1.0


def test_decay_follows_a_cosine():
    factors = [learning_rate_factor(step, 100, 0.03, schedule="cosine") for step in range(100)]
    assert factors[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert factors[3 + 97 // 2] == pytest.approx(0.5, abs=0.02)
    assert factors[-1] < 0.001
