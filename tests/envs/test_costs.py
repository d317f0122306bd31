"""Budgets of other costs than MACs: figures are given in, nothing is timed."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from das_gym.files import write_json
from das_gym.problem import unit_latency
from das_gym.problem.mask_cost import MaskCost
from das_gym.problem.unit_latency import UnitLatencies
from das_gym.tables.build import recount

LATENCY = MaskCost(20.0, 21.0, np.array([1.0, 2.0, 3.0, 4.0, 5.0, -1.0]), "latency_saved")
COSTS = {"costs": {"latency_saved": LATENCY.as_dict()}}
LIVE, TABULAR = "DAS-METER-VQA-v0", "DAS-METER-VQA-Tabular-v0"


def anew(env: gymnasium.Env, mask: np.ndarray) -> tuple:
    """What a mask gets in an episode of its own."""
    env.reset()
    return env.step(mask)


def make(env_id: str, **settings: Any) -> Any:
    return gymnasium.make(env_id, **settings).unwrapped


@pytest.fixture
def table_file(small_problem, small_table, tmp_path) -> str:
    recount(small_table, small_problem).save(tmp_path / "table.npz")
    return str(tmp_path / "table.npz")


def test_a_share_of_the_latency(small_kwargs):
    env = make(LIVE, **small_kwargs, latency_saved=0.4, reward_examples=4, **COSTS)
    env.reset(seed=0)
    *_, info = anew(env, np.array([0, 0, 0, 1, 1, 0]))
    assert (info["latency_saved"], info["feasible"]) == (pytest.approx(8 / 20), True)
    *_, info = anew(env, np.array([1, 1, 1, 0, 1, 1]))
    assert (info["latency_saved"], info["feasible"]) == (pytest.approx(9 / 20), True)
    *_, info = anew(env, np.array([1, 1, 1, 0, 0, 1]))
    assert (info["latency_saved"], info["feasible"], info["loss"]) == (pytest.approx(0.2), False, np.inf)
    assert env.budget.describe() == "at least 40 % of the latency saved"


def test_figures_that_were_measured_go_where_the_environment_goes(small_kwargs, monkeypatch: pytest.MonkeyPatch):
    found = UnitLatencies(10.0, 4.0, (1.0,) * 6, (0.0,) * 6)
    monkeypatch.setattr(unit_latency, "latency_of", lambda problem, batch: found)
    env = make(LIVE, **small_kwargs, latency_saved=0.3, reward_examples=4)
    monkeypatch.setattr(unit_latency, "latency_of", lambda problem, batch: pytest.fail("measured anew"))
    twin = pickle.loads(pickle.dumps(env))
    assert twin.budget.cost.as_dict() == env.budget.cost.as_dict() == found.cost.as_dict()


@pytest.mark.parametrize("setting", ["parameters_saved", "memory_saved"])
def test_a_table_and_the_model_agree_on_what_can_be_counted(small_kwargs, table_file, setting: str):
    settings = {setting: 0.05, "action": "scores"}
    live, tabular = make(LIVE, **small_kwargs, **settings, reward_examples=4), make(TABULAR, table=table_file, **settings)
    scores = np.array([0.1, 0.6, 0.3, 0.2, -0.5, 0.0])
    for env in (live, tabular):
        env.reset(seed=0)
    one, other = live.step(scores)[-1], tabular.step(scores)[-1]
    assert one[setting] == pytest.approx(other[setting], abs=1e-12)
    assert one["n_skipped"] == other["n_skipped"] < 6


def test_a_table_takes_figures_and_says_so_where_it_has_none(small_table, table_file, tmp_path):
    write_json(tmp_path / "figures.json", COSTS)
    env = make(TABULAR, table=table_file, latency_saved=0.4, costs=str(tmp_path / "figures.json"))
    assert env.budget.is_kept_by(np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]], dtype=bool)).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"latency_saved: a table runs nothing that could be timed; give costs=<a file"):
        make(TABULAR, table=table_file, latency_saved=0.4)
    old = tmp_path / "old.npz"
    replace(small_table, meta=replace(small_table.meta, costs={})).save(old)
    with pytest.raises(ValueError, match=r"memory_saved: this table was made before tables told memory; count it anew"):
        make(TABULAR, table=str(old), memory_saved=0.1)


def test_what_is_refused(small_kwargs):
    with pytest.raises(ValueError, match=r"macs_saved=0\.1 and memory_saved=0\.1 are both given"):
        make(LIVE, **small_kwargs, macs_saved=0.1, memory_saved=0.1)
    with pytest.raises(ValueError, match=r"latency_saved=0\.9 is out of reach: .* saves is 0\.7000"):
        make(LIVE, **small_kwargs, latency_saved=0.9, **COSTS)
    with pytest.raises(ValueError, match="costs of 2 layers; give those of the 6"):
        make(LIVE, **small_kwargs, latency_saved=0.1, costs={"latency_saved": MaskCost(9, 9, np.ones(2)).as_dict()})
    with pytest.raises(ValueError, match="latency_batch=0 is not allowed"):
        make(LIVE, **small_kwargs, latency_saved=0.1, latency_batch=0)
