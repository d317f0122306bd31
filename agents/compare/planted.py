"""Planted problems: losses of so many layers that masks cannot be listed, drawn from a seed."""

from __future__ import annotations

import numpy as np
from das_gym.agents.compare.oracle import Oracle

from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace

EVALUATIONS = {24: 120, 36: 180, 72: 240, 100: 240}
"""Number of layers to how many masks a search among them may score."""

PAIRS = 0.5
CLIMBS = 200
DRAWN = 500


class PlantedOracle(Oracle):
    """A planted loss: effects of single layers, log-normal, so that few matter much, and of pairs.

    Those of pairs are normal, half as large as the geometric mean of their layers' effects. A third of the layers is
    skipped; a reward is exp(-loss / 2). The best mask is the best of 200 climbs on the loss itself, which agents cannot see.

    Args:
        n_layers: How many layers, at least 3.
        seed: Draws the effects, and where the climbs begin.

    Attributes:
        single: (n_layers,) effects of layers.
        pairs: (n_layers, n_layers) effects of pairs, symmetric, 0 on the diagonal.
        best_loss: The lowest loss known.
        random_loss: The mean of 500 random masks.
    """

    best_reward: float

    def __init__(self, n_layers: int, seed: int) -> None:
        rng = np.random.default_rng((n_layers, seed))
        self.env_id, self.env_kwargs, self.statistics = f"planted-{n_layers}-{seed}", {}, {}
        self.space = MaskSpace(Budget(n_layers, n_layers // 3))
        self.single = rng.lognormal(-2.5, 1.0, n_layers)
        upper = np.triu(rng.normal(0.0, PAIRS, (n_layers, n_layers)), 1) * np.sqrt(np.outer(self.single, self.single))
        self.pairs = upper + upper.T
        random = np.array([self.space.sample(rng) for _ in range(DRAWN)])
        self.random_loss = float(self.losses(random).mean())
        self.best_loss = min(self._climb(self.space.sample(rng)) for _ in range(CLIMBS))
        self.best_reward = float(np.exp(-self.best_loss / 2))
        self.random_reward = float(self.rewards(random).mean())

    def losses(self, masks: Masks) -> Floats:
        """(m,) losses of (m, n_layers) masks."""
        x = masks.astype(float)
        return x @ self.single + 0.5 * ((x @ self.pairs) * x).sum(axis=1)

    def rewards(self, masks: Masks) -> Floats:
        """As `Oracle.rewards`."""
        return np.exp(-self.losses(masks) / 2)

    def test_metrics(self, masks: Masks) -> Floats:
        """As `Oracle.test_metrics`: there is no test split."""
        return np.full(len(masks), np.nan)

    def normalised(self, regrets: Floats) -> Floats:
        """As `Oracle.normalised`, of the losses behind rewards."""
        return self.loss_regrets(-2 * np.log(np.maximum(self.best_reward - regrets, np.finfo(float).tiny)))

    def loss_regrets(self, losses: Floats) -> Floats:
        """(...) losses as shares of what there is to gain: 0 = the best mask known, 1 = the mean of random ones."""
        return (losses - self.best_loss) / (self.random_loss - self.best_loss)

    def _climb(self, mask: Masks) -> float:
        """The loss where no swap of two layers helps any more."""
        while True:
            moves = self.space.moves(mask)
            field = self.single + self.pairs @ mask
            gains = field[moves[:, 1]] - field[moves[:, 0]] - self.pairs[moves[:, 0], moves[:, 1]]
            if gains.min() >= -1e-12:
                return float(self.losses(mask[None])[0])
            mask = mask.copy()
            mask[moves[gains.argmin()]] ^= True
