from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.search.__main__ import main, search
from benchmarks.search.problems import FAMILIES, greedy_evaluations, planted, tabulated
from benchmarks.search.rivals import register_rivals
from das_gym.problem.mask_space import every_mask


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_problem_has_no_better_mask_among_random_ones(family):
    problem = planted(family, 24, 3)
    rng = np.random.default_rng(0)
    masks = np.array([problem.space.sample(rng) for _ in range(300)])
    losses = problem.losses(masks)
    assert problem.best < losses.min()
    assert problem.random == pytest.approx(losses.mean(), rel=0.1)


def test_tabulated_problem_knows_the_optimum():
    problem = tabulated("meter_mini/vqa", 4)
    assert problem.losses(every_mask(12, 4)).min() == problem.best


def test_greedy_evaluations_by_hand():
    assert greedy_evaluations(12, 4) == 12 + 11 + 10 + 9


@pytest.mark.parametrize("agent", ["heat_kernel", "quadratic_regression", "local_search"])
def test_rivals_learn(agent):
    register_rivals()
    problem = planted("pairs", 24, 0)
    found = search(agent, problem, 0)["regret"]
    assert found < search("random", problem, 0)["regret"]


def test_search_benchmark_resumes_and_counts_distinct_runs(tmp_path, capsys):
    words = ["--out", str(tmp_path / "runs.jsonl"), "--suites", "greedy-12", "--agents", "greedy", "random", "--seeds", "2"]
    main(words)
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    printed = capsys.readouterr().out
    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:50]) + "\n")
    main(words)
    again = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    for one, other in zip(map(json.loads, lines), again, strict=True):
        assert {**one, "milliseconds": 0} == {**other, "milliseconds": 0}
    assert len(lines) == 7 * 5 * 2 * 2
    assert "| greedy | 35 |" in printed  # two seeds of an agent that draws nothing are one run
    assert "| random | 70 |" in printed
