"""Compare search agents on planted losses and on tables of real models.

    python -m benchmarks.search --out FILE                              every suite; hours on one core
    python -m benchmarks.search --out FILE --suites nk-24 tables-24     some suites
    python -m benchmarks.search --out FILE --agents bayes local_search --seeds 10
    python -m benchmarks.search --out FILE --train --seeds 10           the problems on which constants are tuned

FILE gets a JSON line for each search. A stopped command continues where it was. The report covers the selected suites.

  tables-24              the two bundled tables of 24 units, 4 skipped, 120 evaluations
  tables-12              the seven bundled tables of 12 units, 4 skipped, 120 evaluations
  greedy-12              the same with 3 to 7 skipped, and as many evaluations as greedy removal uses
  nk-24, pairs-36, ...   planted losses of a family and a number of layers, a third skipped; each seed is a problem

Regret is a share of the possible gain: 0 = the best known mask, 1 = the mean of random masks. Masks outside the budget count
as evaluations. A run is distinct if no other search of its problem scored the same losses in the same order.

Train and test: the constants of `bayes` were chosen on `TRAIN_SEEDS`, and nothing was chosen on `TEST_SEEDS`. Planted
families are the same in both, their problems are not. Tables are the same landscapes in both, only the searches differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents import make_agent

from benchmarks.search.problems import (
    FAMILIES,
    GREEDY_COUNTS,
    TABLES_12,
    TABLES_24,
    Problem,
    greedy_evaluations,
    planted,
    tabulated,
)
from benchmarks.search.rivals import register_rivals
from das_gym.drawing.table import markdown_table
from das_gym.intervals import mean_bootstrap_interval

MASKS_PER_TURN = 3
AGENTS = ("bayes", "heat_kernel", "quadratic_regression", "local_search", "greedy", "random")
SIZES = (24, 36, 72)

TRAIN_SEEDS = {"tables-24": range(400, 440), "tables-12": range(5), "greedy-12": range(3), "planted": range(30)}
TEST_SEEDS = {"tables-24": range(700, 760), "tables-12": range(700, 710), "greedy-12": range(700, 705)}
TEST_SEEDS["planted"] = range(1000, 1030)

Record = dict[str, Any]
Key = tuple[str, str, int, str]


def suite_problems(suite: str, seeds: Sequence[int]) -> Iterator[tuple[Problem, int]]:
    """Yield each problem of a suite with the seed of the agent."""
    if suite == "greedy-12":
        for name in TABLES_12:
            for k in GREEDY_COUNTS:
                yield from ((tabulated(name, k, greedy_evaluations(12, k)), seed) for seed in seeds)
    elif suite in TEST_SEEDS:
        for name in TABLES_24 if suite == "tables-24" else TABLES_12:
            yield from ((tabulated(name, 4), seed) for seed in seeds)
    else:
        family, n = suite.split("-")
        yield from ((planted(family, int(n), seed), seed) for seed in seeds)


def search(agent_name: str, problem: Problem, seed: int) -> Record:
    """Run one search, and return its results."""
    agent = make_agent(agent_name, problem.space, seed)
    losses: list[float] = []
    times: list[float] = []
    while len(losses) < problem.evaluations:
        start = time.process_time()
        masks = agent.ask(min(MASKS_PER_TURN, problem.evaluations - len(losses)))
        times.append(time.process_time() - start)
        if len(masks) == 0:
            break
        found = problem.losses(masks)
        agent.tell(masks, np.exp(-found / 2))
        losses += np.where(problem.space.contains(masks), found, np.inf).tolist()
    answer = float(problem.losses(agent.best()[None])[0])  # greedy removal completes its mask if it is stopped early
    hits = np.flatnonzero(np.array(losses) <= problem.best + 1e-9)
    return {
        "regret": (min(answer, *losses) - problem.best) / (problem.random - problem.best),
        "found": int(hits[0]) + 1 if len(hits) else None,
        "run": hashlib.sha256(np.array(losses).tobytes()).hexdigest()[:12],
        "milliseconds": 1e3 * float(np.median(times)),
    }


def read_records(path: Path) -> dict[Key, Record]:
    """Read the searches in a file that `run` wrote."""
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(each["suite"], each["problem"], each["seed"], each["agent"]): each for each in records}


def run(path: Path, suite: str, agents: Sequence[str], seeds: Sequence[int]) -> dict[str, list[Record]]:
    """Run the searches of a suite that a file lacks; return all of them by agent, in the same order of problems."""
    known = read_records(path)
    results: dict[str, list[Record]] = {agent: [] for agent in agents}
    with path.open("a") as file:
        for problem, seed in suite_problems(suite, seeds):
            for agent in agents:
                key = (suite, problem.name, seed, agent)
                if key not in known:
                    names = {"suite": suite, "problem": problem.name, "seed": seed, "agent": agent}
                    known[key] = names | search(agent, problem, seed)
                    file.write(json.dumps(known[key]) + "\n")
                    file.flush()
                results[agent].append(known[key])
    return results


def report(results: dict[str, list[Record]]) -> list[str]:
    """Return a Markdown table of a suite: a line for each agent, and its difference from the first agent."""
    rows = []
    first = np.array([record["regret"] for record in next(iter(results.values()))])
    for agent, records in results.items():
        regrets = np.array([record["regret"] for record in records])
        interval, difference = (with_interval(values) for values in (regrets, regrets - first))
        needed = np.array([record["found"] or np.inf for record in records])
        worse = f"{(regrets > first + 1e-9).sum()} / {(regrets < first - 1e-9).sum()}"
        distinct = len({(record["problem"], record["run"]) for record in records})
        found = f"{np.isfinite(needed).sum()} of {len(records)}"
        median = float(np.median(needed))
        pace = f"{np.median([record['milliseconds'] for record in records]):.1f}"
        needed_text = f"{median:.0f}" if np.isfinite(median) else "-"
        rows.append((agent, str(distinct), interval, difference, worse, found, needed_text, pace))
    head = ("agent", "distinct", "mean regret", "minus the first", "worse / better", "optimum", "median", "ms a turn")
    return markdown_table(head, rows)


def with_interval(values: np.ndarray) -> str:
    """Return the mean with its 95 % bootstrap interval over problems."""
    low, high = mean_bootstrap_interval(values)
    return f"{values.mean():.4f} [{low:.4f}, {high:.4f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what FILE lacks, and print a table for each suite."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    planted_suites = [f"{family}-{n}" for n in SIZES for family in FAMILIES]
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--suites", nargs="+", default=["tables-24", "tables-12", "greedy-12", *planted_suites])
    parser.add_argument("--agents", nargs="+", default=AGENTS, help="the others are compared with the first")
    parser.add_argument("--seeds", type=int, help="number of seeds of each suite; all by default")
    parser.add_argument("--train", action="store_true", help="take the training seeds")
    given = parser.parse_args(arguments)
    register_rivals()
    split = TRAIN_SEEDS if given.train else TEST_SEEDS
    for suite in given.suites:
        seeds = split.get(suite, split["planted"])
        results = run(given.out, suite, given.agents, seeds[: given.seeds])
        print(f"\n{suite}\n", *report(results), sep="\n", flush=True)


if __name__ == "__main__":
    main()
