"""How many evaluations the default search needs: regret on every bundled table, by number of evaluations.

    python -m benchmarks.evaluations                        7 tables, 20 seeds, 80 and 240 evaluations
    python -m benchmarks.evaluations --seeds 3 --tables meter_vqa --json evaluations.json

Regret is the loss of the answer less that of the best mask within the budget, on the reward split, in nats.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.compare.comparison import run_agent
from das_gym.agents.compare.oracle import TableOracle
from das_gym.agents.searching.config import SearchConfig

from benchmarks.machine import describe_machine
from benchmarks.search.problems import find_tables
from das_gym.drawing.table import markdown_table
from das_gym.files import write_json
from das_gym.registration import ASSETS, ENVIRONMENTS

BUDGETS = ({"skip_num": 4}, {"macs_saved": 0.2})
SUBLAYERS = "vlm_answering, sublayers"
MASKS_PER_TURN = 3
TIE = 1e-6
"""A regret below this is the best mask: sums of float32 losses differ by rounding."""


def tables() -> dict[str, tuple[str, Path]]:
    """Return the environment id and the path of every bundled table, by name."""
    shorts = {entry.tabular_id: entry.short for entry in ENVIRONMENTS.values()}
    found = {shorts[env_id]: (env_id, path) for env_id, path in find_tables().items()}
    sublayers = ASSETS / "smolvlm_mini" / "answering_sublayers_table.npz"
    return {**found, SUBLAYERS: ("DAS-VLM-Answering-Tabular-v0", sublayers)}


def regrets_of(oracle: TableOracle, agent: str, seeds: int, evaluations: int) -> list[float]:
    """Return the regret of the answer of each seed."""
    result = run_agent(oracle, agent, range(seeds), evaluations, MASKS_PER_TURN, {})
    losses = oracle.table.values("loss", "reward")
    best = losses[oracle.space.contains(oracle.table.masks)].min()
    return (losses[oracle.table.index(result.answers)] - best).tolist()


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known, agent = tables(), SearchConfig(env_id="").agent
    parser.add_argument("--tables", nargs="+", choices=known, default=list(known))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[80, 240])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    heads = ("table", "budget", "evaluations", "median regret", "mean", "worst", "seeds at the optimum")
    rows: list[tuple[str, ...]] = []
    record: dict[str, Any] = {"machine": describe_machine(), "agent": agent, "seeds": options.seeds, "regrets": []}
    for name in options.tables:
        env_id, path = known[name]
        for budget in BUDGETS[:1] if name == SUBLAYERS else BUDGETS:  # its table ends at 4 skipped
            oracle = TableOracle(env_id, budget, {"table": str(path)})
            for evaluations in options.evaluations:
                regrets = regrets_of(oracle, agent, options.seeds, evaluations)
                record["regrets"].append({"table": name, "budget": budget, "evaluations": evaluations, "regrets": regrets})
                numbers = (f"{value:.4f}" for value in (np.median(regrets), np.mean(regrets), np.max(regrets)))
                optimal = f"{sum(regret < TIE for regret in regrets)} of {options.seeds}"
                rows.append((name, oracle.space.budget.describe(), str(evaluations), *numbers, optimal))
                print(*rows[-1], sep="  ", flush=True)
    print("\n".join(["", *markdown_table(heads, rows, text_columns=(0, 1))]))
    if options.json is not None:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
