"""How additive and how rugged the problems of the suite are.

    python -m benchmarks.landscape                       the bundled suite
    python -m benchmarks.landscape FOLDER                a suite of your own

R2 is the fit of a linear model of the masks to the rewards of all feasible masks: at 1, the best single units form the best
mask. The autocorrelation is that of a mask and a random neighbour: the lower, the more rugged. Local optima are masks
without a better neighbour. Medians are over the problems of a split.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.suite import SUITE_SPLITS, load_suite

RUGGED = 0.8
"""Problems with a lower R2 are counted."""


@dataclass(frozen=True)
class Landscape:
    """Properties of a problem.

    Attributes:
        masks: Number of feasible masks.
        additivity: R2 of a linear fit of the values on the masks, 0..1.
        autocorrelation: Correlation of the values of neighbours, -1..1; NaN if all are equal.
        optima: Number of local optima.
    """

    masks: int
    additivity: float
    autocorrelation: float
    optima: int


def additivity(masks: np.ndarray, values: np.ndarray) -> float:
    """Return R2 of the least-squares fit of (m,) values on (m, n) masks and a constant; 1 if all values are equal."""
    spread = float(((values - values.mean()) ** 2).sum())
    columns = np.concatenate((masks, np.ones((len(masks), 1))), axis=1)
    fitted = columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
    return 1.0 if spread == 0 else 1.0 - float(((values - fitted) ** 2).sum()) / spread


def landscape(masks: np.ndarray, values: np.ndarray, budget: Budget) -> Landscape:
    """Measure a problem.

    Neighbours of a mask skip another unit instead of one of its units; under a budget by cost also one unit more or less.
    There, only masks count whose units are all needed to stay within the budget.

    Args:
        masks: (2^n, n) bool, where row `sum(mask[i] << i)` is that mask.
        values: (2^n,) rewards.
        budget: Constraint on the masks.
    """
    space, bits = MaskSpace(budget), 1 << np.arange(masks.shape[1], dtype=np.int64)
    feasible = budget.is_kept_by(masks)
    rows = np.flatnonzero(feasible)
    if budget.skip_num is None:
        rows = np.array([row for row in rows if not feasible[row - bits[masks[row]]].any()])
    members = np.zeros(len(masks), bool)
    members[rows] = True
    first, second, optima = [], [], 0
    for row in rows:
        near = space.neighbours(masks[row]) @ bits
        near = near[members[near]]
        first.append(np.full(len(near), values[row]))
        second.append(values[near])
        optima += bool((values[near] <= values[row]).all())
    one, other = np.concatenate(first), np.concatenate(second)
    correlation = float("nan") if len(one) == 0 or np.ptp(one) == 0 else float(np.corrcoef(one, other)[0, 1])
    return Landscape(len(rows), additivity(masks[rows], values[rows]), correlation, optima)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each split."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.landscape", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", nargs="?", metavar="FOLDER", help="folder of a suite; the bundled one by default")
    folder = parser.parse_args(arguments).suite
    print(f"{'split':<8}{'models':>7}{'problems':>9}{'median R2':>11}{f'R2 < {RUGGED}':>10}{'autocorr.':>11}{'optima':>8}")
    for split in SUITE_SPLITS:
        problems = load_suite(folder, split).problems
        found = [landscape(p.table.masks, p.rewards, p.budget) for p in problems]
        fits = np.array([each.additivity for each in found])
        correlation, optima = np.nanmedian([e.autocorrelation for e in found]), np.median([e.optima for e in found])
        models = len({p.source.name for p in problems})
        rugged = f"{100 * np.mean(fits < RUGGED):.0f} %"
        print(
            f"{split:<8}{models:>7}{len(problems):>9}{np.median(fits):>11.2f}{rugged:>10}{correlation:>11.2f}{optima:>8.0f}"
        )


if __name__ == "__main__":
    main()
