import pickle
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from das_gym import ENVIRONMENTS
from das_gym.engine.scores import Scores
from das_gym.envs.engine_scoring import EngineScorer
from das_gym.envs.scoring import INFO_KEYS, Scorer
from das_gym.envs.tabular_env import TableScorer
from das_gym.problem.mask_space import MaskSpace
from das_gym.problem.problem import Problem
from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import DEFAULT_STATISTICS
from das_gym.registration import CHECKPOINT_TABLES, REWARD_THRESHOLDS, find_environment

ID = "DAS-METER-VQA-Tabular-v0"
BUDGETS = [{"skip_num": 2}, {"skip_num": None}, {"skip_num": None, "macs_saved": 0.1}]


def live_scorer(problem: Problem, reward: str, macs_price: float, skip_num=None, macs_saved=None) -> EngineScorer:
    """Scores the examples of the small table with the engine."""
    budget = {"skip_num": skip_num, "macs_saved": macs_saved}
    return EngineScorer(problem, budget, reward, macs_price, DEFAULT_STATISTICS, 10, "fixed")


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("reward", REWARDS)
def test_table_scorer_agrees_with_the_engine(small_problem, small_table, budget, reward):
    live = live_scorer(small_problem, reward, 0.5, **budget)
    tabular = TableScorer(small_table, budget, reward=reward, macs_price=0.5)
    rng = np.random.default_rng(0)
    (live_rewards, info), (rewards, known) = (scorer.score(small_table.masks, rng) for scorer in (live, tabular))
    np.testing.assert_allclose(rewards, live_rewards, atol=1e-6)
    assert list(known) == list(info)
    assert live.observation_masks == tabular.observation_masks == 0
    for key in INFO_KEYS:
        np.testing.assert_allclose(known[key], info[key], rtol=1e-6, atol=1e-7)
        assert known[key].dtype == info[key].dtype
    full = live.full_model_info()
    assert tabular.full_model_info() == pytest.approx(full, rel=1e-6)


def check_same(one: tuple, other: tuple) -> None:
    np.testing.assert_array_equal(one[0], other[0])  # to the bit
    assert list(one[1]) == list(other[1])
    for key, values in one[1].items():
        np.testing.assert_array_equal(values, other[1][key])
        assert values.dtype == other[1][key].dtype


@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("budget", [*BUDGETS, {"latency_saved": 0.1}])
def test_table_scorer_looks_up_what_scorer_computes(small_table, budget, reward):
    costs = {"latency_saved": {"full": 1.0, "unskipped": 1.0, "savings": [0.1, 0.2, 0.3, 0.1, 0.7, 0.01]}}
    looked_up, computed = (
        TableScorer(small_table, {"skip_num": None, **budget}, reward=reward, macs_price=0.3, costs=costs) for _ in range(2)
    )
    rng = np.random.default_rng(0)
    for _ in range(5):
        masks, ended = small_table.masks[rng.integers(64, size=7)], rng.random(7) < 0.6
        for each in (ended, None, ~np.ones(7, dtype=bool)):
            check_same(looked_up.score(masks, rng, each), Scorer.score(computed, masks, rng, each))
        for mask in masks:
            for done in (True, False):
                assert looked_up.score_one(mask[None], rng, done) == Scorer.score_one(computed, mask[None], rng, done)
        assert looked_up.get_state() == computed.get_state()
        assert looked_up.full_model_info() == Scorer.full_model_info(computed)


def test_tabular_env_loads_no_model(small_table_file, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("the tabular environment has loaded a model")

    monkeypatch.setattr("das_gym.problem.problem.load_backbone", refuse)
    monkeypatch.setattr("torch.nn.Module.__call__", refuse)
    env = gymnasium.make(ID, table=small_table_file, skip_num=2)
    env.reset(seed=0)
    assert 0 < env.step(np.array([1, 0, 0, 0, 1, 0], np.int8))[1] < 1


@pytest.mark.parametrize("argument", [{"skipnum": 3}, {"checkpoint": "x"}, {"reward_batches": "cycle"}, {"model": "VILT"}])
def test_wrong_arguments_are_rejected(argument):
    (name,) = argument
    for make in (gymnasium.make, gymnasium.make_vec):
        with pytest.raises(ValueError, match=name):
            make("DAS-ViLT-VQA-Tabular-v0", **argument)


@pytest.mark.parametrize(
    "change",
    [
        {"evaluations": "x"},
        {"episode": {"masks": [[2] * 6], "over": [False]}},
        {"episode": {"masks": [[0] * 6], "over": False}},
    ],
)
def test_set_state_rejects_wrong_values(small_table_file, change):
    env = gymnasium.make(ID, table=small_table_file, skip_num=2).unwrapped
    env.reset(seed=0)
    state = env.get_state()
    env.set_state(state)
    with pytest.raises((ValueError, TypeError), match=f"{next(iter(change))}|masks|over"):
        env.set_state({**state, **change})


def test_missing_statistics_are_rejected_or_computed(small_table):
    whole = small_table
    older = replace(whole, meta=replace(whole.meta, statistics=("depth",)), statistics=whole.statistics[:, 1:2])
    assert TableScorer(older, {"skip_num": 2}).feature_names[0] == "text.0/depth"
    with pytest.raises(ValueError, match=r"'stream' cannot be computed.* depth, leave_one_out.* use DAS-METER-VQA-v0"):
        TableScorer(older, {"skip_num": 2}, statistics=["stream"])
    both = replace(
        whole, meta=replace(whole.meta, statistics=("depth", "leave_one_out")), statistics=whole.statistics[:, :2]
    )
    with pytest.raises(ValueError, match=r"got one with depth, leave_one_out\."):  # each once
        TableScorer(both, {"skip_num": 2}, statistics=["stream"])
    told = TableScorer(older, {"skip_num": 2}, statistics=["leave_one_out"]).observation()
    np.testing.assert_array_equal(told, small_table.statistic("leave_one_out"))  # losses of masks reveal it


def test_reward_needs_divergences(small_table):
    unknown = np.full(64, np.nan)
    scores = {s: Scores(m.losses, m.metrics, unknown) for s, m in small_table.scores.items()}
    with pytest.raises(ValueError, match="`reward`"):
        TableScorer(replace(small_table, scores=scores), {"skip_num": 2}, reward="neg_kl")


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
def test_step_needs_an_episode(small_table_file, action):
    kwargs = {"table": small_table_file, "skip_num": 1, "action": action}
    env, vector = gymnasium.make(ID, **kwargs), gymnasium.make_vec(ID, num_envs=2, **kwargs)
    for each in (env, vector):
        with pytest.raises(gymnasium.error.ResetNeeded, match="before the first step"):
            each.step(each.action_space.sample())
        with pytest.raises(ValueError, match="`options` of reset"):
            each.reset(options={"problm": 1})
        each.reset(seed=0, options={})
        each.step(each.action_space.sample())
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(env.action_space.sample())
    with pytest.raises(gymnasium.error.ResetNeeded):
        pickle.loads(pickle.dumps(env)).step(env.action_space.sample())
    vector.step(vector.action_space.sample())  # which resets by itself


def test_changed_table_is_loaded_again(small_table, tmp_path):
    path = tmp_path / "table.npz"
    rewards = []
    for shift in (0, 1):
        scores = {s: Scores(m.losses + np.float32(shift), m.metrics, m.divergences) for s, m in small_table.scores.items()}
        replace(small_table, scores=scores).save(path)
        env = gymnasium.make(ID, table=str(path), skip_num=None, reward="neg_loss")
        env.reset()
        rewards.append(env.step(np.zeros(6, np.int8))[1])
    assert rewards[0] - rewards[1] == pytest.approx(1, abs=1e-5)


def test_only_the_best_mask_reaches_the_reward_threshold():
    bundled = [*(e.tabular_id for e in ENVIRONMENTS.values() if e.is_bundled), *CHECKPOINT_TABLES]
    assert set(REWARD_THRESHOLDS) == set(bundled)
    for env_id in bundled:
        env = gymnasium.make(env_id).unwrapped
        rewards = env.scorer.score(env.table.masks, env.np_random)[0]
        assert (rewards >= env.spec.reward_threshold).sum() == 1
        assert rewards.max() - env.spec.reward_threshold < 1e-4


def bundled_entries() -> list[Any]:
    """Return the environments with a bundled table; those other than the first take half a minute each."""
    entries = [entry for entry in ENVIRONMENTS.values() if entry.table]
    marks = [pytest.mark.slow, *[(pytest.mark.slow, pytest.mark.long)] * (len(entries) - 1)]
    return [pytest.param(entry, marks=mark, id=entry.id) for entry, mark in zip(entries, marks, strict=True)]


@pytest.mark.parametrize("entry", bundled_entries())
def test_table_and_model_return_the_same_numbers(entry):
    live = gymnasium.make(entry.id).unwrapped
    tabular = gymnasium.make(entry.tabular_id).unwrapped
    np.testing.assert_allclose(live.reset(seed=0)[0], tabular.reset(seed=0)[0], atol=1e-5)
    space = MaskSpace(tabular.scorer.budget)
    rng = np.random.default_rng(0)
    masks = np.array([space.sample(rng) for _ in range(50)])
    expected, scores = tabular.scorer.score(masks, rng)
    rewards, live_scores = live.scorer.score(masks, rng)
    np.testing.assert_allclose(rewards, expected, atol=1e-6)
    np.testing.assert_allclose(live_scores["metric"], scores["metric"], atol=1e-6)
    assert live.step(masks[0])[1] == pytest.approx(tabular.step(masks[0])[1], abs=1e-6)


def test_missing_table_names_the_command_to_build_it(monkeypatch, tmp_path):
    from das_gym.registration import MODELS

    monkeypatch.setitem(MODELS, "ViLT", replace(MODELS["ViLT"], assets=tmp_path))
    with pytest.raises(ValueError, match=r"no table of ViLT on retrieval is bundled\. `das-agents table"):
        gymnasium.make("DAS-ViLT-F30K-Tabular-v0")
    with pytest.raises(FileNotFoundError, match=r"no table at .*`das-agents table with vilt_nlvr2 out=/.*/none\.npz`"):
        gymnasium.make("DAS-ViLT-NLVR2-Tabular-v0", table=str(tmp_path / "none.npz"))


def test_a_table_of_another_environment_is_rejected():
    table = find_environment("METER", "nlvr2").table
    with pytest.raises(ValueError, match=r"is of DAS-METER-NLVR2-v0, expected DAS-METER-VQA-v0"):
        gymnasium.make("DAS-METER-VQA-Tabular-v0", table=str(table))


@pytest.mark.parametrize("action", ["mask", "sequence", "scores"])
def test_vector_env_agrees_with_gymnasiums_own(small_table_file, action):
    kwargs = {"num_envs": 3, "table": small_table_file, "skip_num": 2, "action": action}
    own = gymnasium.make_vec(ID, **kwargs)
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    sync = gymnasium.make_vec(ID, vectorization_mode="sync", vector_kwargs=same_step, **kwargs)
    np.testing.assert_array_equal(own.reset(seed=0)[0], sync.reset(seed=0)[0])
    own.action_space.seed(5)
    for _ in range(7):
        actions = own.action_space.sample()
        one, two = own.step(actions), sync.step(actions)
        for got, expected in zip(one[:4], two[:4], strict=True):
            np.testing.assert_array_equal(got, expected)
        for key in two[4].get("final_info", {}).keys() - {"evaluations"}:  # which a single one counts for itself
            np.testing.assert_array_equal(one[4]["final_info"][key], two[4]["final_info"][key], err_msg=key)
