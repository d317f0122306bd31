from __future__ import annotations

import dataclasses
import json

import gymnasium
import pytest
from das_gym.agents import SearchConfig, SearchResult, search
from das_gym.agents.searching.validate import validate
from synthetic import ENV_ID


def search_record(tmp_path, **settings):
    search(SearchConfig(**{"env_id": ENV_ID, "evaluations": 12, **settings}), tmp_path)
    return SearchResult.load(tmp_path)


def differing(checks):
    return [check.what for check in checks if not check.agrees]


@pytest.mark.parametrize("agent", ["bandit", "bayes", "greedy", "uniform"])
@pytest.mark.parametrize("reward_batches", ["fixed", "cycle", "resample"])
def test_validate_accepts_a_search(agent, reward_batches, tmp_path):
    result = search_record(tmp_path, agent=agent, env_kwargs={"reward_batches": reward_batches})
    checks = validate(result, tolerance=0.0)
    assert not differing(checks)
    replayed = 2 * 6 if reward_batches == "fixed" else 6 + 5 * result.evaluations  # 5 scores, and the budget where it binds
    assert len(checks) == 1 + replayed + 10


@pytest.mark.parametrize("name", ["reward", "loss", "metric", "macs", "macs_saved"])
def test_validate_finds_a_false_claim(name, tmp_path):
    result = search_record(tmp_path)
    wrong = dataclasses.replace(result, **{name: getattr(result, name) + 1})
    assert differing(validate(wrong)) == [f"answer: {name}"]
    wrong = dataclasses.replace(result, best_seen={**result.best_seen, name: result.best_seen[name] + 1})
    assert differing(validate(wrong)) == [f"best seen: {name}", f"best seen, of all turns: {name}"]


def test_validate_tolerance(tmp_path):
    result = search_record(tmp_path)
    nearly = dataclasses.replace(result, reward=result.reward + 5e-5)
    assert not differing(validate(nearly))
    assert differing(validate(nearly, tolerance=1e-5)) == ["answer: reward"]
    assert differing(validate(dataclasses.replace(result, macs_full=result.macs_full + 1), 1.0)) == [
        "MACs of the full model"
    ]


def test_validate_accepts_infinite_losses(tmp_path):
    assert not differing(validate(search_record(tmp_path, env_kwargs={"no_loss": True})))


def test_validate_replays_turns_if_examples_change(tmp_path):
    result = search_record(tmp_path, env_kwargs={"reward_batches": "cycle"})
    with pytest.raises(ValueError, match=r"search_history\.json"):
        validate(dataclasses.replace(result, history=()))
    changed = dataclasses.replace(result.history[1], rewards=[0.0, *result.history[1].rewards[1:]])
    wrong = dataclasses.replace(result, history=(result.history[0], changed, *result.history[2:]))
    assert differing(validate(wrong)) == ["turn 1, mask 0: reward"]


def test_validate_rejects_layers_of_another_model(tmp_path):
    result = search_record(tmp_path)
    with pytest.raises(ValueError, match="'other'"):
        validate(dataclasses.replace(result, layer_names=["other", *result.layer_names[1:]]))


@pytest.mark.parametrize("reward_batches", ["fixed", "cycle"])
@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.12}])
def test_validate_finds_an_answer_outside_the_budget(budget, reward_batches, tmp_path):
    result = search_record(tmp_path, agent="greedy", evaluations=60, env_kwargs={"reward_batches": reward_batches}, **budget)
    assert result.free_budget
    assert not differing(validate(result))
    turn = result.history[0]  # of the first round: one layer is skipped
    false = {**turn.rows[0], "skipped_layers": [result.layer_names[turn.masks[0].index(1)]]}
    answer = {name: value for name, value in false.items() if name != "skipped_layers"}
    wrong = dataclasses.replace(result, **answer, skipped_layers=false["skipped_layers"], n_skipped=1)
    assert "answer: keeps its budget" in differing(validate(wrong))
    wrong = dataclasses.replace(result, best_seen=false)
    assert "best seen, of all turns: mask" in differing(validate(wrong))
    assert ("best seen: keeps its budget" in differing(validate(wrong))) == (reward_batches == "fixed")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"env_id": "DAS-METER-VQ-v0"}, "Environment `DAS-METER-VQ` doesn't exist"),
        ({"env_id": "CartPole-v1"}, "`env_id` is not an environment of das_gym"),
        ({"agent": "bandti"}, "did you mean 'bandit'"),
        ({"mask": [2] * 12}, "`mask` is not allowed"),
        ({"best_seen": {}}, "best_seen, 'mask' is missing"),
        ({"best_seen": {"mask": None}}, "mask"),
        ({"best_seen": {"reward": "high"}}, "reward"),
    ],
)
def test_validate_reports_a_broken_record(change, text, tmp_path):
    search_record(tmp_path)
    path = tmp_path / "search.json"
    record = json.loads(path.read_text())
    if change.get("best_seen"):
        change = {"best_seen": {**record["best_seen"], **change["best_seen"]}}
    path.write_text(json.dumps({**record, **change}))
    with pytest.raises((ValueError, TypeError, gymnasium.error.Error), match=text):
        validate(SearchResult.load(tmp_path))
