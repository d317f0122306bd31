"""Measure the first mask of a policy on unseen problems, compared with simple rules.

    python -m benchmarks.generalise                              the bundled policy on the bundled suite's `test`
    python -m benchmarks.generalise --policy FILE                another policy
    python -m benchmarks.generalise --budgets latency            on those of measured latency

Regret is a share of the possible gain: 0 = the optimum, 1 = skipping in a random order. Intervals are 95 %, of a
bootstrap over models.

Masks are scored only for statistics: n + 1 for `leave_one_out` of n units, twice as many for `leave_one_out_25`, three times
for `leave_one_out_40`. `sum of the effects` is the mask from which the training of a policy starts. `greedy in three rounds`
measures `leave_one_out`, skips the quarter of the units that costs least, measures what each of the others adds, skips up to
two fifths, and measures once more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from das_gym.agents.policy.network import EFFECTS, PolicyEnsemble, bundled_policy, unit_costs
from das_gym.agents.policy.training import suite_masks

from benchmarks.machine import make_parser
from das_gym.drawing.table import markdown_table
from das_gym.intervals import bootstrap_interval
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, MAX_UNITS, Suite, SuiteProblem, load_suite
from das_gym.tables.table import SubnetTable

RULES = ("block_influence_tokens", "block_influence_pooled", "residual_norm", "angular", "leave_one_out")
"""Rules of the field, which skip where a statistic is lowest."""

SUM, ROUNDS = "sum of the effects", "greedy in three rounds"


def regrets(suite: Suite, masks: np.ndarray) -> np.ndarray:
    """Return the (P,) regret of a mask for every problem, as a share of what there is to gain."""
    which = np.arange(len(suite.problems))
    raw = suite.raw[suite.rows(which, masks)]
    return (suite.optima - raw) / (suite.optima - suite.random_means)


def rule_masks(problem: SuiteProblem) -> dict[str, np.ndarray]:
    """Return the masks of all rules, as agents give them: under a budget by cost they keep again what it does not need."""
    table, space = problem.table, MaskSpace(problem.budget)
    found = {name: space.top(-table.statistic(name).astype(float)) for name in RULES}
    costs = unit_costs({name: table.statistic(name) for name in EFFECTS})
    return {**found, SUM: space.masks[(space.masks @ costs).argmin()], ROUNDS: space.top(-removal_order(table))}


def removal_order(table: SubnetTable) -> np.ndarray:
    """Return (n,) float, the lower the earlier a unit is skipped: its round, and what it adds relative to that of others."""
    n, losses = table.n_layers, table.values("loss")
    order, mask = np.zeros(n), np.zeros(n, dtype=bool)
    for until in (round(0.25 * n), round(0.4 * n), n):
        added = losses[table.index(mask | np.eye(n, dtype=bool))]
        first = np.argsort(np.where(mask, -np.inf, added), kind="stable")  # what is skipped already stays first
        order[first[mask.sum() : until]] = np.arange(mask.sum(), until)
        mask[first[:until]] = True
    return order


def measure(split: str, suite: str | None, policy: Path, budgets: Sequence[str]) -> tuple[Suite, dict[str, np.ndarray]]:
    """Return the problems, and (P,) regrets by method."""
    test = load_suite(suite, split, budgets=budgets)
    masks = {name: np.zeros((len(test.problems), MAX_UNITS), bool) for name in (*RULES, SUM, ROUNDS)}
    for row, problem in enumerate(test.problems):
        for name, mask in rule_masks(problem).items():
            masks[name][row, : len(mask)] = mask
    masks["policy"] = suite_masks(PolicyEnsemble.load(policy), test)
    return test, {name: regrets(test, of_rule) for name, of_rule in masks.items()}


def ratio_interval(values: np.ndarray, others: np.ndarray, models: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the ratio of two means over problems, resampling models."""
    sums = np.array([(values[models == name].sum(), others[models == name].sum()) for name in np.unique(models)])

    def ratio(rows: np.ndarray) -> np.ndarray:
        above, below = sums[rows].sum(axis=1).T
        return above / below  # type: ignore[no-any-return]

    return bootstrap_interval(ratio, len(sums))


def table(found: dict[str, np.ndarray], models: np.ndarray, some: np.ndarray) -> list[str]:
    """Return a Markdown table of mean regrets over `some` of the problems, (P,) bool."""
    rows = []
    for name, values in sorted(((name, each[some]) for name, each in found.items()), key=lambda item: item[1].mean()):
        low, high = ratio_interval(values, np.ones(len(values)), models[some])
        share = f"{100 * (values < 1e-9).mean():.0f} %"
        rows.append((name, f"{values.mean():.3f}", f"{low:.3f} to {high:.3f}", f"{np.median(values):.3f}", share))
    return markdown_table(("method", "mean regret", "95 % interval", "median", "optimum found"), rows)


def verdict(found: dict[str, np.ndarray], models: np.ndarray) -> list[str]:
    """Return the ratios of the policy's mean regret to those of the other methods."""
    lines = [f"Ratio of the policy's mean regret to that of other methods, over {len(np.unique(models))} models:"]
    for name, values in found.items():
        if name != "policy":
            low, high = ratio_interval(found["policy"], values, models)
            lines.append(f"- {name}: {found['policy'].mean() / values.mean():.2f} ({low:.2f} to {high:.2f})")
    return lines


def kind_of(problem: SuiteProblem) -> str:
    """Return the origin of a problem's model and its task: `llava-sublayers-answering`."""
    source = problem.source
    made = re.fullmatch(r"(?:train|valid|test)-\d+-(.+)", source.name)
    return made[1] if made else f"bundled {source.model.lower()}-{source.task}"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = make_parser("generalise", __doc__)
    parser.add_argument("--suite", help="folder of a suite; the bundled one by default")
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    parser.add_argument("--budgets", nargs="+", default=DEFAULT_BUDGETS, choices=BUDGET_KINDS)
    parser.add_argument("--policy", type=Path, help="file of a policy; the bundled one by default")
    options = parser.parse_args(arguments)
    policy = options.policy or bundled_policy()
    test, found = measure(options.split, options.suite, policy, options.budgets)
    models = np.array([problem.source.name for problem in test.problems])
    print(f"{len(test.problems)} problems of `{options.split}`\n")
    print("\n".join([*table(found, models, np.ones(len(test.problems), bool)), "", *verdict(found, models)]))
    kinds = np.array([kind_of(problem) for problem in test.problems])
    for kind in np.unique(kinds):
        print("\n".join([f"\n{kind}, {(kinds == kind).sum()} problems:\n", *table(found, models, kinds == kind)]))


if __name__ == "__main__":
    main()
