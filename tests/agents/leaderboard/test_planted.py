from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.compare.results import AgentResult, judge

from benchmarks.leaderboard.cache import ARRAYS, ResultCache
from benchmarks.leaderboard.optuna_tpe import run_optuna
from benchmarks.leaderboard.planted import PlantedOracle
from das_gym.files import read_arrays
from das_gym.problem.mask_space import every_mask


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
