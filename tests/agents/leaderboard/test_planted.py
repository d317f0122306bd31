from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.compare.results import AgentResult, judge

from benchmarks.leaderboard.cache import ARRAYS, ResultCache
from benchmarks.leaderboard.planted import PlantedOracle
from benchmarks.leaderboard.rivals import run_optuna
from das_gym.files import read_arrays
from das_gym.problem.mask_space import every_mask

GOLDEN = [
    (24, 0, -0.3009245261275336, 0.8213078590776822),
    (36, 1, -0.5068719891206179, 1.652408706119265),
    (72, 0, -2.8407489577806895, 2.7159610378726833),
]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.leaderboard.planted.CLIMBS", 5)


def test_planted_oracle_knows_the_best_mask():
    oracle = PlantedOracle(12, 3)
    masks = every_mask(12, 4)
    assert oracle.best_loss == pytest.approx(oracle.losses(masks).min(), rel=1e-12)
    assert oracle.best_reward == pytest.approx(oracle.rewards(masks).max(), rel=1e-12)
    (result,) = judge(oracle, [AgentResult("a", masks[:1], oracle.rewards(masks[:3])[None], np.array([3]))])
    expected = (oracle.losses(masks[:3]) - oracle.best_loss) / (oracle.random_loss - oracle.best_loss)
    np.testing.assert_allclose(oracle.normalized(result.regret)[0], expected, rtol=1e-9)
    assert oracle.normalized(np.array([np.inf]))[0] > 2
    assert np.isnan(oracle.test_metrics(masks[:2])).all()


def test_climb_ends_where_no_swap_helps():
    oracle = PlantedOracle(24, 0)
    mask = oracle.space.sample(np.random.default_rng(0))
    while (losses := oracle.losses(around := oracle.space.neighbours(mask))).min() < oracle.losses(mask[None])[0] - 1e-12:
        mask = around[losses.argmin()]
    start = oracle.space.sample(np.random.default_rng(0))
    assert oracle.climb(start) == pytest.approx(oracle.losses(mask[None])[0], rel=1e-12)
    assert oracle.space.contains(start[None])[0]  # not changed in place


@pytest.mark.parametrize(("n_layers", "seed", "best", "random"), GOLDEN)
def test_planted_oracle_repeats_with_the_same_seed(n_layers: int, seed: int, best: float, random: float):
    oracle = PlantedOracle(n_layers, seed)
    assert (oracle.best_loss, oracle.random_loss) == (pytest.approx(best, rel=1e-12), pytest.approx(random, rel=1e-12))


def test_cache_distinguishes_settings_and_names_damaged_files(short: None, tmp_path: Path):
    oracle, cache = PlantedOracle(24, 0), ResultCache(tmp_path)
    for seeds, evaluations, kwargs in (([0], 6, {}), ([1], 6, {}), ([0], 9, {}), ([0], 6, {"offspring": 4})):
        result = cache.run(oracle, "evolution", seeds, evaluations, 3, kwargs)
        again = cache.run(oracle, "evolution", seeds, evaluations, 3, kwargs, run=None)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(result, name), getattr(again, name))
    assert len(list(tmp_path.iterdir())) == 4
    cache = ResultCache(tmp_path / "damaged")
    cache.run(oracle, "random", [0], 6, 3, {})
    (file,) = (tmp_path / "damaged").iterdir()
    np.savez(file, **{**read_arrays(file), "answers": np.zeros((1, 5), bool)})
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"{file.name} is damaged"):
            cache.run(oracle, "random", [0], 6, 3, {})
        file.write_bytes(file.read_bytes()[:200])


def test_optuna_answers_with_its_best_mask(short: None):
    oracle = PlantedOracle(24, 0)
    result, again = (run_optuna(oracle, "optuna", [4, 5], 8, 3, {}) for _ in range(2))
    np.testing.assert_array_equal(result.curves, again.curves)
    assert (np.diff(result.curves) >= 0).all()
    np.testing.assert_allclose(result.curves[:, -1], oracle.rewards(result.answers), rtol=1e-12)
    assert oracle.space.contains(result.answers).all()
    assert result.evaluations.tolist() == [8, 8]
