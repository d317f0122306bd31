"""The order in which variants are trained, the choice of learning rates, and one training."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.compare import training as module
from das_gym.adapt.compare.record import Trial
from das_gym.adapt.compare.training import MethodVariant, TrainingRows, comparison_cells, method_variants
from das_gym.adapt.finetuning import with_new_head
from das_gym.adapt.settings import TrainingConfig
from das_gym.agents.comparing.runner import Comparison

from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits

LORA = MethodVariant("lora", "LoRA", "lora")
RATES = (5e-4, 2e-3, 8e-3)


def trial(rate: float, reward: float, loss: float | None = 1.0) -> Trial:
    return Trial("lora", 0, rate, reward, loss)


def test_merit_prefers_lower_loss_among_equal_rewards_and_finite_loss():
    ordered = [trial(1, 0.6), trial(1, 0.5, 1.0), trial(1, 0.5, 2.0), trial(1, 0.5, math.nan), trial(1, 0.0, None)]
    assert sorted(ordered, key=lambda t: t.merit, reverse=True) == ordered


def run_cells(variants: list[MethodVariant], rates: tuple[float, ...], done: list[Trial], best: float = 2e-3) -> list[Any]:
    """Run the trials that are not done with two seeds, and return their names; those above a rate of 5e-3 diverge."""
    comparison = Comparison(None, Trial, ProblemConfig())
    comparison.trials = done
    trained = []

    def run_trial(variant: str, seed: int, rate: float) -> Trial:
        trained.append((variant, rate, seed))
        if rate > 5e-3:
            return Trial(variant, seed, rate)
        return Trial(variant, seed, rate, reward=-abs(rate - best) if seed == 0 else 1e3 * rate, reward_loss=1.0)

    comparison.run(comparison_cells(variants, rates, (0, 1), comparison, "accuracy"), 1, run_trial)
    return trained


def test_first_seed_chooses_the_rates_and_a_resumed_comparison_repeats_none():
    variants = [LORA, *method_variants(["das"], {}, {1: (0, 1)})]
    done: list[Trial] = []
    keys = ("lora", "das_1", "random_1")
    grids = [(key, rate, 0) for key in keys[:2] for rate in RATES]
    every = [*grids, ("random_1", 2e-3, 0), *((key, 2e-3, 1) for key in keys)]
    assert run_cells(variants, RATES, done) == every
    del done[4], done[-2:]
    assert run_cells(variants, RATES, done) == [every[4], *every[-2:]]


def test_a_diverged_training_is_the_worst():
    assert run_cells([LORA], (5e-4, 8e-3), [], best=8e-3)[-1] == ("lora", 5e-4, 1)
    with pytest.raises(FloatingPointError, match="`learning_rates`"):
        run_cells([LORA], (8e-3, 9e-3), [])


def test_random_masks_depend_on_the_seed():
    *_, random = method_variants(["das"], {}, {3: (1, 1, 1, 0, 0, 0)})
    masks = [random.make(seed, 6).mask for seed in range(4)]
    assert all(sum(mask) == 3 for mask in masks)
    assert len(set(masks)) > 1
    assert random.make(2, 6).mask == masks[2]
    with pytest.raises(ValueError, match="rank"):
        method_variants(["lora"], {"lora": {"rank": 0}}, {})


def rows_of(bare_kwargs: dict[str, str], folder: Path, **recipe: Any) -> TrainingRows:
    problem = ProblemConfig(**bare_kwargs)
    recipe = {"steps": 1, "batch_size": 4, **recipe}
    splits = load_splits(problem)
    base = with_new_head(load_backbone(problem), problem.task, splits)
    return TrainingRows(base, splits, TrainingConfig(**recipe), [LORA], (), (0,), folder, test_examples=4)


@pytest.mark.slow
def test_context_trains_with_the_seed_of_the_trial(bare_kwargs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measure_latency", lambda calls, device: {"own": np.array([2.0]), "plain": np.array([3.0])})
    rows = rows_of(bare_kwargs, tmp_path, seed=7)
    (variant,) = method_variants(["lora"], {}, {})
    trained, _, result = rows.train(variant, 3e-3, 5)
    again, other = rows.train(variant, 3e-3, 5)[-1], rows.train(variant, 3e-3, 6)[-1]
    assert (again.reward, again.reward_loss) == (result.reward, result.reward_loss)
    assert other.reward_loss != result.reward_loss
    assert not any("lora" in name for name, _ in trained.backbone.vlp.named_parameters())
    assert rows.macs_full == rows.measure(trained, result).macs  # LoRA is merged, the baseline has no adapters
    assert rows.measure(trained, result).speedup == (1.5, 1.5, 1.5)
    assert not list(tmp_path.glob("*_5.pt"))  # kept until then, so that a run that stops trains nothing again


def test_context_removes_the_checkpoint_of_a_diverged_training(bare_kwargs, tmp_path, monkeypatch):
    rows = rows_of(bare_kwargs, tmp_path, save_every=1)
    seen: list[str] = []

    def broken(*_: Any, **__: Any) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise FloatingPointError("not finite")

    monkeypatch.setattr(module, "evaluate", broken)
    with pytest.raises(FloatingPointError):
        rows.train(LORA, 3e-3, 5)
    assert seen == ["lora_0.003_5.pt"]
    assert not list(tmp_path.iterdir())
