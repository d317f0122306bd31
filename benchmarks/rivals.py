"""Methods of choosing layers on every bundled table, before recovery, at the same budgets: what their answers lose.

    python -m benchmarks.rivals                              7 tables and sublayers, 20 seeds, 120 evaluations
    python -m benchmarks.rivals --seeds 3 --tables vilt_nlvr2 --json rivals.json --markdown rivals.md

Regret is the loss of the answer less that of the best mask within the budget, in nats: on the reward split, which methods
see, and on the test split, which none sees. Methods that draw are run once a seed. `evopress` scores every mask on all
examples here, since a table has no fewer, eight offspring a generation; on a model it begins on a sixteenth of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.compare.oracle import TableOracle
from das_gym.agents.compare.traces import trace_agent

from benchmarks.leaderboard.board import find_tables
from benchmarks.machine import describe_machine
from das_gym.drawing.markdown import markdown_table
from das_gym.files import write_json, write_text
from das_gym.registration import ASSETS, ENVIRONMENTS

METHODS = ("bayes", "random", "uniform", "block_influence", "angular", "interlace", "leave_one_out", "sleb", "evopress")
OURS = "bayes"
BUDGETS: tuple[Mapping[str, Any], ...] = ({"skip_num": 4}, {"macs_saved": 0.2})
SUBLAYERS = "vlm_answering, sublayers"
TIE = 1e-6
MASKS_PER_TURN = 3


def tables() -> dict[str, tuple[str, Path]]:
    """Name of every bundled table to the id of its environment and its path."""
    shorts = {entry.tabular_id: entry.short for entry in ENVIRONMENTS.values()}
    found = {shorts[env_id]: (env_id, path) for env_id, path in find_tables(None).items()}
    halves = ASSETS / "smolvlm_mini" / "answering_sublayers_table.npz"
    return {**found, SUBLAYERS: ("DAS-VLM-Answering-Tabular-v0", halves)}


def budgets_of(name: str) -> tuple[Mapping[str, Any], ...]:
    """Those of a table: the table of sublayers ends at 4 skipped."""
    return BUDGETS[:1] if name == SUBLAYERS else BUDGETS


def measure(oracle: TableOracle, method: str, seeds: int, evaluations: int) -> dict[str, Any]:
    """Regrets in loss on both splits, one a seed, evaluations used, and seconds a search."""
    started = time.perf_counter()
    trace = trace_agent(oracle, method, range(seeds), evaluations, MASKS_PER_TURN, {})
    seconds = (time.perf_counter() - started) / (seeds if agent_class(method).draws else 1)
    rows = oracle.table.index(trace.answers)
    within = oracle.space.contains(oracle.table.masks)
    regrets = {}
    for split in ("reward", "test"):
        losses = oracle.table.values("loss", split)
        regrets[split] = (losses[rows] - losses[within].min()).tolist()
    return {"regret": regrets, "evaluations": trace.evaluations.tolist(), "seconds": seconds}


def cells(result: Mapping[str, Any]) -> list[str]:
    """Mean regrets of both splits with the worst seed's behind, evaluations, seconds."""
    shown = []
    for split in ("reward", "test"):
        values = result["regret"][split]
        mean, worst = float(np.mean(values)), float(np.max(values))
        shown.append(f"{mean:.4f}" if worst - min(values) < TIE else f"{mean:.4f} ({worst:.4f})")
    return [*shown, f"{np.mean(result['evaluations']):.0f}", f"{result['seconds']:.2f}"]


def verdict(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether ours has the least mean regret on the reward split, alone or with others."""
    means = {method: float(np.mean(result["regret"]["reward"])) for method, result in results.items()}
    if OURS not in means:
        return f"{OURS} was not run"
    better = [name for name, mean in means.items() if mean < means[OURS] - TIE]
    level = [name for name, mean in means.items() if name != OURS and abs(mean - means[OURS]) <= TIE]
    if better:
        return f"not ahead: {', '.join(better)}"
    return f"level with {', '.join(level)}, ahead of the others" if level else "ahead of all"


def section(title: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of Markdown."""
    heads = ("method", "regret, reward split", "regret, test split", "evaluations", "seconds")
    order = sorted(results, key=lambda method: float(np.mean(results[method]["regret"]["reward"])))
    table = markdown_table(heads, ((method, *cells(results[method])) for method in order))
    return "\n".join([f"### {title}", "", *table, "", f"`{OURS}`: {verdict(results)}.", ""])


def overview(tables: Mapping[str, Mapping[str, Mapping[str, Any]]], split: str) -> str:
    """Mean regrets on one split, a row a table and a column a method, as Markdown."""
    methods = list(next(iter(tables.values())))
    heads, rows = (f"regret, {split} split, nats", *methods), []
    for title, results in tables.items():
        rows.append((title, *(f"{np.mean(results[method]['regret'][split]):.4f}" for method in methods)))
    return "\n".join([*markdown_table(heads, rows, words=range(len(heads))), ""])


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, and write JSON and Markdown if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = tables()
    parser.add_argument("--tables", nargs="+", choices=known, default=list(known))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=120)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {"machine": describe_machine(), "seeds": options.seeds, "evaluations": options.evaluations}
    record["tables"] = {}
    for name in options.tables:
        env_id, path = known[name]
        for budget in budgets_of(name):
            oracle = TableOracle(env_id, budget, {"table": str(path)})
            found = {method: measure(oracle, method, options.seeds, options.evaluations) for method in options.methods}
            title = f"{name}, {oracle.space.budget.describe()}"
            record["tables"][title] = found
            print(section(title, found), flush=True)
    if options.json is not None:
        write_json(options.json, record)
    if options.markdown is not None:
        both = [overview(record["tables"], split) for split in ("reward", "test")]
        ours = [f"- {title}: {verdict(results)}" for title, results in record["tables"].items()]
        write_text(options.markdown, "\n".join([*both, f"`{OURS}` before recovery, on the reward split:", "", *ours, ""]))


if __name__ == "__main__":
    main()
