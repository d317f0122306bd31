"""Measure rules that choose a mask from layer statistics, on the problems of a suite.

    python -m benchmarks.generalise                              the bundled suite's `test`
    python -m benchmarks.generalise --budgets latency            on those of measured latency

Regret is a share of the possible gain: 0 = the optimum, 1 = skipping in a random order. Intervals are 95 %, of a
bootstrap over models. Only `leave_one_out` scores masks: n + 1 for n units.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from benchmarks.machine import make_parser
from das_gym.drawing.table import markdown_table
from das_gym.intervals import bootstrap_interval
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, MAX_UNITS, Suite, SuiteProblem, load_suite

RULES = ("block_influence_tokens", "block_influence_pooled", "residual_norm", "angular", "leave_one_out")
"""Rules of the field, which skip where a statistic is lowest."""


def regrets(suite: Suite, masks: np.ndarray) -> np.ndarray:
    """Return the (P,) regret of a mask for every problem, as a share of what there is to gain."""
    which = np.arange(len(suite.problems))
    raw = suite.raw[suite.rows(which, masks)]
    return (suite.optima - raw) / (suite.optima - suite.random_means)


def rule_masks(problem: SuiteProblem) -> dict[str, np.ndarray]:
    """Return the masks of all rules, as agents give them: under a budget by cost they keep again what it does not need."""
    table, space = problem.table, MaskSpace(problem.budget)
    return {name: space.top(-table.statistic(name).astype(float)) for name in RULES}


def measure(split: str, suite: str | None, budgets: Sequence[str]) -> tuple[Suite, dict[str, np.ndarray]]:
    """Return the problems, and (P,) regrets by method."""
    test = load_suite(suite, split, budgets=budgets)
    masks = {name: np.zeros((len(test.problems), MAX_UNITS), bool) for name in RULES}
    for row, problem in enumerate(test.problems):
        for name, mask in rule_masks(problem).items():
            masks[name][row, : len(mask)] = mask
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
    options = parser.parse_args(arguments)
    test, found = measure(options.split, options.suite, options.budgets)
    models = np.array([problem.source.name for problem in test.problems])
    print(f"{len(test.problems)} problems of `{options.split}`\n")
    print("\n".join(table(found, models, np.ones(len(test.problems), bool))))
    kinds = np.array([kind_of(problem) for problem in test.problems])
    for kind in np.unique(kinds):
        print("\n".join([f"\n{kind}, {(kinds == kind).sum()} problems:\n", *table(found, models, kinds == kind)]))


if __name__ == "__main__":
    main()
