from __future__ import annotations

import dataclasses
import json

import gymnasium
import numpy as np
import pytest
from das_gym.agents import SearchConfig, SearchResult, search
from das_gym.agents.searching.validate import validate
from synthetic import ENV_ID


def found(tmp_path, **settings):
    search(SearchConfig(**{"env_id": ENV_ID, "evaluations": 12, **settings}), tmp_path)
    return SearchResult.load(tmp_path)


def differing(checks):
    return [check.what for check in checks if not check.agrees]


@pytest.mark.parametrize("agent", ["bandit", "bayes", "greedy", "uniform"])
@pytest.mark.parametrize("reward_batches", ["fixed", "cycle", "resample"])
def test_what_a_search_wrote_is_valid(agent, reward_batches, tmp_path):
    result = found(tmp_path, agent=agent, env_kwargs={"reward_batches": reward_batches})
    checks = validate(result, tolerance=0.0)
    assert not differing(checks)
    replayed = 2 * 6 if reward_batches == "fixed" else 6 + 5 * result.evaluations  # 5 scores, and the budget where it binds
    assert len(checks) == 1 + replayed + 10


def test_a_budget_by_cost_is_valid(tmp_path):
    assert not differing(validate(found(tmp_path, agent="greedy", macs_saved=0.12)))


@pytest.mark.parametrize("name", ["reward", "loss", "metric", "macs", "macs_saved"])
def test_a_claim_that_is_not_true(name, tmp_path):
    result = found(tmp_path)
    wrong = dataclasses.replace(result, **{name: getattr(result, name) + 1})
    assert differing(validate(wrong)) == [f"answer: {name}"]
    wrong = dataclasses.replace(result, best_seen={**result.best_seen, name: None})
    assert differing(validate(wrong)) == [f"best seen: {name}", f"best seen, of all turns: {name}"]


def test_the_tolerance_is_relative_for_large_numbers_and_absolute_for_small_ones(tmp_path):
    result = found(tmp_path)
    nearly = dataclasses.replace(result, reward=result.reward + 5e-5)
    assert not differing(validate(nearly))
    assert differing(validate(nearly, tolerance=1e-5)) == ["answer: reward"]
    assert differing(validate(dataclasses.replace(result, macs_full=result.macs_full + 1), 1.0)) == [
        "MACs of the full model"
    ]


def test_losses_that_are_not_finite_agree(tmp_path):
    assert not differing(validate(found(tmp_path, env_kwargs={"no_loss": True})))


def test_another_mask_does_not_agree(tmp_path):
    result = found(tmp_path)
    other = np.roll(result.mask, 1).tolist()
    assert "answer: loss" in differing(validate(dataclasses.replace(result, mask=other)))


def test_turns_are_needed_where_examples_change(tmp_path):
    result = found(tmp_path, env_kwargs={"reward_batches": "cycle"})
    with pytest.raises(ValueError, match=r"search_history\.json does not hold them all: put it beside search\.json"):
        validate(dataclasses.replace(result, history=()))
    changed = dataclasses.replace(result.history[1], rewards=[0.0, *result.history[1].rewards[1:]])
    wrong = dataclasses.replace(result, history=(result.history[0], changed, *result.history[2:]))
    assert differing(validate(wrong)) == ["turn 1, mask 0: reward"]


def test_layers_of_another_model_are_refused(tmp_path):
    result = found(tmp_path)
    with pytest.raises(ValueError, match=r"the record is of layers .*'other'"):
        validate(dataclasses.replace(result, layer_names=["other", *result.layer_names[1:]]))


@pytest.mark.parametrize("reward_batches", ["fixed", "cycle"])
@pytest.mark.parametrize("budget", [{"skip_num": 4}, {"macs_saved": 0.12}])
def test_an_answer_off_the_budget_is_not_valid_whoever_gave_it(budget, reward_batches, tmp_path):
    result = found(tmp_path, agent="greedy", evaluations=60, env_kwargs={"reward_batches": reward_batches}, **budget)
    assert result.free_budget
    assert not differing(validate(result))
    turn = result.history[0]  # of the first round: one layer is skipped
    false = {**turn.row(0), "skipped_layers": [result.layer_names[turn.masks[0].index(1)]]}
    answer = {name: value for name, value in false.items() if name != "skipped_layers"}
    wrong = dataclasses.replace(result, **answer, skipped_layers=false["skipped_layers"], n_skipped=1)
    assert "answer: keeps its budget" in differing(validate(wrong))
    wrong = dataclasses.replace(result, best_seen=false)
    assert "best seen, of all turns: mask" in differing(validate(wrong))
    assert ("best seen: keeps its budget" in differing(validate(wrong))) == (reward_batches == "fixed")


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("n_skipped", 3, "answer: n_skipped"),
        ("skipped_layers", ["text.0"], "answer: skipped_layers"),
        ("evaluations", 11, "evaluations"),
    ],
)
def test_what_is_derived_is_compared(field, value, what, tmp_path):
    assert differing(validate(dataclasses.replace(found(tmp_path), **{field: value}))) == [what]


def test_the_best_mask_seen_was_seen_and_is_the_best(tmp_path):
    result = found(tmp_path, agent="random")
    rows = [turn.row(i) for turn in result.history for i in range(len(turn.masks))]
    worst = min(rows, key=lambda row: row["reward"])
    layers = [name for name, bit in zip(result.layer_names, worst["mask"], strict=True) if bit]
    wrong = dataclasses.replace(result, best_seen={**worst, "skipped_layers": layers})
    assert "best seen, of all turns: mask" in differing(validate(wrong))
    wrong = dataclasses.replace(result, best_seen={**result.best_seen, "skipped_layers": ["text.0"]})
    assert differing(validate(wrong)) == ["best seen: skipped_layers"]


def test_an_agent_of_ones_own_need_not_be_there(tmp_path):
    result = found(tmp_path, agent="greedy", env_kwargs={"reward_batches": "cycle"})
    assert not differing(validate(dataclasses.replace(result, agent="nowhere:Own")))
    with pytest.raises(ValueError, match="unknown agent 'gredy'; did you mean 'greedy'"):
        validate(dataclasses.replace(result, agent="gredy"))


def test_whether_an_agent_leaves_the_budget_is_recorded(tmp_path):
    settings = {"agent": "greedy", "env_kwargs": {"reward_batches": "cycle"}}
    found(tmp_path, **settings)
    path = tmp_path / "search.json"
    record = json.loads(path.read_text())
    assert record.pop("free_budget") is True
    path.write_text(json.dumps(record))
    assert SearchResult.load(tmp_path).free_budget is False  # as in records of earlier versions
    assert found(tmp_path, agent="bandit").free_budget is False


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"env_id": "DAS-METER-VQ-v0"}, "Environment `DAS-METER-VQ` doesn't exist"),
        ({"env_id": "nowhere:Env-v0"}, "`plugins=nowhere`"),
        ({"env_id": "CartPole-v1"}, "`env_id` is not an environment of das_gym"),
        ({"seed": -1}, r"seed=-1 is not allowed; use 0\.\.4294967295"),
        ({"agent": "bandti"}, "unknown agent 'bandti'; did you mean 'bandit'"),
        ({"mask": [1, 1, 1, 1]}, "mask is 4 entries, there are 12 layers; give a list with one 0 or 1 a layer"),
        ({"mask": [2] * 12}, r"mask holds 2; give 0 \(keep\) or 1 \(skip\) a layer"),
        ({"mask": [0.5] * 12}, r"mask\[0\]=0.5 .*give a whole number"),
        ({"best_seen": {}}, "best_seen lacks mask, reward, loss, metric, macs, macs_saved, skipped_layers; it has nothing"),
        ({"best_seen": {"mask": [1]}}, r"best_seen\.mask is 1 entries, there are 12 layers"),
        ({"best_seen": {"mask": None}}, r"best_seen\.mask is None, there are 12 layers"),
        ({"best_seen": {"mask": [-1] * 12}}, r"best_seen\.mask holds -1"),
        ({"best_seen": {"mask": [True] * 12}}, r"best_seen\.mask holds True"),
        ({"best_seen": {"reward": "high"}}, r"best_seen\.reward='high' is not allowed; give a number"),
        ({"masks_per_turn": 2}, "masks_per_turn=2 is not allowed; its turns have up to 3 masks"),
    ],
)
def test_a_broken_record_is_told_in_words(change, text, tmp_path):
    found(tmp_path)
    path = tmp_path / "search.json"
    record = json.loads(path.read_text())
    if change.get("best_seen"):
        change = {"best_seen": {**record["best_seen"], **change["best_seen"]}}
    path.write_text(json.dumps({**record, **change}))
    with pytest.raises((ValueError, TypeError, gymnasium.error.Error), match=text):
        validate(SearchResult.load(tmp_path))


@pytest.mark.slow
def test_a_search_on_the_model_is_valid(tiny_kwargs, tmp_path):
    config = SearchConfig(agent="bayes", evaluations=9, macs_saved=0.12, env_kwargs={**tiny_kwargs, "reward_examples": 8})
    assert search(config, tmp_path).macs_saved >= 0.12
    assert not differing(validate(SearchResult.load(tmp_path)))
