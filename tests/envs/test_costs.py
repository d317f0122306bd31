"""Budgets of other costs than MACs: figures are given, nothing is timed."""

import pickle
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from das_gym.files import write_json
from das_gym.problem import latency
from das_gym.problem.budget import MaskCost
from das_gym.problem.latency import UnitLatencies

LATENCY = MaskCost(20.0, 21.0, np.array([1.0, 2.0, 3.0, 4.0, 5.0, -1.0]), "latency_saved")
COSTS = {"costs": {"latency_saved": LATENCY.as_dict()}}
LIVE, TABULAR = "DAS-METER-VQA-v0", "DAS-METER-VQA-Tabular-v0"


def make(env_id: str, **settings: Any) -> Any:
    env = gymnasium.make(env_id, **settings).unwrapped
    env.reset(seed=0)
    return env


def test_latency_budget_decides_what_is_feasible(small_kwargs):
    env = make(LIVE, **small_kwargs, latency_saved=0.4, reward_examples=4, **COSTS)
    for mask, saved in (([0, 0, 0, 1, 1, 0], 8 / 20), ([1, 1, 1, 0, 1, 1], 9 / 20), ([1, 1, 1, 0, 0, 1], 4 / 20)):
        env.reset()
        *_, info = env.step(np.array(mask))
        assert (info["latency_saved"], info["feasible"]) == (pytest.approx(saved), saved >= 0.4)
        assert np.isfinite(info["loss"]) == info["feasible"]


def test_measured_latency_is_pickled_with_the_environment(small_kwargs, monkeypatch):
    found = UnitLatencies(10.0, 4.0, (1.0,) * 6, (0.0,) * 6)
    monkeypatch.setattr(latency, "unit_latencies", lambda problem, batch: found)
    env = make(LIVE, **small_kwargs, latency_saved=0.3, reward_examples=4)
    monkeypatch.setattr(latency, "unit_latencies", lambda problem, batch: pytest.fail("measured again"))
    twin = pickle.loads(pickle.dumps(env))
    assert twin.budget.cost.as_dict() == env.budget.cost.as_dict() == found.cost.as_dict()


def test_table_takes_costs_and_rejects_those_that_it_lacks(small_table, small_table_file, tmp_path):
    write_json(tmp_path / "figures.json", COSTS)
    env = make(TABULAR, table=small_table_file, latency_saved=0.4, costs=str(tmp_path / "figures.json"))
    assert env.budget.is_feasible(np.array([[0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]], dtype=bool)).tolist() == [True, False]
    replace(small_table, meta=replace(small_table.meta, costs={})).save(tmp_path / "old.npz")
    for path, setting in ((small_table_file, "latency_saved"), (str(tmp_path / "old.npz"), "memory_saved")):
        with pytest.raises(ValueError, match=f"`{setting}`"):
            make(TABULAR, table=path, **{setting: 0.1})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"macs_saved": 0.1, "memory_saved": 0.1}, "macs_saved=0.1 and memory_saved=0.1"),
        ({"latency_saved": 0.9, **COSTS}, r"`latency_saved` is out of reach.* 0\.7000"),
        ({"latency_saved": 0.1, "costs": {"latency_saved": MaskCost(9, 9, np.ones(2)).as_dict()}}, "`costs`"),
        ({"latency_saved": 0.1, "latency_batch": 0}, "latency_batch"),
    ],
)
def test_wrong_budgets_are_rejected(small_kwargs, settings, says):
    with pytest.raises(ValueError, match=says):
        make(LIVE, **small_kwargs, **settings)
