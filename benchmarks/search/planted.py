"""Planted losses of models with too many layers to list all masks, drawn from a seed."""

from collections.abc import Callable

import numpy as np
from das_gym.agents.comparing.oracle import Oracle

from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace, flipped

Loss = Callable[[Masks], Floats]
"""Returns (m,) losses of (m, n_layers) masks, within the budget or not."""

EVALUATIONS = {24: 120, 36: 180, 72: 240}
"""Number of layers to the evaluations of a search."""

CLIMBS = 300
RANDOM_MASKS = 500
SWAPS = 64
"""Swaps that a climb scores at once."""


def nk_loss(n: int, rng: np.random.Generator, order: int = 4) -> Loss:
    """NK landscape: each layer's cost is a random number for each state of itself and `order` others."""
    near = np.array([np.append(i, rng.permutation(np.delete(np.arange(n), i))[:order]) for i in range(n)])
    values = rng.random((n, 2 ** (order + 1)))
    powers = 1 << np.arange(order + 1)
    return lambda masks: 4.0 * values[np.arange(n), (masks[:, near] * powers).sum(axis=2)].mean(axis=1)


def pair_loss(n: int, rng: np.random.Generator, strength: float = 0.5) -> Loss:
    """Log-normal effects of layers, so that few matter much, and normal effects of pairs, `strength` times as large."""
    single = rng.lognormal(-2.5, 1.0, n)
    upper = np.triu(rng.normal(0.0, strength, (n, n)), 1) * np.sqrt(np.outer(single, single))

    def losses(masks: Masks) -> Floats:
        skipped = masks.astype(float)
        found: Floats = skipped @ single + ((skipped @ upper) * skipped).sum(axis=1)
        return found

    return losses


def group_loss(n: int, rng: np.random.Generator) -> Loss:
    """Layers replace each other: a group of 3 to 6 layers costs nothing until more are skipped than it can spare."""
    single = rng.lognormal(-2.5, 1.0, n)
    sizes = rng.integers(3, 7, n)
    groups = rng.random((n, n)).argsort(axis=1).argsort(axis=1) < sizes[:, None]
    spared = rng.integers(1, sizes - 1)
    weights = rng.lognormal(-2.0, 1.0, n)

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
    total = share.sum(axis=0)
    weight = rng.lognormal(0.3, 0.6, share.shape[1])
    power = rng.uniform(2, 4, share.shape[1])
    own = rng.lognormal(-3.5, 1.0, n)

    def losses(masks: Masks) -> Floats:
        skipped = masks.astype(float)
        lost = weight * (skipped @ share / total) ** power
        found: Floats = np.log(np.exp(sharpness * lost).mean(axis=1)) / sharpness + skipped @ own
        return found

    return losses


FAMILIES: dict[str, Callable[[int, np.random.Generator], Loss]] = {
    "nk": nk_loss,
    "pairs": pair_loss,
    "groups": group_loss,
    "redundancy": redundancy_loss,
}


class PlantedOracle(Oracle):
    """The oracle of a planted loss, whose best mask is nearly known. A third of the layers is skipped.

    The reward is exp(-loss / 2). The best mask is the best of `CLIMBS` climbs on the loss itself, which agents cannot see.

    Args:
        family: A key of `FAMILIES`.
        n_layers: Number of layers, at least 6.
        seed: Draws the loss and the starts of the climbs.

    Attributes:
        losses: The loss of masks.
        best_loss: The lowest known loss.
        random_loss: The mean of 500 random masks.
    """

    best_reward: float

    def __init__(self, family: str, n_layers: int, seed: int) -> None:
        rng = np.random.default_rng((list(FAMILIES).index(family), n_layers, seed))
        self.env_id = f"{family}-{n_layers}-{seed}"
        self.env_kwargs = {}
        self.statistics = {}
        self.space = MaskSpace(Budget(n_layers, n_layers // 3))
        self.losses = FAMILIES[family](n_layers, rng)
        random = np.array([self.space.sample(rng) for _ in range(RANDOM_MASKS)])
        self.random_loss = float(self.losses(random).mean())
        self.best_loss = min(self._climb(rng) for _ in range(CLIMBS))
        self.best_reward = float(np.exp(-self.best_loss / 2))
        self.random_reward = float(self.rewards(random).mean())

    def rewards(self, masks: Masks) -> Floats:
        return np.exp(-self.losses(masks) / 2)

    def normalized(self, regrets: Floats) -> Floats:
        """Return `Oracle.normalized` of the losses behind the rewards: 1 = the mean of random masks."""
        losses = -2 * np.log(np.maximum(self.best_reward - regrets, np.finfo(float).tiny))
        return (losses - self.best_loss) / (self.random_loss - self.best_loss)

    def _climb(self, rng: np.random.Generator) -> float:
        """Return the loss of the local minimum that swaps lead to from a random mask."""
        mask = self.space.sample(rng)
        loss = float(self.losses(mask[None])[0])
        while True:
            for swaps in np.split(moves := rng.permutation(self.space.moves(mask)), range(SWAPS, len(moves), SWAPS)):
                around = flipped(mask, swaps)
                found = self.losses(around)
                if found.min() < loss - 1e-12:
                    mask = around[found.argmin()]
                    loss = float(found.min())
                    break
            else:
                return loss
