from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from synthetic import ENV_ID

from agents import SearchConfig, SearchResult, search
from agents.validate import main, validate


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
    turns = 0 if reward_batches == "fixed" else result.evaluations
    assert len(checks) == 1 + 5 * (2 if reward_batches == "fixed" else turns + 1)


def test_a_budget_by_cost_is_valid(tmp_path):
    assert not differing(validate(found(tmp_path, agent="greedy", macs_saved=0.12)))


@pytest.mark.parametrize("name", ["reward", "loss", "metric", "macs", "macs_saved"])
def test_a_claim_that_is_not_true(name, tmp_path):
    result = found(tmp_path)
    wrong = dataclasses.replace(result, **{name: getattr(result, name) + 1})
    assert differing(validate(wrong)) == [f"answer: {name}"]
    wrong = dataclasses.replace(result, best_seen={**result.best_seen, name: None})
    assert differing(validate(wrong)) == [f"best seen: {name}"]


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


def test_the_command(tmp_path, capsys):
    found(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path / "search.json")]) == 0
    printed = capsys.readouterr().out
    assert "valid: all 11 numbers agree (MACs exactly, the others to 0.0001)" in printed
    record = json.loads((tmp_path / "search.json").read_text())
    record["loss"] += 0.01
    record["versions"]["torch"] = "1.0"
    (tmp_path / "search.json").write_text(json.dumps(record))
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "DIFFERS" in printed
    assert "made with torch 1.0 (here " in printed
    assert "1 of 11 numbers differ" in printed
    assert main([str(tmp_path), "--tolerance", "0.1"]) == 0
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "cannot validate" in capsys.readouterr().err


def test_a_search_on_the_model_is_valid(tiny_kwargs, tmp_path):
    config = SearchConfig(agent="bayes", evaluations=9, macs_saved=0.12, env_kwargs={**tiny_kwargs, "reward_examples": 8})
    assert search(config, tmp_path).macs_saved >= 0.12
    assert not differing(validate(SearchResult.load(tmp_path)))
