"""Non-finite values never reach preferences, weights or tables, and are reported with mask and examples."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from das_gym.adapt.evaluate import evaluate, predict
from das_gym.adapt.hardware import ONE_DEVICE, make_accelerator
from das_gym.adapt.joint_search import Training, joint_search, new_model
from das_gym.adapt.paper import das_settings
from das_gym.adapt.settings import SupernetConfig
from das_gym.adapt.step_loss import StepLoss
from das_gym.adapt.supernet import train_supernet
from das_gym.adapt.training import Trainer
from das_gym.agents.ask_tell.bandit import Bandit
from das_gym.agents.ask_tell.base import make_agent
from das_gym.agents.searching.loop import search
from das_gym.agents.settings import SearchConfig
from torch import nn

from das_gym.engine import tree
from das_gym.engine.evaluator import Evaluator
from das_gym.problem.adaptation import Adaptation
from das_gym.problem.budget import Budget
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import AdaptedModel, load_splits
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import build_problem
from das_gym.problem.statistic_inputs import measure_activity

HUGE = 3e38  # a number of float32 and of bfloat16; ten of them are none


@pytest.fixture
def diverged(small_kwargs, tmp_path) -> dict[str, str]:
    """A supernet whose weights are finite, and whose numbers are not where layer 3 is skipped."""
    problem = build_problem(ProblemConfig(**small_kwargs))
    with torch.no_grad():
        problem.vlp.skippable_layer(3).skip_adapter.up.weight.fill_(HUGE)
    path = tmp_path / "diverged.safetensors"
    about = {"task": "vqa", "answers": problem.task.labels, "base": problem.backbone.base}
    Adaptation.from_model(problem.vlp, problem.head, **about).save(path)
    return {**small_kwargs, "supernet": str(path)}


def test_search_reports_mask_and_examples_and_keeps_finite_preferences(diverged, tmp_path):
    config = SearchConfig(agent="bandit", skip_num=1, evaluations=6, env_kwargs={**diverged, "reward_examples": 5})
    with pytest.warns(RuntimeWarning, match=r"the mask that skips layers \[3\] is NaN .* examples '\S+', .* 2 more"):
        result = search(config, folder=tmp_path)
    assert all(np.isfinite(turn.skip_probabilities).all() for turn in result.history)
    assert result.mask.tolist() != [0, 0, 0, 1, 0, 0]
    turns = [row for t in result.history for row in zip(t.masks, t.loss, t.rewards, strict=True)]
    broken = [(loss, reward) for mask, loss, reward in turns if mask[3]]
    assert broken == [(None, 0.0)] * len(broken)
    assert broken
    assert all(loss is not None for mask, loss, _ in turns if not mask[3])


def test_bfloat16_overflow_is_reported_and_affects_one_mask(small_kwargs, monkeypatch):
    monkeypatch.setattr(tree, "cpu_flags", lambda: frozenset({"avx512_bf16"}))
    problem = build_problem(ProblemConfig(**small_kwargs, precision="bfloat16"))
    with torch.no_grad():
        problem.vlp.skippable_layer(3).skip_adapter.up.weight.fill_(HUGE)
    with pytest.warns(RuntimeWarning, match=r"skips layers \[3\] is NaN or infinite, on examples"):
        scores = problem.evaluator.evaluate(np.eye(6, dtype=bool), problem.splits.reward[:4])
    assert scores.broken.tolist() == [False, False, False, True, False, False]
    with warnings.catch_warnings(action="error"):  # cached, and reported once
        problem.evaluator.evaluate(np.eye(6, dtype=bool)[3:4], problem.splits.reward[:4])


def test_non_finite_metric_invalidates_its_mask(small_problem, monkeypatch):
    whole, calls = small_problem.task.metrics, []

    def metrics(logits, targets):
        calls.append(whole(logits, targets))
        return calls[-1] * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(small_problem.task, "metrics", metrics)
    evaluator = Evaluator(small_problem.vlp, small_problem.head, small_problem.task)
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        scores = evaluator.evaluate(np.eye(6, dtype=bool)[:3], small_problem.splits.reward[:2])
    assert scores.broken.sum() == 1
    assert np.isfinite(scores.metrics).all()


@pytest.mark.parametrize("say", [evaluate, predict])
def test_diverged_small_model_is_not_used(diverged, say):
    problem = build_problem(ProblemConfig(**diverged))
    problem.vlp.prune(np.eye(6, dtype=bool)[3])
    subnet = AdaptedModel(problem.backbone, problem.head, problem.task)
    text = r"the mask that skips layers \[3\] are NaN or infinite, on examples '\S+', '\S+', '\S+' and 1 more"
    with pytest.raises(FloatingPointError, match=text):
        say(subnet, problem.splits.test[:4], "")


def test_diverged_full_model_is_not_observed(small_kwargs):
    problem = build_problem(ProblemConfig(**small_kwargs))
    with torch.no_grad():
        problem.vlp.skippable_layer(3).layer.feed_adapter.up.bias.fill_(float("inf"))
    text = rf"layer {problem.layer_names[3]} of the full model .* on examples '\S+', '\S+': try float32"
    with pytest.raises(FloatingPointError, match=text):
        measure_activity(problem.evaluator, problem.splits.reward[:2])


class TestTrainer:
    def begin(self, checkpoint: Path, rate: float = 0.1) -> tuple[nn.Linear, Trainer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        return model, Trainer({"model": model}, optimizer, 6, lambda _: 1.0, checkpoint, save_every=1)

    def test_non_finite_gradient_changes_neither_weights_nor_checkpoint(self, tmp_path):
        model, trainer = self.begin(tmp_path / "checkpoint.pt")

        def step(index: int) -> dict[str, torch.Tensor]:
            loss = model(torch.ones(2, 3)).square().mean()
            return {"loss": loss + (0 * model.weight.sum().abs()).sqrt() if index == 3 else loss}  # sqrt'(0) is infinite

        text = r"gradient norm nan at step 3, on example 'a'\. Try a lower learning rate"
        with pytest.raises(FloatingPointError, match=text):
            trainer.run(step, "", describe_step=lambda: "on example 'a'")
        assert torch.isfinite(model.weight).all()
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert saved["step"] == 3
        assert torch.equal(saved["parameters"]["model.weight"], model.weight)

    def begin_with_scaler(self, checkpoint: Path, steps: int) -> tuple[nn.Linear, Trainer]:
        """As with mixed_precision=fp16: the scale is halved, from 2 ** 16, where a gradient is not finite."""
        model = nn.Linear(3, 1, bias=False)
        accelerator = make_accelerator(ONE_DEVICE, torch.device("cpu"))
        accelerator.scaler = torch.amp.GradScaler("cpu", enabled=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, Trainer({"model": model}, optimizer, steps, lambda _: 1.0, checkpoint, 1, accelerator=accelerator)

    @pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")  # the first step was skipped
    @pytest.mark.parametrize(("steps", "last"), [(30, 16), (6, 5)])
    def test_scaler_does_not_skip_all_steps(self, tmp_path, steps, last):
        model, trainer = self.begin_with_scaler(tmp_path / "checkpoint.pt", steps)
        with pytest.raises(FloatingPointError, match=rf"gradient norm nan at step {last}\. Try .*, or mixed_precision=bf16"):
            trainer.run(lambda _: {"loss": (0 * model.weight.sum().abs()).sqrt()}, "")

    @pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")  # the first step was skipped
    def test_scaler_skips_a_step(self, tmp_path):
        model, trainer = self.begin_with_scaler(tmp_path / "checkpoint.pt", 6)
        trainer.run(lambda index: {"loss": model.weight.sum() * (1e34 if index < 3 else 1.0)}, "")
        assert trainer.step == 6
        assert torch.isfinite(model.weight).all()

    def test_infinite_step_is_not_kept(self, tmp_path):
        model, trainer = self.begin(tmp_path / "checkpoint.pt", rate=3e38)
        with pytest.raises(FloatingPointError, match=r"model\.weight is not finite after step 3"):
            trainer.run(lambda _: {"loss": (0.3 * model.weight).sum()}, "")  # 0.9e38 a step
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert saved["step"] == 3
        assert torch.isfinite(saved["parameters"]["model.weight"]).all()


def test_diverged_supernet_names_mask_and_examples(shapes_folder, tmp_path, monkeypatch):
    whole = StepLoss.losses

    def diverged(*args):
        losses, logits = whole(*args)
        return losses * float("nan"), logits

    monkeypatch.setattr(StepLoss, "losses", diverged)
    config, problem = SupernetConfig(steps=4, batch_size=4), ProblemConfig(data_root=str(shapes_folder))
    text = r"loss nan at step 0, under the mask that skips layers \[.+\], on examples '\S+', '\S+', '\S+' and 1 more\. Try"
    with pytest.raises(FloatingPointError, match=text):
        train_supernet(config, problem, tmp_path / "supernet.safetensors")
    assert not (tmp_path / "supernet.safetensors").exists()


def test_diverged_joint_search_keeps_its_preferences(shapes_folder, monkeypatch):
    settings = das_settings("METER", "vqa", "das_gym", batch_size=16, reward_examples=8, warmup_epochs=0, augment=False)
    problem = ProblemConfig(data_root=str(shapes_folder))
    splits = load_splits(problem)
    training = Training(new_model(problem, splits, settings, 0), splits, settings, 0)
    chooser = Bandit(MaskSpace(Budget(12, 4)), 0, learning_rate=1.0)
    monkeypatch.setattr(training, "losses", lambda masks, _: np.array([1.0, np.nan, 1.0]))
    with pytest.raises(FloatingPointError, match=r"at step 0, .* skips layers \[\d.*\], on examples '\S+', .* 5 more\. Try"):
        joint_search(training, splits, chooser)
    assert chooser.preferences.tolist() == [0.0] * 12


@pytest.mark.parametrize("name", ["bandit", "bayes", "evolution", "greedy"])
@pytest.mark.parametrize("reward", [np.nan, np.inf, -np.inf, 1e300])
def test_agents_ignore_non_finite_rewards(name, reward):
    agent = make_agent(name, MaskSpace(Budget(n_layers=6, skip_num=2)), seed=0)
    masks = agent.ask(3)
    with pytest.raises(ValueError, match=r"is not finite|give rewards within 1e\+100 of 0"):
        agent.tell(masks, np.array([0.5, reward, 0.5])[: len(masks)])
    assert not agent.rewards
