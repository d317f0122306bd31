"""Measure the share of the true front that one search finds, against random search and `bayes` at several budgets.

    python -m benchmarks.pareto                                      every bundled table, 5 seeds, 400 evaluations
    python -m benchmarks.pareto --seeds 2 --tables vilt_nlvr2

The share found is the hypervolume of all masks scored, divided by that of all masks of the table. The area is measured from
the point (share of MACs saved, loss) of which the first is what nothing skipped saves, and the second the loss of the mask
that saves most; every search knows both after two evaluations, and every rival is given these two masks as well. `bayes` at
several budgets spreads the same evaluations evenly over budgets that are spread evenly from saving nothing to saving all
that can be; whatever it scored on the way counts. Random search draws the number of layers first, then the layers.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import make_agent
from das_gym.agents.ask_tell.front import STARTUP_MASKS, FrontSearch

from benchmarks.harness import make_parser
from benchmarks.search.problems import find_tables
from das_gym.problem.budget import Budget, Masks
from das_gym.problem.mask_space import MaskSpace, front_rows, hypervolume, reference_point
from das_gym.registration import ENVIRONMENTS
from das_gym.tables.table import SubnetTable

Method = Callable[[SubnetTable, int, int], Masks]
"""(evaluations, n_layers) masks that it scores, in order, of a table, a number of evaluations and a seed."""

TURN = 8


def make_search(table: SubnetTable, seed: int) -> FrontSearch:
    """Return a search of the front of loss and MACs."""
    return FrontSearch(MaskSpace(Budget(table.n_layers, saved=0.0, cost=table.layer_macs)), seed)


def ours(table: SubnetTable, evaluations: int, seed: int) -> Masks:
    """`python -m agents pareto`'s search."""
    search = make_search(table, seed)
    losses = table.values("loss", "reward")
    while len(search.rewards) < evaluations:
        masks = search.ask(min(TURN, evaluations - len(search.rewards)))
        search.tell(masks, -losses[table.index(masks)])
    return search.scored_masks()


def randomly(table: SubnetTable, evaluations: int, seed: int) -> Masks:
    """Random masks of random numbers of layers, none twice, and the two ends."""
    search = make_search(table, seed)
    while len(search.rewards) < evaluations:
        masks = search.random_masks(evaluations - len(search.rewards))
        search.tell(masks, np.zeros(len(masks)))
    return search.scored_masks()


def at_budgets(count: int, table: SubnetTable, evaluations: int, seed: int) -> Masks:
    """`bayes` at several budgets by cost, one after another, after the two ends."""
    search = make_search(table, seed)
    rewards = table.values("exp_neg_loss", "reward")
    asked = list(search.ends)
    shares = np.linspace(0.0, table.layer_macs.range[1], count + 1)[:-1]
    for number, share in enumerate(shares):
        space = MaskSpace(Budget(table.n_layers, saved=float(share), cost=table.layer_macs))
        agent = make_agent("bayes", space, seed * 1000 + number)
        left = (evaluations - len(asked)) // (count - number)
        while left > 0 and len(masks := agent.ask(min(TURN, left))):
            agent.tell(masks, rewards[table.index(masks)])
            asked += list(masks)
            left -= len(masks)
    return np.array(asked, dtype=bool)


METHODS: dict[str, Method] = {
    "pareto": ours,
    "random": randomly,
    "bayes at 5 budgets": partial(at_budgets, 5),
    "bayes at 10 budgets": partial(at_budgets, 10),
}


def measure(table: SubnetTable, method: Method, seed: int, marks: list[int]) -> dict[str, Any]:
    """Return shares of the true hypervolume after `evaluations`, share of the true front's losses found, seconds."""
    saved = table.layer_macs.saved(table.masks)
    losses = table.values("loss", "reward")
    reference = reference_point(saved, losses)
    whole = hypervolume(saved, losses, reference)
    started = time.perf_counter()
    rows = table.index(method(table, marks[-1], seed))
    seconds = time.perf_counter() - started
    shares = [hypervolume(saved[rows[:mark]], losses[rows[:mark]], reference) / whole for mark in marks]
    front = front_rows(saved, losses)
    best = [losses[rows][saved[rows] >= saved[row]].min(initial=np.inf) for row in front]
    return {"shares": shares, "found": float(np.mean(np.array(best) <= losses[front])), "seconds": seconds}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("pareto", __doc__)
    shorts = {entry.tabular_id: entry.short for entry in ENVIRONMENTS.values()}
    tables = {shorts[env_id]: path for env_id, path in find_tables().items()}
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=400)
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.evaluations < STARTUP_MASKS:
        parser.error(f"--seeds from 1 on, --evaluations from {STARTUP_MASKS} on")
    marks = sorted({max(2, options.evaluations * part // 4) for part in (1, 2, 4)})
    print(f"% of the true front's hypervolume after {', '.join(map(str, marks))} evaluations: mean of {options.seeds} seeds")
    print("(worst seed); % of the front's points whose loss was reached; seconds a search", flush=True)
    for name in options.tables:
        table = SubnetTable.load(tables[name])
        for method, masks_of in METHODS.items():
            runs = [measure(table, masks_of, seed, marks) for seed in range(options.seeds)]
            shares = 100 * np.array([run["shares"] for run in runs])
            ends = zip(shares.mean(axis=0), shares.min(axis=0), strict=True)
            cells = " ".join(f"{mean:6.2f} ({worst:6.2f})" for mean, worst in ends)
            found, seconds = (np.mean([run[key] for run in runs]) for key in ("found", "seconds"))
            print(f"{name:<16}{method:<20}{cells}  {100 * found:4.0f} % {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
