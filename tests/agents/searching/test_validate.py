from __future__ import annotations

import dataclasses
import json

import pytest
from das_gym.agents import SearchConfig, SearchResult, search
from das_gym.agents.searching.record import Turn
from das_gym.agents.searching.validate import validate
from synthetic import ENV_ID

BEST = {"mask": [0] * 12, "reward": 0.5, "loss": 0.7, "metric": 1.0, "macs": 9, "macs_saved": 0.0, "skipped_layers": []}


def search_record(tmp_path, **settings):
    search(SearchConfig(**{"env_id": ENV_ID, "evaluations": 12, **settings}), tmp_path)
    return SearchResult.load(tmp_path)


@pytest.mark.parametrize("agent", ["bandit", "greedy"])
@pytest.mark.parametrize("reward_batches", ["fixed", "cycle", "resample"])
def test_validate_accepts_a_search(agent, reward_batches, tmp_path):
    result = search_record(tmp_path, agent=agent, env_kwargs={"reward_batches": reward_batches})
    assert validate(result, tolerance=0.0) == []


@pytest.mark.parametrize("name", ["reward", "loss", "metric", "macs", "macs_saved"])
def test_validate_finds_a_false_claim(name, tmp_path):
    result = search_record(tmp_path)
    (line,) = validate(dataclasses.replace(result, **{name: getattr(result, name) + 1}))
    assert line.startswith(f"answer, mask 0: {name}: ")
    (line,) = validate(dataclasses.replace(result, best_seen={**result.best_seen, name: result.best_seen[name] + 1}))
    assert line.startswith(f"best seen, mask 0: {name}: ")


def test_validate_tolerance(tmp_path):
    result = search_record(tmp_path, env_kwargs={"no_loss": True})  # losses that are not finite agree, too
    nearly = dataclasses.replace(result, reward=result.reward + 5e-5)
    assert (validate(nearly), len(validate(nearly, tolerance=1e-5))) == ([], 1)
    (line,) = validate(dataclasses.replace(result, macs_full=result.macs_full + 1), 1.0)
    assert line.startswith("MACs of the full model")


def test_validate_replays_turns_if_examples_change(tmp_path):
    result = search_record(tmp_path, env_kwargs={"reward_batches": "cycle"})
    with pytest.raises(ValueError, match=r"search_history\.json"):
        validate(dataclasses.replace(result, history=()))
    changed = dataclasses.replace(result.history[1], rewards=[0.0, *result.history[1].rewards[1:]])
    (line,) = validate(dataclasses.replace(result, history=(result.history[0], changed, *result.history[2:])))
    assert line.startswith("turn 1, mask 0: reward")


@pytest.mark.parametrize("reward_batches", ["fixed", "cycle"])
@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.12}])
def test_validate_finds_an_answer_outside_the_budget(budget, reward_batches, tmp_path):
    result = search_record(tmp_path, agent="greedy", evaluations=60, env_kwargs={"reward_batches": reward_batches}, **budget)
    assert validate(result) == []
    wrong = dataclasses.replace(result, **result.history[0].rows[0])  # of the first round: one layer is skipped
    assert any("answer: keeps its budget" in line for line in validate(wrong))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"layer_names": ["other"] * 12}, "'other'"),
        ({"mask": [2] * 12}, "`mask` is not allowed"),
        ({"best_seen": {}}, r"search\.json is not a search record.*best_seen, 'mask' is missing"),
        ({"best_seen": BEST | {"reward": "x"}}, r"search\.json is not a search record.*reward='x'"),
        ({"best_seen": BEST | {"macs_saved": None}}, r"search\.json is not a search record.*macs_saved=None"),
    ],
)
def test_validate_reports_a_broken_record(change, text, tmp_path):
    search_record(tmp_path)
    path = tmp_path / "search.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=text):
        validate(SearchResult.load(tmp_path))
    for masks, rewards in (([[1, 0], [0, 1]], [0.5]), ([[1, 0], [0]], [0.5] * 2), ([[1, 7]], [0.5])):
        with pytest.raises(ValueError, match="mask"):
            Turn(masks, rewards, rewards, rewards, [9] * len(masks), [0.1] * len(masks), [1.0] * len(masks))
