"""Problems on which search agents are compared: tables of real models, deeper masks of LLaVA-mini, and planted losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.comparing.oracle import LiveOracle, Oracle, TableOracle

from benchmarks.search.planted import EVALUATIONS as PLANTED_EVALUATIONS
from benchmarks.search.planted import PlantedOracle
from das_gym.problem.budget import Floats, Masks
from das_gym.registration import ASSETS, ENVIRONMENTS
from das_gym.tables.table import SubnetTable

BUDGETS = ({"skip_num": 4}, {"macs_saved": 0.12})
MIN_MASKS = 200
"""Fewest masks within the budget of a problem: at most a tenth of them is scored in the evaluations that are compared."""

TABLES = Path(__file__).parents[1] / "tables"
"""Further tables that are searched, see `benchmarks.tables.make`."""

COUNT_SHARES = (0.25, 0.4, 0.5, 0.6)
"""Budgets by count of these tables: these shares of the units, rounded."""

SAVED_SHARES = (0.25, 0.5)
"""Their budgets by MACs: these shares of what skipping everything saves."""

EVALUATIONS, LONG_EVALUATIONS = 40, 120
LONG_TABLES = {
    "smolvlm_mini, 24 sub-layers, 4 skipped": (
        "DAS-VLM-Answering-Tabular-v0",
        "smolvlm_mini/answering_sublayers_table.npz",
        4,
    ),
    "llava_mini, 24 layers, 4 skipped": ("DAS-LLaVA-Answering-Tabular-v0", "llava_mini/answering_table.npz", 4),
    "SmolLM2-135M, 30 layers, 3 skipped": ("DAS-SmolLM2-Text-Tabular-v0", "smollm2/text_table.npz", 3),
    "SmolVLM-135M, 30 layers, 3 skipped": (
        "DAS-SmolVLM135M-Answering-Tabular-v0",
        "smolvlm135m/answering_table.npz",
        3,
    ),
}
"""Environment, file and number of skipped units of tables that hold all masks of at most this number of units."""

PLANTED_SEEDS = range(1000, 1030)
"""Seeds of planted problems; the constants of `bayes` were chosen on seeds 0 to 29."""

LIVE_SEEDS = range(700, 710)
LIVE_RANDOM_MASKS = 50
LIVE = {"llava-6": ("layers", 6, 129), "llava-sublayers-12": ("sublayers", 12, 240)}
"""Units of LLaVA-mini, how many are skipped, and evaluations: of 24 layers, as many as greedy removal uses."""


@dataclass(frozen=True)
class SearchProblem:
    """A problem that agents search.

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


class LlavaOracle(LiveOracle):
    """LLaVA-mini with more units skipped than in its table, scored by the engine on the table's 96 examples.

    Args:
        units: `layers`, 24, or `sublayers`, 48.
        skip_num: How many of them are skipped.
    """

    def __init__(self, units: str, skip_num: int) -> None:
        settings = {"checkpoint": "llava_mini", "units": units, "reward_examples": 96, "statistics": ("depth",)}
        super().__init__("DAS-VLM-Answering-v0", {"skip_num": skip_num}, settings)
        rng = np.random.default_rng(skip_num)
        masks = np.array([self.space.sample(rng) for _ in range(LIVE_RANDOM_MASKS)])
        self.random_reward = float(self.rewards(masks).mean())

    def test_metrics(self, masks: Masks) -> Floats:
        """Return NaN: searches are compared by their rewards, and the test split would take longer than they do."""
        return np.full(len(masks), np.nan)


def find_tables() -> dict[str, Path]:
    """Return the bundled table of each tabular environment that has one."""
    return {entry.tabular_id: entry.table for entry in ENVIRONMENTS.values() if entry.table is not None}


def short_problems(seeds: int) -> list[SearchProblem]:
    """Return the problems of up to 12 units: the bundled tables, and those of `TABLES` by group of examples.

    Args:
        seeds: How many seeds each agent searches with.
    """
    found = []
    for env_id, path in find_tables().items():
        for budget in BUDGETS:
            oracle = TableOracle(env_id, budget, {"table": str(path)})
            found.append(SearchProblem(path.parent.name, oracle, range(seeds), EVALUATIONS))
    for path in sorted(TABLES.glob("*.npz")):
        table = SubnetTable.load(path)
        entry = ENVIRONMENTS[table.meta.env_id]
        model = f"{entry.model.lower()}_mini" if path.stem.startswith("bundled-") else path.stem
        for budget in table_budgets(table):
            for group in (None, *table.separate_groups):
                oracle = TableOracle(entry.tabular_id, budget, {"table": str(path), "group": group})
                if oracle.space.size >= MIN_MASKS:
                    found.append(SearchProblem(model, oracle, range(seeds), EVALUATIONS))
    return found


def table_budgets(table: SubnetTable) -> list[dict[str, Any]]:
    """Return the budgets under which a table of `TABLES` is searched."""
    counts = sorted({round(share * table.n_layers) for share in COUNT_SHARES})
    most = table.layer_macs.range[1]
    # Rounded down: the budget stays short, and the saving within reach.
    shares = [math.floor(1000 * share * most) / 1000 for share in SAVED_SHARES]
    return [*({"skip_num": count} for count in counts), *({"macs_saved": share} for share in shares)]


def long_problems(seeds: Sequence[int]) -> list[SearchProblem]:
    """Return the problems of 24 and 30 units, in the order of `LONG_TABLES`."""
    found = []
    for env_id, file, skip_num in LONG_TABLES.values():
        path = ASSETS / file
        oracle = TableOracle(env_id, {"skip_num": skip_num}, {"table": str(path)})
        found.append(SearchProblem(path.parent.name, oracle, seeds, LONG_EVALUATIONS))
    return found


def planted_problem(family: str, n_layers: int, seed: int) -> SearchProblem:
    """Return a planted problem, which agents search once with its own seed."""
    oracle = PlantedOracle(family, n_layers, seed)
    return SearchProblem(oracle.env_id, oracle, [seed], PLANTED_EVALUATIONS[n_layers])


def live_problems(name: str, count: int | None = None) -> list[SearchProblem]:
    """Return a problem of `LIVE` with each of the first `count` seeds, all by default; they share one oracle."""
    units, skip_num, evaluations = LIVE[name]
    oracle = LlavaOracle(units, skip_num)
    return [SearchProblem("llava_mini", oracle, [seed], evaluations) for seed in LIVE_SEEDS[:count]]
