from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from das_gym.agents import AGENTS, Agent, MaskSpace, OneMask, SearchConfig, SearchResult, make_agent, search
from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.searching.validate import validate
from synthetic import ENV_ID, N_LAYERS, SyntheticVectorEnv

from das_gym.files import read_json
from das_gym.problem import unit_latency
from das_gym.problem.budget import Budget
from das_gym.problem.unit_latency import UnitLatencies

SHOWN_ENOUGH = [name for name in AGENTS if not name.startswith("policy")]
"""Agents that need no more than the one statistic that the synthetic environment shows."""

ROOT = Path(__file__).parents[3]


class StopError(Exception):
    """Stands for a kill between two turns."""


def config(**settings):
    return SearchConfig(**{"env_id": ENV_ID, "evaluations": 60, "seed": 1, **settings})


def stop_after(turns):
    seen = []

    def on_turn(turn, layer_names):
        seen.append(turn)
        if len(seen) == turns:
            raise StopError

    return on_turn


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["bandit", "bayes", "cross_entropy", "evolution", "greedy", "random"])
def test_a_search_finds_a_good_mask_and_records_it(agent, tmp_path):
    result = search(config(agent=agent, evaluations=150), tmp_path)
    every = np.array([[i in chosen for i in range(N_LAYERS)] for chosen in itertools.combinations(range(N_LAYERS), 4)])
    losses = np.sort(SyntheticVectorEnv().losses(every))
    assert result.loss <= losses[5]
    record = json.loads((tmp_path / "search.json").read_text())
    assert record["n_skipped"] == sum(record["mask"]) == 4
    assert record["skipped_layers"] == [name for name, bit in zip(record["layer_names"], record["mask"], strict=True) if bit]
    assert record["reward"] == np.exp(-record["loss"])
    assert record["env_kwargs"] == {"skip_num": 4}
    assert record["evaluations"] == (42 if agent == "greedy" else 150)
    assert (record["macs"], record["macs_full"], record["macs_saved"]) == (800, 1000, 0.2)
    rows = [turn.row(i) for turn in result.history for i in range(len(turn.masks))]
    assert record["best_seen"]["reward"] == max(row["reward"] for row in rows if sum(row["mask"]) == 4)
    assert (record["skip_probabilities"] is None) == (agent not in ("bandit", "cross_entropy"))
    assert (record["preferences"] is None) == (agent != "bandit")
    assert record["versions"]["torch"]
    assert SearchResult.load(tmp_path) == result


def test_the_record_replays():
    result = search(config(env_kwargs={"reward_batches": "cycle"}))
    env = gymnasium.make_vec(result.env_id, num_envs=result.masks_per_turn, **result.env_kwargs)
    env.reset(seed=result.seed)
    for turn in result.history:
        rewards = env.step(np.array(turn.masks, dtype=np.int8))[1]
        assert rewards.tolist() == turn.rewards
    rewards = env.step(np.repeat(np.array([result.mask], dtype=np.int8), 3, axis=0))[1]
    assert rewards[0] == result.reward


@pytest.mark.parametrize(("evaluations", "sizes"), [(1, [1]), (3, [3]), (7, [3, 3, 1])])
def test_the_budget_is_kept_to_the_mask(evaluations, sizes):
    result = search(config(evaluations=evaluations))
    assert [len(turn.masks) for turn in result.history] == sizes
    assert result.evaluations == evaluations


def test_a_search_of_few_masks_ends_when_all_are_scored():
    result = search(config(agent="random", skip_num=1))
    assert result.evaluations == 12
    assert result.mask == result.best_seen["mask"]


@pytest.mark.parametrize("skip_num", [0, 12])
@pytest.mark.parametrize("agent", SHOWN_ENOUGH)
def test_nothing_and_everything_can_be_skipped(agent, skip_num):
    result = search(config(agent=agent, skip_num=skip_num))
    assert result.mask == [int(skip_num == 12)] * 12
    assert result.skipped_layers == (list(result.layer_names) if skip_num else [])


SEARCHING = [name for name in SHOWN_ENOUGH if not issubclass(agent_class(name), OneMask)]


@pytest.mark.slow
@pytest.mark.parametrize("reward_batches", ["fixed", "cycle", "resample"])
@pytest.mark.parametrize(
    ("agent", "stop", "save_every"),
    [(agent, 1, 1) for agent in SHOWN_ENOUGH]
    + [(agent, 4, 3) for agent in SEARCHING]
    + [(agent, 2, 3) for agent in SEARCHING],
)
def test_a_resumed_search_ends_as_an_undisturbed_one(agent, reward_batches, stop, save_every, tmp_path):
    settings = config(agent=agent, evaluations=30, env_kwargs={"reward_batches": reward_batches})
    whole = search(settings, tmp_path / "whole")
    stopped = dataclasses.replace(settings, save_every=save_every)
    with pytest.raises(StopError):
        search(stopped, tmp_path / "stopped", on_turn=stop_after(stop))
    assert not (tmp_path / "stopped" / "search.json").exists()
    turns = []
    search(stopped, tmp_path / "stopped", on_turn=lambda turn, names: turns.append(turn), resume=True)
    for name in ("search.json", "search_history.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert tuple(turns) == whole.history  # those of the checkpoint are told too


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_bytes(tmp_path):
    code = f"""if True:
        import sys
        from das_gym.agents import SearchConfig, search
        env_kwargs = {{"reward_batches": "resample", "seconds": 0.01}}
        config = SearchConfig(env_id={ENV_ID!r}, evaluations=150, env_kwargs=env_kwargs)
        search(config, sys.argv[1], resume=True)"""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parents[1])])
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, tmp_path / "whole"], env=environment, check=True)
    checkpoint = tmp_path / "killed" / "checkpoint.json"
    with subprocess.Popen([*command, tmp_path / "killed"], env=environment) as process:
        while process.poll() is None and not (checkpoint.exists() and len(read_json(checkpoint)["turns"]) > 10):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "search.json").exists()
    subprocess.run([*command, tmp_path / "killed"], env=environment, check=True)
    assert (tmp_path / "whole" / "search.json").read_bytes() == (tmp_path / "killed" / "search.json").read_bytes()


@pytest.mark.parametrize("agent", SHOWN_ENOUGH)
def test_a_budget_by_cost(agent):
    result = search(config(agent=agent, evaluations=30, macs_saved=0.12))
    assert result.env_kwargs == {"skip_num": None, "macs_saved": 0.12}
    assert result.macs_saved >= 0.12
    assert result.best_seen["macs_saved"] >= 0.12


@pytest.mark.parametrize("stop", [None, 2])
def test_latency_is_measured_once_a_search(stop, tiny_kwargs, tmp_path, monkeypatch):
    """A resumed search, and a replay of its record, bind the same masks though the clock now says something else."""
    clock = itertools.count(1)
    figures = lambda problem, batch: UnitLatencies(83.0, 5.0, tuple(next(clock) * np.arange(1.0, 13.0)), (0.0,) * 12)  # noqa: E731
    monkeypatch.setattr(unit_latency, "latency_of", figures)
    settings = config(env_id="DAS-METER-VQA-v0", agent="random", latency_saved=0.5, evaluations=9).__dict__
    settings = SearchConfig(**{**settings, "env_kwargs": {**tiny_kwargs, "reward_examples": 4}})
    if stop is not None:
        with pytest.raises(StopError):
            search(settings, tmp_path, stop_after(stop))
    result = search(settings, tmp_path, resume=True)
    savings = np.array(result.env_kwargs["costs"]["latency_saved"]["savings"])
    assert savings.tolist() == list(range(1, 13))
    masks = np.array([mask for turn in result.history for mask in turn.masks])
    assert (masks @ savings >= 0.5 * 83.0).all()
    assert all(check.agrees for check in validate(SearchResult.load(tmp_path)))


def test_a_statistic_that_is_not_observed():
    with pytest.raises(ValueError, match="unknown statistic 'depth'; known: block_influence_tokens"):
        search(config(agent="one_shot", agent_kwargs={"statistic": "depth"}))


def test_seeds_differ_and_repeat():
    first = [search(config(seed=seed)).history[0].masks for seed in (1, 1, 2)]
    assert first[0] == first[1] != first[2]


def test_losses_that_are_not_finite_are_recorded_as_none(tmp_path):
    result = search(config(env_kwargs={"no_loss": True}, evaluations=6), tmp_path)
    assert result.loss is None
    assert result.reward == 0.0
    assert SearchResult.load(tmp_path) == result


def test_a_failing_search_leaves_no_record(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images/0007\.png is gone"):
        search(config(env_kwargs={"broken_from": 5}), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.json"]
    with pytest.raises(FileNotFoundError, match=r"no search\.json in .*: no search ended there"):
        SearchResult.load(tmp_path)


@pytest.mark.parametrize("name", ["format", "config", "agent", "env", "turns"])
@pytest.mark.parametrize("value", [None, 3, "x", [3], {"a": 1}])
def test_a_damaged_checkpoint_is_named(tmp_path, name, value):
    with pytest.raises(StopError):
        search(config(), tmp_path, on_turn=stop_after(2))
    path = tmp_path / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=r"checkpoint\.json is"):
        search(config(), tmp_path, resume=True)


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    with pytest.raises(StopError):
        search(config(), tmp_path, on_turn=stop_after(2))
    with pytest.raises(ValueError, match=r"checkpoint\.json is of a search with seed=1, not 2"):
        search(config(seed=2), tmp_path, resume=True)


def test_a_record_of_something_else_is_refused(tmp_path):
    (tmp_path / "search.json").write_text('{"format": 1, "env_id": "x"}')
    with pytest.raises(ValueError, match=r"search\.json is no search record of this version .*is missing.*; search anew"):
        SearchResult.load(tmp_path)
    (tmp_path / "search.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="its format is not 1"):
        SearchResult.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"skip_num": -1}, "skip_num=-1 is not allowed; give a whole number from 0 on"),
        ({"evaluations": 0}, "evaluations=0 is not allowed; give a whole number from 1 on"),
        ({"seed": 2**32}, "seed=4294967296 is not allowed; use 0..4294967295"),
        ({"agent": "bandit", "masks_per_turn": 1}, "masks_per_turn=1 teaches agent 'bandit' nothing; use 2 or more"),
        ({"agent": "bandti"}, "unknown agent 'bandti'; did you mean 'bandit'"),
        (
            {"agent": "json:loads"},
            "agent 'json:loads' is not a subclass of das_gym.agents.Agent; give a name",
        ),
        ({"agent": "nowhere:Agent"}, "agent 'nowhere:Agent' cannot be imported"),
        ({"env_kwargs": {"skip_num": 3}}, "env_kwargs must not hold skip_num; use the setting skip_num of the search"),
        (
            {"env_kwargs": {"macs_saved": 0.1}},
            "env_kwargs must not hold macs_saved; use the setting macs_saved",
        ),
        ({"macs_saved": 12.0}, "`macs_saved` is out of range"),
        ({"macs_saved": 0.1, "skip_num": 4}, "more than one budget"),
        ({"skip_num": None}, "skip_num=None: give it, or one of macs_saved, latency_saved, parameters_saved, memory_saved"),
        ({"env_kwargs": {"num_envs": 3}}, "env_kwargs must not hold num_envs; use the setting masks_per_turn of the search"),
    ],
)
def test_wrong_settings(settings, text):
    with pytest.raises(ValueError, match=text):
        SearchConfig(**settings)


def test_settings_that_are_not_json():
    with pytest.raises(TypeError, match="env_kwargs is not JSON"):
        SearchConfig(env_kwargs={"model": object()})


def test_a_setting_the_agent_does_not_have():
    with pytest.raises(ValueError, match="unknown setting of agent 'bandit', 'lerning_rate'; did you mean 'learning_rate'"):
        make_agent("bandit", MaskSpace(Budget(12, 4)), 0, {"lerning_rate": 1})


class FirstLayers(Agent):
    """Someone's own agent."""

    def ask(self, n):
        return np.arange(self.n_layers)[None] < self.space.skip_num

    def tell(self, masks, rewards):
        self.reported = (masks, rewards)

    def best(self):
        return self.ask(1)[0]


def test_an_agent_of_ones_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_agent", sys.modules[__name__])
    result = search(config(agent="own_agent:FirstLayers", evaluations=3))
    assert result.mask == [1] * 4 + [0] * 8
    assert result.evaluations == 3
    assert result.skip_probabilities is None


STAGED = {"offspring": 4, "stages": [0.5, 1.0]}


def test_masks_scored_on_fewer_examples_cost_less(tiny_kwargs, tmp_path):
    env_kwargs = {**tiny_kwargs, "reward_examples": 8}
    settings = SearchConfig(agent="evolution", agent_kwargs=STAGED, env_kwargs=env_kwargs, masks_per_turn=4, evaluations=8)
    result = search(settings, tmp_path)
    assert [(len(turn.masks), turn.examples_share) for turn in result.history] == [(4, 0.5), (2, 1.0)] * 2
    assert result.evaluations == 8
    env = gymnasium.make("DAS-METER-VQA-v0", skip_num=4, **tiny_kwargs, reward_examples=4)
    cheap = []
    for mask in result.history[0].masks:
        env.reset()
        cheap.append(env.step(np.array(mask))[4]["loss"])
    assert cheap == result.history[0].loss
    whole = [loss for turn in result.history[1::2] for loss in turn.loss]
    assert result.best_seen["loss"] == result.loss == min(whole)
    with pytest.raises(StopError):
        search(settings, tmp_path / "stopped", on_turn=stop_after(3))
    search(settings, tmp_path / "stopped", resume=True)
    assert (tmp_path / "search.json").read_bytes() == (tmp_path / "stopped" / "search.json").read_bytes()


def test_a_budget_that_ends_amid_a_generation(tiny_kwargs):
    env_kwargs = {**tiny_kwargs, "reward_examples": 8}
    settings = SearchConfig(agent="evolution", agent_kwargs=STAGED, env_kwargs=env_kwargs, masks_per_turn=4, evaluations=1)
    result = search(settings)
    assert [len(turn.masks) for turn in result.history] == [1]
    assert result.evaluations == 1
    assert result.mask == result.history[0].masks[0]


@pytest.mark.parametrize(
    ("agent", "statistic", "masks"),
    [("one_shot", "leave_one_out", 13), ("one_shot", "depth", 0), ("random", None, 0), ("policy", None, 37)],
)
def test_what_a_model_scores_for_the_statistics_an_agent_reads_is_counted(tiny_kwargs, tmp_path, agent, statistic, masks):
    named = {} if statistic is None else {"agent_kwargs": {"statistic": statistic}}
    live = {"env_id": "DAS-METER-VQA-v0", "env_kwargs": {**tiny_kwargs, "reward_examples": 4}}
    settings = SearchConfig(**live, skip_num=4, agent=agent, evaluations=2, **named)
    result = search(settings, tmp_path)
    assert (result.statistic_masks, result.evaluations) == (masks, masks + result.masks_asked)
    assert result.masks_asked == (2 if agent == "random" else 1)
    assert all(check.agrees for check in validate(SearchResult.load(tmp_path)))
    tabular = search(SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", skip_num=4, agent=agent, evaluations=2, **named))
    assert (tabular.statistic_masks, tabular.evaluations) == (0, result.masks_asked)


def test_an_environment_without_stages():
    with pytest.raises(
        ValueError, match="this environment scores masks on all its examples at once: leave the agent's stages"
    ):
        search(config(agent="evolution", agent_kwargs=STAGED))
