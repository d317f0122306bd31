"""The problems of the leaderboard: tables of real models, and planted losses with more layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from das_gym.agents.ask_tell.base import make_agent
from das_gym.agents.compare.oracle import Oracle, SuiteOracle, TableOracle

from benchmarks.leaderboard.planted import EVALUATIONS as PLANTED_EVALUATIONS
from benchmarks.leaderboard.planted import PlantedOracle
from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import ASSETS, ENVIRONMENTS
from das_gym.tables.suite import load_suite

BUDGETS = ({"skip_num": 4}, {"macs_saved": 0.12})
MIN_MASKS = 200
"""Fewest masks within the budget of a problem: at most a tenth of them is scored in the evaluations that are compared."""

EVALUATIONS, LONG_EVALUATIONS = 40, 120
VLM = "DAS-VLM-Answering-Tabular-v0"
LONG_TABLES = {
    "smolvlm_mini, 24 sub-layers": (VLM, ASSETS / "smolvlm_mini" / "answering_sublayers_table.npz"),
    "llava_mini, 24 layers": (VLM, ASSETS / "llava_mini" / "answering_table.npz"),
}
"""Tables of 24 units: name to environment and file. Each holds all masks of up to 4 units."""


@dataclass(frozen=True)
class BoardProblem:
    """A problem of the leaderboard.

    Attributes:
        model: Its model: problems of one model are not independent, and count together. Planted ones are models themselves.
        oracle: Scores masks.
        seeds: Seeds of each agent's searches.
        evaluations: Evaluations of each search.
    """

    model: str
    oracle: Oracle
    seeds: Sequence[int]
    evaluations: int


def find_tables() -> dict[str, Path]:
    """Return the bundled table of each tabular environment that has one."""
    return {entry.tabular_id: entry.table for entry in ENVIRONMENTS.values() if entry.table is not None}


def short_problems(seeds: int, suite_folder: str | None = None) -> list[BoardProblem]:
    """Return the problems of up to 12 units: of the bundled tables, and of the suite's `test`; those with many masks."""
    found = []
    for env_id, path in find_tables().items():
        for budget in BUDGETS:
            oracle = TableOracle(env_id, budget, {"table": str(path)})
            found.append(BoardProblem(path.parent.name, oracle, range(seeds), EVALUATIONS))
    suite = load_suite(suite_folder, "test")
    for problem in suite.problems:
        if problem.budget.is_kept_by(problem.table.masks).sum() >= MIN_MASKS:
            source = problem.source  # the bundled models' own tables are in the suite, too
            model = f"{source.model.lower()}_mini" if source.file.startswith("bundled-") else source.name
            found.append(BoardProblem(model, SuiteOracle(problem, suite.statistics), range(seeds), EVALUATIONS))
    return found


def long_problems(seeds: int) -> list[BoardProblem]:
    """Return the problems of 24 units, k = 4, in the order of `LONG_TABLES`."""
    found = []
    for env_id, path in LONG_TABLES.values():
        oracle = TableOracle(env_id, {"skip_num": 4}, {"table": str(path)})
        found.append(BoardProblem(path.parent.name, oracle, range(seeds), LONG_EVALUATIONS))
    return found


def planted_problem(n_layers: int, seed: int) -> BoardProblem:
    """Return a planted problem, which agents search once with its own seed."""
    return BoardProblem(f"planted {seed}", PlantedOracle(n_layers, seed), [seed], PLANTED_EVALUATIONS[n_layers])


def without_statistics(agents: Sequence[str], n_layers: int) -> list[str]:
    """Return the ask/tell agents that read no layer statistics: planted problems have none."""
    found = []
    for name in agents:
        try:
            if not make_agent(name, MaskSpace(Budget(n_layers, n_layers // 3))).statistics_read:
                found.append(name)
        except ValueError:  # it needs a statistic at once
            continue
    return found
