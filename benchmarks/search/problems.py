"""Problems of 12 to 72 units on which search agents are compared: planted losses and tables of real models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from das_gym.agents import Budget, MaskSpace

from benchmarks.leaderboard.planted import EVALUATIONS, PairLoss
from das_gym.problem.budget import Floats, Masks
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

Loss = Callable[[Masks], Floats]

CLIMBS = 60
RANDOM_MASKS = 500

TABLES_24 = ("smolvlm_mini/answering_sublayers", "llava_mini/answering")
TABLES_12 = (
    *(f"{model}/{task}" for model in ("meter_mini", "vilt_mini") for task in ("vqa", "nlvr2", "retrieval")),
    "smolvlm_mini/answering",
)
GREEDY_COUNTS = (3, 4, 5, 6, 7)


@dataclass
class Problem:
    """A loss of masks within a budget.

    Attributes:
        name: Its name.
        space: The masks.
        losses: Returns (m,) losses of (m, n_layers) masks, within the budget or not.
        best: The lowest known loss.
        random: The mean loss of random masks.
        evaluations: The masks that a search may score.
    """

    name: str
    space: MaskSpace
    losses: Loss
    best: float
    random: float
    evaluations: int


def nk_loss(n: int, rng: np.random.Generator, order: int = 4) -> Loss:
    """NK landscape: each layer's cost is a random number for each state of itself and `order` others."""
    near = np.array([np.append(i, rng.permutation(np.delete(np.arange(n), i))[:order]) for i in range(n)])
    values, powers = rng.random((n, 2 ** (order + 1))), 1 << np.arange(order + 1)
    return lambda masks: 4.0 * values[np.arange(n), (masks[:, near] * powers).sum(axis=2)].mean(axis=1)


def group_loss(n: int, rng: np.random.Generator) -> Loss:
    """Layers replace each other: a group of 3 to 6 layers costs nothing until more are skipped than it can spare."""
    single = rng.lognormal(-2.5, 1.0, n)
    sizes = rng.integers(3, 7, n)
    groups = rng.random((n, n)).argsort(axis=1).argsort(axis=1) < sizes[:, None]
    spared, weights = rng.integers(1, sizes - 1), rng.lognormal(-2.0, 1.0, n)

    def losses(masks: Masks) -> Floats:
        skipped = masks.astype(float)
        found: Floats = skipped @ single + (skipped @ groups.T > spared) @ weights
        return found

    return losses


def redundancy_loss(n: int, rng: np.random.Generator, sharpness: float = 4.0) -> Loss:
    """Groups of 2 to 6 layers share a job; the loss is a smooth maximum over groups of what is lost of each job."""
    sizes = rng.integers(2, 7, n)
    label = np.repeat(np.arange(n), sizes)[:n][np.argsort(rng.permutation(n))]
    share = np.eye(label.max() + 1)[label] * rng.uniform(0.3, 1.0, n)[:, None]
    total, groups = share.sum(axis=0), share.shape[1]
    weight, power, own = rng.lognormal(0.3, 0.6, groups), rng.uniform(2, 4, groups), rng.lognormal(-3.5, 1.0, n)

    def losses(masks: Masks) -> Floats:
        skipped = masks.astype(float)
        lost = weight * (skipped @ share / total) ** power
        found: Floats = np.log(np.exp(sharpness * lost).mean(axis=1)) / sharpness + skipped @ own
        return found

    return losses


FAMILIES: dict[str, Callable[[int, np.random.Generator], Loss]] = {
    "nk": nk_loss,
    "pairs": PairLoss,
    "groups": group_loss,
    "redundancy": redundancy_loss,
}


def planted(family: str, n: int, seed: int) -> Problem:
    """Return a planted problem that skips a third of the layers. Its best mask is the best of climbs on the loss itself."""
    rng = np.random.default_rng((list(FAMILIES).index(family), n, seed))
    losses, space = FAMILIES[family](n, rng), MaskSpace(Budget(n, n // 3))
    random = float(losses(np.array([space.sample(rng) for _ in range(RANDOM_MASKS)])).mean())
    best = min(climb(losses, space, space.sample(rng)) for _ in range(CLIMBS))
    return Problem(f"{family}-{n}-{seed}", space, losses, best, random, EVALUATIONS[n])


def climb(losses: Loss, space: MaskSpace, mask: Masks) -> float:
    """Return the loss of the local minimum that the best swaps lead to."""
    loss = float(losses(mask[None])[0])
    while True:
        around = space.neighbours(mask)
        found = losses(around)
        if found.min() >= loss - 1e-12:
            return loss
        mask, loss = around[found.argmin()], float(found.min())


@cache
def load_table(name: str) -> tuple[SubnetTable, Floats]:
    """Return a bundled table and its losses on the reward split."""
    table = SubnetTable.load(ASSETS / f"{name}_table.npz")
    return table, -np.asarray(table.values("neg_loss"), dtype=float)


def tabulated(name: str, skip_num: int, evaluations: int = 120) -> Problem:
    """Return the problem of skipping `skip_num` layers of a bundled table."""
    table, values = load_table(name)
    budget = Budget(table.n_layers, skip_num)
    kept = values[budget.is_kept_by(table.masks)]
    title = f"{name}, {skip_num} skipped"
    return Problem(
        title, MaskSpace(budget), lambda masks: values[table.rows(masks)], kept.min(), float(kept.mean()), evaluations
    )


def greedy_evaluations(n_layers: int, skip_num: int) -> int:
    """Return how many masks greedy removal scores."""
    return sum(range(n_layers - skip_num + 1, n_layers + 1))
