import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from das_gym.agents import AGENTS, SearchConfig, SearchResult, search
from das_gym.agents.ask_tell.baselines import RandomSearch
from das_gym.agents.searching.loop import check_search, run_search
from das_gym.agents.searching.record import Turn, best_rows
from synthetic import ENV_ID, N_LAYERS, StopError, check_replays, stop_after, true_losses

from das_gym.problem import latency
from das_gym.problem.latency import UnitLatencies
from das_gym.problem.mask_space import skipped_names


def config(**settings):
    return SearchConfig(**{"env_id": ENV_ID, "evaluations": 60, "seed": 1, **settings})


def stopped_search(folder, turns=2, **settings):
    with pytest.raises(StopError):
        search(config(**settings), folder=folder, callback=stop_after(turns))


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["bandit", "bayes", "evolution", "greedy", "random"])
def test_search_records_a_good_mask(agent, tmp_path):
    result = search(config(agent=agent, evaluations=150), folder=tmp_path)
    every = np.array([[i in chosen for i in range(N_LAYERS)] for chosen in itertools.combinations(range(N_LAYERS), 4)])
    assert result.loss <= np.sort(true_losses(every))[5]
    record = json.loads((tmp_path / "search.json").read_text())
    assert record["n_skipped"] == sum(record["mask"]) == 4
    assert record["skipped_layers"] == skipped_names(record["layer_names"], record["mask"])
    assert record["reward"] == np.exp(-record["loss"])
    assert (record["env_kwargs"], result.masks_asked) == ({"skip_num": 4}, 42 if agent == "greedy" else 150)
    assert (record["macs"], record["macs_full"], record["macs_saved"]) == (800, 1000, 0.2)
    rows = [row for turn in result.history for row in turn.rows]
    assert record["reward"] == max(row["reward"] for row in rows if sum(row["mask"]) == 4)
    assert (result.history[-1].skip_probabilities is None) == (agent != "bandit")
    assert SearchResult.load(tmp_path) == result


@pytest.mark.parametrize(("evaluations", "sizes"), [(1, [1]), (3, [3]), (7, [3, 3, 1])])
def test_search_scores_as_many_masks_as_allowed(evaluations, sizes):
    result = search(config(evaluations=evaluations))
    assert [len(turn.masks) for turn in result.history] == sizes
    assert result.evaluations == evaluations


def test_an_id_stands_for_the_default_settings():
    found = search(ENV_ID)
    assert (found.agent, found.n_skipped) == (SearchConfig.agent, 4)
    assert 0 < found.evaluations <= SearchConfig.evaluations


@pytest.mark.parametrize("agent", sorted(AGENTS))
def test_check_search_accepts_every_agent(agent):
    check_search(SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent=agent))
    with pytest.raises(ValueError, match="unknown setting"):
        check_search(SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent=agent, agent_kwargs={"wrong": 1}))


def test_an_agent_reads_statistics_that_are_not_observed():
    wanted = SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", agent="block_influence", env_kwargs={"statistics": ["depth"]})
    check_search(wanted)
    assert (search(wanted).mask == search(replace(wanted, env_kwargs={})).mask).all()
    with pytest.raises(ValueError, match="unknown statistic 'depht'; did you mean 'depth'"):
        check_search(replace(wanted, agent_kwargs={"statistic": "depht"}))


class Stubborn(RandomSearch):
    """Answers the worst mask that it asked for, or one that it never asked for."""

    asked = True

    def best(self):
        worst = min(self.rewards, key=self.rewards.get)
        return np.frombuffer(worst, dtype=bool) if self.asked else self.space.top(-np.arange(N_LAYERS))


class Untested(Stubborn):
    asked = False


@pytest.mark.parametrize(("agent", "more"), [(Stubborn, 0), (Untested, 1)])
@pytest.mark.parametrize("reward_batches", ["fixed", "cycle"])
def test_search_answers_the_better_of_the_agents_answer_and_the_best_scored_mask(agent, more, reward_batches):
    path = f"{__name__}:{agent.__name__}"
    result = search(config(agent=path, evaluations=9, env_kwargs={"reward_batches": reward_batches}))
    assert (result.answer_masks, result.evaluations, result.masks_asked) == (more, 9 + more, 9)
    best = best_rows(result.history, result.env_kwargs)[0]["mask"]
    losses = true_losses(np.array([result.mask, [1] * 4 + [0] * 8, best]))
    assert losses[0] == losses[1:].min() if more else result.mask.tolist() == best


def test_search_scores_a_loaded_problem(tiny_problem):
    settings = {"env_id": "DAS-METER-VQA-v0", "skip_num": 2, "evaluations": 3, "env_kwargs": {"reward_examples": 4}}
    result = run_search(config(agent="random", **settings), problem=tiny_problem)
    assert tuple(result.layer_names) == tiny_problem.layer_names  # not the twelve of the bundled model
    trained = run_search(config(agent="ppo", masks_per_turn=2, **settings), problem=tiny_problem)
    assert len(trained.mask) == len(tiny_problem.layer_names)


@pytest.mark.parametrize("agent", AGENTS)
def test_search_with_extreme_budgets_and_budgets_by_cost(agent):
    for skip_num in (0, 12):
        assert search(config(agent=agent, skip_num=skip_num)).mask.tolist() == [skip_num == 12] * 12
    result = search(config(agent=agent, evaluations=30, macs_saved=0.12))
    assert result.env_kwargs == {"skip_num": None, "macs_saved": 0.12}
    assert result.macs_saved >= 0.12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "reward_batches", "stop", "save_every"),
    [
        *((agent, "fixed", 1, 1) for agent in AGENTS),
        *(("bandit", "resample", stop, 3) for stop in (2, 4)),
        ("bandit", "cycle", 4, 3),
    ],
)
def test_resumed_search_equals_an_uninterrupted_one(agent, reward_batches, stop, save_every, tmp_path):
    settings = {"agent": agent, "evaluations": 30, "env_kwargs": {"reward_batches": reward_batches}}
    whole = search(config(**settings), folder=tmp_path / "whole")
    settings["save_every"] = save_every
    stopped_search(tmp_path / "stopped", stop, **settings)
    assert not (tmp_path / "stopped" / "search.json").exists()
    turns = []
    search(config(**settings), folder=tmp_path / "stopped", callback=turns.append)
    for name in ("search.json", "search_history.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    assert tuple(turns) == whole.history  # with those of the checkpoint


def test_a_folder_belongs_to_one_search(tmp_path):
    result = search(config(), folder=tmp_path)
    assert search(config(), folder=tmp_path) == result
    with pytest.raises(ValueError, match=r"belongs to a search with another `seed`: got 2, expected 1"):
        search(config(seed=2), folder=tmp_path)


@pytest.mark.parametrize("name", ["format", "scorer", "turns"])
@pytest.mark.parametrize("value", [None, {"a": 1}])
def test_resume_names_a_damaged_checkpoint(tmp_path, name, value):
    stopped_search(tmp_path)
    path = tmp_path / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    with pytest.raises(ValueError, match=r"checkpoint\.json is"):
        search(config(), folder=tmp_path)


@pytest.mark.parametrize("stop", [None, 2])
def test_search_measures_latency_once(stop, small_kwargs, tmp_path, monkeypatch):
    """A resumed search, and a replay of its record, allow the same masks though latencies have changed."""
    clock = itertools.count(1)
    figures = lambda problem, batch: UnitLatencies(23.0, 5.0, tuple(next(clock) * np.arange(1.0, 7.0)), (0.0,) * 6)  # noqa: E731
    monkeypatch.setattr(latency, "unit_latencies", figures)
    settings = {"agent": "random", "latency_saved": 0.5, "evaluations": 9}
    settings |= {"env_id": "DAS-METER-VQA-v0", "env_kwargs": {**small_kwargs, "reward_examples": 4}}
    if stop is not None:
        stopped_search(tmp_path, stop, **settings)
    result = search(config(**settings), folder=tmp_path)
    savings = np.array(result.env_kwargs["costs"]["latency_saved"]["savings"])
    assert savings.tolist() == list(range(1, 7))
    masks = np.array([mask for turn in result.history for mask in turn.masks])
    assert (masks @ savings >= 0.5 * 23.0).all()
    check_replays(SearchResult.load(tmp_path))


def test_search_records_infinite_losses_as_none(tmp_path):
    result = search(config(env_kwargs={"no_loss": True}, evaluations=6), folder=tmp_path)
    assert (result.loss, result.reward) == (None, 0.0)
    assert SearchResult.load(tmp_path) == result


def test_an_agent_that_asks_for_nothing_is_named(monkeypatch):
    monkeypatch.setattr(RandomSearch, "ask", lambda self, n: np.zeros((0, self.n_layers), bool))
    with pytest.raises(ValueError, match="agent 'random' returned no mask"):
        search(config(agent="random"))


def test_failed_search_leaves_no_record(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images/0007\.png is missing"):
        search(config(env_kwargs={"broken_from": 5}), folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.json", "inputs.json"]
    with pytest.raises(FileNotFoundError, match=r"no search\.json"):
        SearchResult.load(tmp_path)
    for text in ('{"format": 1, "env_id": "x"}', '{"format": 99}', "[]"):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(ValueError, match=r"search\.json is damaged"):
            SearchResult.load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"skip_num": None}, "skip_num"),
        ({"macs_saved": 12.0}, "macs_saved"),
        ({"macs_saved": 0.1, "skip_num": 4}, "skip_num"),
        ({"evaluations": 0}, "evaluations"),
        ({"agent": "bandit", "masks_per_turn": 1}, "masks_per_turn"),
        ({"agent": "bandti"}, "did you mean 'bandit'"),
        ({"env_kwargs": {"skip_num": 3}}, "skip_num"),
    ],
)
def test_search_config_rejects_settings(settings, name):
    with pytest.raises(ValueError, match=name):
        SearchConfig(**settings)
    with pytest.raises(TypeError, match="JSON"):
        SearchConfig(env_kwargs={"model": object()})


@pytest.mark.parametrize("agent", ["bayes", "greedy"])
def test_search_reads_a_table_of_few_skipped_layers(agent):
    """Its masks of up to 4 layers are all that these agents ask for, also those outside the budget."""
    result = search(SearchConfig(env_id="DAS-LLaVA-Answering-Tabular-v0", skip_num=3, agent=agent, evaluations=30))
    assert (sum(result.mask), result.masks_asked) == (3, 30)


@pytest.mark.parametrize(
    ("agent", "statistic", "masks"),
    [("block_influence", "leave_one_out", 7), ("block_influence", "depth", 0), ("random", None, 0)],
)
def test_search_counts_masks_that_statistics_need(small_kwargs, tmp_path, agent, statistic, masks):
    named = {} if statistic is None else {"agent_kwargs": {"statistic": statistic}}
    live = {"env_id": "DAS-METER-VQA-v0", "env_kwargs": {**small_kwargs, "reward_examples": 4}}
    settings = SearchConfig(**live, skip_num=4, agent=agent, evaluations=2, **named)
    result = search(settings, folder=tmp_path)
    assert (result.statistic_masks, result.evaluations) == (masks, masks + result.masks_asked)
    assert result.masks_asked == (2 if agent == "random" else 1)
    check_replays(SearchResult.load(tmp_path))
    tabular = search(SearchConfig(env_id="DAS-METER-VQA-Tabular-v0", skip_num=4, agent=agent, evaluations=2, **named))
    assert (tabular.statistic_masks, tabular.evaluations) == (0, result.masks_asked)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"mask": [2] * 12}, "`mask` is not allowed"), ({"macs": "x"}, r"search\.json is damaged.*macs='x'")],
)
def test_broken_record_is_named(change, text, tmp_path):
    search(config(evaluations=3), folder=tmp_path)
    path = tmp_path / "search.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=text):
        SearchResult.load(tmp_path)
    for masks, rewards in (([[1, 0], [0, 1]], [0.5]), ([[1, 0], [0]], [0.5] * 2), ([[1, 7]], [0.5])):
        with pytest.raises(ValueError, match="mask"):
            Turn(masks, rewards, rewards, rewards, [9] * len(masks), [0.1] * len(masks), [1.0] * len(masks))
