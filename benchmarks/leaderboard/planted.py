"""Planted problems: losses of models with too many layers to list all masks, drawn from a seed."""

from __future__ import annotations

import numpy as np
from das_gym.agents.compare.oracle import Oracle

from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace

EVALUATIONS = {24: 120, 36: 180, 72: 240, 100: 240}
"""Number of layers to the evaluations of a search."""

PAIRS = 0.5
CLIMBS = 200
RANDOM_MASKS = 500


class PairLoss:
    """A loss with effects of single layers and of pairs of layers.

    Effects of layers are log-normal, so that few matter much. Effects of pairs are normal, half as large as the geometric
    mean of their layers' effects.

    Args:
        n_layers: Number of layers.
        rng: Draws the effects.

    Attributes:
        single: (n_layers,) effects of layers.
        pairs: (n_layers, n_layers) effects of pairs, symmetric, 0 on the diagonal.
    """

    def __init__(self, n_layers: int, rng: np.random.Generator) -> None:
        self.single = rng.lognormal(-2.5, 1.0, n_layers)
        upper = np.triu(rng.normal(0.0, PAIRS, (n_layers, n_layers)), 1) * np.sqrt(np.outer(self.single, self.single))
        self.pairs = upper + upper.T

    def __call__(self, masks: Masks) -> Floats:
        """Return (m,) losses of (m, n_layers) masks."""
        x = masks.astype(float)
        return x @ self.single + 0.5 * ((x @ self.pairs) * x).sum(axis=1)

    def after_swaps(self, mask: Masks, swaps: np.ndarray) -> Floats:
        """Return how much the loss rises with each of (m, 2) swaps of a skipped layer of a mask for a kept one."""
        field = self.single + self.pairs @ mask
        return field[swaps[:, 1]] - field[swaps[:, 0]] - self.pairs[swaps[:, 0], swaps[:, 1]]


class PlantedOracle(Oracle):
    """The oracle of a planted loss, whose best mask is nearly known.

    A third of the layers is skipped. The reward is exp(-loss / 2). The best mask is the best of 200 climbs on the loss
    itself, which agents cannot see.

    Args:
        n_layers: Number of layers, at least 3.
        seed: Draws the loss and the starts of the climbs.

    Attributes:
        losses: The loss of masks.
        best_loss: The lowest known loss.
        random_loss: The mean of 500 random masks.
    """

    best_reward: float

    def __init__(self, n_layers: int, seed: int) -> None:
        rng = np.random.default_rng((n_layers, seed))
        self.env_id, self.env_kwargs, self.statistics = f"planted-{n_layers}-{seed}", {}, {}
        self.space = MaskSpace(Budget(n_layers, n_layers // 3))
        self.losses = PairLoss(n_layers, rng)
        random = np.array([self.space.sample(rng) for _ in range(RANDOM_MASKS)])
        self.random_loss = float(self.losses(random).mean())
        self.best_loss = min(self.climb(self.space.sample(rng)) for _ in range(CLIMBS))
        self.best_reward = float(np.exp(-self.best_loss / 2))
        self.random_reward = float(self.rewards(random).mean())

    def rewards(self, masks: Masks) -> Floats:
        """Return `Oracle.rewards`."""
        return np.exp(-self.losses(masks) / 2)

    def normalized(self, regrets: Floats) -> Floats:
        """Return `Oracle.normalized` of the losses behind the rewards: 1 = the mean of random masks."""
        losses = -2 * np.log(np.maximum(self.best_reward - regrets, np.finfo(float).tiny))
        return (losses - self.best_loss) / (self.random_loss - self.best_loss)

    def climb(self, mask: Masks) -> float:
        """Return the loss of the local minimum that the best swaps lead to."""
        while True:
            swaps = self.space.moves(mask)
            rises = self.losses.after_swaps(mask, swaps)
            if rises.min() >= -1e-12:
                return float(self.losses(mask[None])[0])
            mask = mask.copy()
            mask[swaps[rises.argmin()]] ^= True
