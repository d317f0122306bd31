"""Planted problems: losses of so many layers that masks cannot be listed, drawn from a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from das_gym.agents.compare.oracle import Oracle

from das_gym.config import check_names
from das_gym.problem.budget import Budget, Floats, Masks
from das_gym.problem.mask_space import MaskSpace

EVALUATIONS = {24: 120, 36: 180, 72: 240, 100: 240}
"""Number of layers to how many masks a search among them may score."""

PAIRS = 0.5
GROUP_SIZES = (3, 6)
CLIMBS = 200
DRAWN = 500


class PlantedLoss(ABC):
    """A loss of masks: effects of single layers, log-normal, so that few matter much, and of several together.

    Args:
        n_layers: How many layers.
        rng: Draws it.

    Attributes:
        single: (n_layers,) effects of layers.
    """

    def __init__(self, n_layers: int, rng: np.random.Generator) -> None:
        self.single = rng.lognormal(-2.5, 1.0, n_layers)

    @abstractmethod
    def __call__(self, masks: Masks) -> Floats:
        """(m,) losses of (m, n_layers) masks."""

    @abstractmethod
    def after_swaps(self, mask: Masks, swaps: np.ndarray) -> Floats:
        """(m,) how much the loss rises with each of (m, 2) swaps of a skipped layer of a (n_layers,) mask for a kept one."""


class PairLoss(PlantedLoss):
    """Effects of pairs are normal, half as large as the geometric mean of their layers' effects.

    Attributes:
        pairs: (n_layers, n_layers) effects of pairs, symmetric, 0 on the diagonal.
    """

    def __init__(self, n_layers: int, rng: np.random.Generator) -> None:
        super().__init__(n_layers, rng)
        upper = np.triu(rng.normal(0.0, PAIRS, (n_layers, n_layers)), 1) * np.sqrt(np.outer(self.single, self.single))
        self.pairs = upper + upper.T

    def __call__(self, masks: Masks) -> Floats:
        """As `PlantedLoss.__call__`."""
        x = masks.astype(float)
        return x @ self.single + 0.5 * ((x @ self.pairs) * x).sum(axis=1)

    def after_swaps(self, mask: Masks, swaps: np.ndarray) -> Floats:
        """As `PlantedLoss.after_swaps`."""
        field = self.single + self.pairs @ mask
        return field[swaps[:, 1]] - field[swaps[:, 0]] - self.pairs[swaps[:, 0], swaps[:, 1]]


class GroupLoss(PlantedLoss):
    """Layers stand in for each other: a group costs nothing until more of its layers are skipped than it can spare.

    There are as many groups as layers, each of 3 to 6 layers, most of which belong to several. A group can spare one of its
    layers or more; skipping more than it can costs the same, log-normal, however many: no sum of pairs tells that.

    Attributes:
        groups: (n_layers, n_layers) bool, row g: the layers of group g.
        spared: (n_layers,) how many layers each group can spare.
        weights: (n_layers,) what it costs to skip more.
    """

    def __init__(self, n_layers: int, rng: np.random.Generator) -> None:
        super().__init__(n_layers, rng)
        sizes = rng.integers(GROUP_SIZES[0], GROUP_SIZES[1] + 1, n_layers)
        self.groups = rng.random((n_layers, n_layers)).argsort(axis=1).argsort(axis=1) < sizes[:, None]
        self.spared = rng.integers(1, sizes - 1)
        self.weights = rng.lognormal(-2.0, 1.0, n_layers)

    def __call__(self, masks: Masks) -> Floats:
        """As `PlantedLoss.__call__`."""
        x = masks.astype(float)
        return x @ self.single + (x @ self.groups.T > self.spared) @ self.weights

    def after_swaps(self, mask: Masks, swaps: np.ndarray) -> Floats:
        """As `PlantedLoss.after_swaps`."""
        out, new = swaps.T
        skipped = self.groups @ mask.astype(float)
        after = skipped - self.groups.T[out] + self.groups.T[new]
        more = (after > self.spared) @ self.weights - (skipped > self.spared) @ self.weights
        return self.single[new] - self.single[out] + more


LOSSES: dict[str, type[PlantedLoss]] = {"pairs": PairLoss, "groups": GroupLoss}
"""Kinds of planted losses by name."""


class PlantedOracle(Oracle):
    """A planted loss, of which the best mask is nearly known.

    A third of the layers is skipped; a reward is exp(-loss / 2). The best mask is the best of 200 climbs on the loss itself,
    which agents cannot see.

    Args:
        n_layers: How many layers, at least 3.
        seed: Draws the loss, and where the climbs begin.
        kind: A key of `LOSSES`. A model of pairs can learn `pairs` exactly, and `groups` in part.

    Raises:
        ValueError: another kind.

    Attributes:
        losses: The loss of masks.
        best_loss: The lowest loss known.
        random_loss: The mean of 500 random masks.
    """

    best_reward: float

    def __init__(self, n_layers: int, seed: int, kind: str = "pairs") -> None:
        check_names([kind], LOSSES, "kind of planted loss")
        rng = np.random.default_rng((n_layers, seed))
        kept = "planted" if kind == "pairs" else f"planted-{kind}"  # as results that are kept are named
        self.env_id, self.env_kwargs, self.statistics = f"{kept}-{n_layers}-{seed}", {}, {}
        self.space = MaskSpace(Budget(n_layers, n_layers // 3))
        self.losses = LOSSES[kind](n_layers, rng)
        random = np.array([self.space.sample(rng) for _ in range(DRAWN)])
        self.random_loss = float(self.losses(random).mean())
        self.best_loss = min(self._climb(self.space.sample(rng)) for _ in range(CLIMBS))
        self.best_reward = float(np.exp(-self.best_loss / 2))
        self.random_reward = float(self.rewards(random).mean())

    def rewards(self, masks: Masks) -> Floats:
        """As `Oracle.rewards`."""
        return np.exp(-self.losses(masks) / 2)

    def test_metrics(self, masks: Masks) -> Floats:
        """As `Oracle.test_metrics`: there is no test split."""
        return np.full(len(masks), np.nan)

    def normalized(self, regrets: Floats) -> Floats:
        """As `Oracle.normalized`, of the losses behind rewards."""
        return self.loss_regrets(-2 * np.log(np.maximum(self.best_reward - regrets, np.finfo(float).tiny)))

    def loss_regrets(self, losses: Floats) -> Floats:
        """(...) losses as shares of what there is to gain: 0 = the best mask known, 1 = the mean of random ones."""
        return (losses - self.best_loss) / (self.random_loss - self.best_loss)

    def _climb(self, mask: Masks) -> float:
        """The loss where no swap of two layers helps any more."""
        while True:
            swaps = self.space.moves(mask)
            rises = self.losses.after_swaps(mask, swaps)
            if rises.min() >= -1e-12:
                return float(self.losses(mask[None])[0])
            mask = mask.copy()
            mask[swaps[rises.argmin()]] ^= True
