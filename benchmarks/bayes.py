"""The constants of `bayes`: chosen on the suite's `train`, reported on its `test`, which took no part.

    python -m benchmarks.bayes                            every constant in turn, then `test`; about five minutes of one core
    python -m benchmarks.bayes --every 10 --seeds 1       on every tenth problem of `train`: a look

One constant after the other takes each value of its list while the rest stay. A value is taken if it lowers the mean of
normalised regret (0 = the optimum, 1 = a random order) over problems, seeds and the evaluations of `LOOKS`, and 95 % of
bootstrap samples of models, and of the problems of each, say so: problems of one model are alike.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents import Bayes, register_agent
from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.compare.comparison import compare_agents
from das_gym.agents.compare.oracle import SuiteOracle
from das_gym.agents.compare.results import AgentResult

from benchmarks.generalise import interval
from benchmarks.leaderboard.aggregate import aggregate, normalised_regrets, summary
from benchmarks.leaderboard.regression import RIVALS as _REGRESSIONS  # noqa: F401 - registers quadratic_regression
from benchmarks.machine import describe_machine
from das_gym.files import write_json
from das_gym.tables.suite import Suite, load_suite

LOOKS = (15, 24, 30, 45, 60)
RIVALS = ("heat_kernel", "quadratic_regression", "random")
TRIED: Mapping[str, Sequence[Any]] = {
    "drawn": (3, 4, 9, 12),
    "start": ((1, 0, 1), (3, 2, 1), (2, 1, 0), (2, 1, 2)),
    "nothing": (0.0, 1.25, 5.0),
    "everything": (-2.0, -4.0, -16.0),
    "doubt": (0.0, 0.5, 2.0),
}
"""Other values than those that `Bayes` has."""


def oracles_of(suite: Suite, every: int) -> list[SuiteOracle]:
    """Every so many-th of its problems."""
    return [SuiteOracle(problem, suite.statistics) for problem in suite.problems[::every]]


def named(constants: Mapping[str, Any]) -> str:
    """The name, as an agent, of `bayes` with these constants."""
    if not constants:
        return "bayes"
    told = ", ".join(f"{key}={value}" for key, value in constants.items())
    name = f"tried_{len(AGENTS)}"
    register_agent(name, type("Tried", (Bayes,), {"__doc__": f"`bayes` with {told}.", **constants}))
    return name


def play(oracles: Iterable[SuiteOracle], agent: str, seeds: int) -> list[AgentResult]:
    """What an agent does on each problem."""
    return [compare_agents(oracle, [agent], range(seeds), LOOKS[-1])[0] for oracle in oracles]


def regrets(oracles: Sequence[SuiteOracle], constants: Mapping[str, Any], seeds: int) -> np.ndarray:
    """(problems,) normalised regret, the mean over seeds and `LOOKS`."""
    results = play(oracles, named(constants), seeds)
    at = np.array(LOOKS) - 1
    return np.array([normalised_regrets(o, each)[:, at].mean() for o, each in zip(oracles, results, strict=True)])


def choose(oracles: Sequence[SuiteOracle], models: np.ndarray, seeds: int) -> dict[str, Any]:
    """The constants that are better than those of `Bayes`, by the rule of the module."""
    chosen: dict[str, Any] = {}
    best = regrets(oracles, chosen, seeds)
    print(f"{len(oracles)} problems of train, {len(set(models))} models, {seeds} seeds: bayes as it is {best.mean():.4f}")
    for name, values in TRIED.items():
        print(f"{name} = {getattr(Bayes, name)}")
        found = {value: regrets(oracles, {**chosen, name: value}, seeds) for value in values}
        for value, each in found.items():
            low, high = interval(each - best, models)
            print(f"  {value!s:12} {each.mean():.4f}, {(each - best).mean():+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
        value = min(found, key=lambda v: float(found[v].mean()))
        if interval(found[value] - best, models)[1] < 0:
            chosen[name], best = value, found[value]
            print(f"  takes {value}")
    return chosen


def report(suite: Suite, constants: Mapping[str, Any], seeds: int) -> str:
    """The constants, those of `Bayes` and rivals on all problems of a split, as a Markdown table."""
    oracles = oracles_of(suite, 1)
    agents = dict.fromkeys((named(constants), "bayes", *RIVALS))
    looks = (LOOKS[0], LOOKS[2], LOOKS[-1])
    return summary([aggregate(oracles, play(oracles, agent, seeds), looks) for agent in agents], looks)


def main(arguments: list[str] | None = None) -> None:
    """Choose, report, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bayes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", type=Path, help="folder of a suite; the bundled one otherwise")
    parser.add_argument("--every", type=int, default=2, help="every so many-th problem of train")
    parser.add_argument("--seeds", type=int, default=1, help="on train")
    parser.add_argument("--test-seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    oracles = oracles_of(train := load_suite(options.suite, "train"), options.every)
    models = np.array([problem.source.name for problem in train.problems[:: options.every]])
    chosen = choose(oracles, models, options.seeds)
    print(f"chosen on train: {chosen or 'nothing else than what bayes has'}\n\non test, {options.test_seeds} seeds:\n")
    table = report(load_suite(options.suite, "test"), chosen, options.test_seeds)
    print(table)
    if options.json is not None:
        write_json(options.json, {"machine": describe_machine(), "chosen": chosen, "test": table})


if __name__ == "__main__":
    main()
