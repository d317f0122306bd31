from __future__ import annotations

from itertools import count
from pathlib import Path

import numpy as np
import pytest
from das_gym.agents.compare.comparison import run_agent
from das_gym.agents.compare.results import judge
from das_gym.agents.compare_experiment import COMPARED

from benchmarks.leaderboard import kept_traces, many_layers, optuna_tpe
from benchmarks.leaderboard.aggregate import aggregate, told_apart
from benchmarks.leaderboard.kept_traces import KeptTraces
from benchmarks.leaderboard.many_layers import (
    ManyLayers,
    planted_section,
    who_is_first,
    with_planted_section,
    without_statistics,
)
from benchmarks.leaderboard.optuna_tpe import TreeParzen, trace_optuna
from benchmarks.leaderboard.planted import EVALUATIONS, PlantedOracle
from das_gym.files import read_arrays


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVALUATIONS, 24, 12)
    monkeypatch.setattr("benchmarks.leaderboard.planted.CLIMBS", 5)


def play(seeds: int, kept: KeptTraces) -> ManyLayers:
    played = ManyLayers(24, ["random", "policy", "evolution"], kept)
    for seed in range(seeds):
        played.play(seed, lambda agent: None)
    return played


def test_agents_that_read_statistics_are_left_out():
    left = set(COMPARED) - set(without_statistics(COMPARED, 24))
    assert left == {"angular", "block_influence", "interlace", "policy", "policy_bayes"}
    assert without_statistics(["ppo", "random"], 24) == ["random"]


def test_each_number_of_layers_has_a_table_and_a_first(short: None):
    played = play(2, KeptTraces(None))
    assert played.agents == ["random", "evolution", "optuna"]
    lines = planted_section([played]).splitlines()
    assert "### 24 layers, 8 skipped, 12 evaluations, 2 seeds" in lines
    assert lines[0] == many_layers.HEADING
    assert "    python -m benchmarks.leaderboard with only_planted=True planted=[24] planted_seeds=[2] optuna=[24]" in lines
    (head,) = [line for line in lines if line.startswith("| agent |")]
    assert head.startswith("| agent | at 4 | at 8 | at 12 | best known | within 1 % |")
    assert sum(line.startswith(("| random |", "| evolution |", "| optuna |")) for line in lines) == 3
    assert sum("is first" in line for line in lines) == 1
    assert any("Optuna's TPE (version " in line for line in lines)


def test_without_optuna_there_is_no_row_of_it(short: None, monkeypatch: pytest.MonkeyPatch):
    assert ManyLayers(24, ["random"], KeptTraces(None), optuna=False).agents == ["random"]
    monkeypatch.setattr(many_layers, "has_optuna", lambda: False)
    monkeypatch.delattr(many_layers, "version")
    played = play(1, KeptTraces(None))
    assert played.agents == ["random", "evolution"]
    section = planted_section([played])
    assert "Optuna's" not in section
    assert "planted=[24] planted_seeds=[1] optuna=[]" in section


def test_what_was_played_is_not_played_again(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = play(2, KeptTraces(tmp_path)).part()
    assert len(list(tmp_path.iterdir())) == 2 * 3
    for name in ("run_agent", "trace_optuna"):
        monkeypatch.setattr(many_layers, name, None)
    assert play(2, KeptTraces(tmp_path)).part() == first
    with pytest.raises(TypeError):  # another seed has to be played
        play(3, KeptTraces(tmp_path))


def test_other_settings_are_played_anew(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    oracle, kept = PlantedOracle(24, 0), KeptTraces(tmp_path)
    for seeds, evaluations, kwargs in (([0], 6, {}), ([1], 6, {}), ([0], 9, {}), ([0], 6, {"offspring": 4})):
        trace = kept.trace(oracle, "evolution", seeds, evaluations, 3, kwargs)
        again = kept.trace(oracle, "evolution", seeds, evaluations, 3, kwargs, play=None)
        for name in kept_traces.ARRAYS:
            np.testing.assert_array_equal(getattr(trace, name), getattr(again, name))
    kept.trace(PlantedOracle(24, 1), "evolution", [0], 6, 3, {})
    assert len(list(tmp_path.iterdir())) == 5
    monkeypatch.setattr(kept_traces.das_gym, "__version__", "0.0.1")
    kept.trace(oracle, "evolution", [0], 6, 3, {})
    assert len(list(tmp_path.iterdir())) == 6


def test_a_damaged_file_is_named(short: None, tmp_path: Path):
    oracle, kept = PlantedOracle(24, 0), KeptTraces(tmp_path)
    kept.trace(oracle, "random", [0], 6, 3, {})
    (file,) = tmp_path.iterdir()
    for name, other in (
        ("answers", np.zeros((1, 5), bool)),
        ("curves", np.full((1, 6), np.nan)),
        ("answers", np.ones((1, 24))),
    ):
        whole = read_arrays(file)
        np.savez(file, **{**whole, name: other})
        with pytest.raises(ValueError, match=rf"{file.name} is damaged .*delete it, and it is made again"):
            kept.trace(oracle, "random", [0], 6, 3, {})
        np.savez(file, **whole)
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .*delete it, and it is made again"):
        kept.trace(oracle, "random", [0], 6, 3, {})


def test_optuna_answers_with_the_best_mask_it_asked_about(short: None):
    oracle = PlantedOracle(24, 0)
    trace, again = (trace_optuna(oracle, "optuna", [4, 5], 8, 3, {}) for _ in range(2))
    np.testing.assert_array_equal(trace.curves, again.curves)
    assert (np.diff(trace.curves) >= 0).all()
    np.testing.assert_array_equal(trace.curves[:, -1], [oracle.rewards(mask[None])[0] for mask in trace.answers])
    assert oracle.space.contains(trace.answers).all()
    assert trace.evaluations.tolist() == [8, 8]


def test_optuna_is_told_to_seek_large_rewards(monkeypatch: pytest.MonkeyPatch):
    space = PlantedOracle(24, 0).space
    sampler = TreeParzen(space, 0)
    for reward in (0.5, 0.9, 0.7):
        assert space.contains(sampler.ask()[None]).all()
        sampler.tell(reward)
    assert sampler._study.best_value == -0.9
    monkeypatch.setattr(optuna_tpe.time, "process_time", count().__next__)
    trace = trace_optuna(PlantedOracle(24, 0), "optuna", [0], 4, 3, {})
    assert trace.milliseconds.tolist() == [6000.0]  # a second to ask, one to tell, three masks a turn


def test_problems_of_one_kind_are_drawn_anew(short: None):
    oracles = [PlantedOracle(24, seed) for seed in range(4)]
    results = [judge(o, [run_agent(o, "random", [0], 6, 3, {})])[0] for o in oracles]
    low, high = aggregate(oracles, results, [6], of_one_kind=True).intervals[0]
    (fixed,) = aggregate(oracles, results, [6]).intervals
    assert fixed[0] == fixed[1]
    assert low < fixed[0] < high


def test_agents_are_told_apart_problem_by_problem():
    problems = np.linspace(0, 1, 40)
    assert told_apart(problems, problems + 0.01)
    assert not told_apart(problems, problems + 0.01 * (-1) ** np.arange(40))
    assert not told_apart(problems, problems)


def test_who_is_first_is_said_with_those_as_good():
    far, near = np.full(9, 1.0), np.zeros(9)
    assert who_is_first(["a", "b"], {"a": near, "b": far}) == "`a` is first, and no other is as good."
    assert who_is_first(["a", "b", "c"], {"a": near, "b": near, "c": far}).startswith("`a` is first; `b` cannot be told")
    words = who_is_first(["a", "b", "c", "d"], dict.fromkeys("abcd", near))
    assert words.startswith("`a` is first; `b`, `c` and `d` cannot be told from it")


def test_the_section_takes_the_place_of_the_old_one():
    first, after = many_layers.HEADING, many_layers.AFTER
    for old in (f"a\n\n{after}\n\nb\n", f"a\n\n{first}\n\nold\n\n{after}\n\nb\n"):
        assert with_planted_section(old, f"{first}\n\nnew") == f"a\n\n{first}\n\nnew\n\n{after}\n\nb\n"
    with pytest.raises(ValueError, match=r"give a file that `python -m benchmarks.leaderboard` wrote"):
        with_planted_section("# Something else\n", "new")
