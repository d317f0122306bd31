"""What a landscape of masks is like: whether a sum over units explains it, how rugged it is, how many hills it has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace


@dataclass(frozen=True)
class Landscape:
    """What a landscape is like.

    Attributes:
        masks: How many keep the budget.
        additivity: R2 of a linear fit of the values on the masks, 0..1; 1 = the best units one by one are the best mask.
        autocorrelation: Of the values of a mask and of a random neighbour of it, -1..1; the lower the more rugged. NaN where
            no two differ, or one mask alone keeps the budget.
        optima: Masks that no neighbour is better than.
    """

    masks: int
    additivity: float
    autocorrelation: float
    optima: int


def additivity(masks: np.ndarray, values: np.ndarray) -> float:
    """R2 of the least-squares fit of (m,) values on (m, n) masks and a constant; 1 where the values do not differ."""
    spread = float(((values - values.mean()) ** 2).sum())
    columns = np.concatenate((masks, np.ones((len(masks), 1))), axis=1)
    fitted = columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
    return 1.0 if spread == 0 else 1.0 - float(((values - fitted) ** 2).sum()) / spread


def landscape(masks: np.ndarray, values: np.ndarray, budget: Budget) -> Landscape:
    """Measure it, exactly.

    Neighbours of a mask skip another unit instead of one of its own; by cost also one unit more or less. Under a budget by
    cost only masks count of which no unit can be kept again.

    Args:
        masks: (2^n, n) bool, row `sum(mask[i] << i)` is that mask.
        values: (2^n,) finite, the larger the better.
        budget: What masks must satisfy.
    """
    space, bits = MaskSpace(budget), 1 << np.arange(masks.shape[1], dtype=np.int64)
    rows = np.flatnonzero(budget.is_kept_by(masks))
    if budget.skip_num is None:
        kept = budget.is_kept_by(masks)
        spare = [(kept[row - bits[masks[row]]]).any() for row in rows]
        rows = rows[~np.array(spare, bool)]
    ones, others, optima = [], [], 0
    members = np.zeros(len(masks), bool)
    members[rows] = True
    for row in rows:
        near = space.neighbours(masks[row]) @ bits
        near = near[members[near]]
        ones.append(np.full(len(near), values[row]))
        others.append(values[near])
        optima += bool((values[near] <= values[row]).all())
    one, other = np.concatenate(ones), np.concatenate(others)
    together = float("nan") if len(one) == 0 or np.ptp(one) == 0 else float(np.corrcoef(one, other)[0, 1])
    return Landscape(len(rows), additivity(masks[rows], values[rows]), together, optima)
