"""Rewards of masks, made up: effects of single layers and of pairs."""

import numpy as np
from das_gym.agents import MaskSpace

from das_gym.engine.scores import Scores
from das_gym.problem.budget import Budget, MaskCost
from das_gym.problem.mask_space import every_mask
from das_gym.problem.statistics import DEFAULT_STATISTICS, STATISTICS
from das_gym.tables.table import SubnetTable, TableMeta

SAVINGS = np.repeat([0.02, 0.07], 6)
MACS = MaskCost(full=100, unskipped=100, savings=np.repeat([2, 7], 6))
SPACES = {
    "count": MaskSpace(Budget(12, 4)),
    "cost": MaskSpace(Budget(12, saved=0.15, cost=MACS)),
    "many, by count": MaskSpace(Budget(24, 8)),
    "many, by cost": MaskSpace(Budget(24, saved=0.3, cost=MaskCost(100, 100, np.repeat([2, 7], 12)))),
}


def statistics(space):
    values = {name: np.sin(np.arange(space.n_layers) + place) for place, name in enumerate(STATISTICS)}
    return {**values, "block_influence_tokens": np.cos(np.arange(space.n_layers))}


def rewards(masks, seed=3, pairs=0.05):
    """(m,) rewards of masks of any number of layers: exp(-loss)."""
    n = masks.shape[1]
    rng = np.random.default_rng(seed)
    single, both = rng.uniform(0.02, 0.4, n), np.triu(rng.normal(0.0, pairs, (n, n)), 1)
    x = masks.astype(float)
    return np.exp(-0.3 - x @ single - ((x @ both) * x).sum(axis=1))


def write_table(path, n_layers=8, env_id="DAS-METER-VQA-v0"):
    """A table of made-up scores: losses that differ a little between the splits."""
    masks = every_mask(n_layers)
    losses = {split: -np.log(rewards(masks, seed=seed)).astype(np.float32) for split, seed in (("reward", 3), ("test", 4))}
    losses["test"] = 0.9 * losses["reward"] + 0.1 * losses["test"]
    meta = TableMeta(
        env_id=env_id,
        layer_names=tuple(f"text.{i}" for i in range(n_layers)),
        metric_name="accuracy",
        macs_full=1000,
        reward_examples=10,
        test_examples=10,
        statistics=DEFAULT_STATISTICS,
        hashes={},
        versions={},
    )
    scores = {split: Scores(loss, np.exp(-loss), loss) for split, loss in losses.items()}
    macs = 1020 - masks.astype(np.int64) @ np.repeat([30, 60], n_layers // 2)
    observed = {name: np.zeros(n_layers) for name in DEFAULT_STATISTICS}
    observed |= {"depth": np.linspace(0, 1, n_layers), "block_influence_tokens": np.linspace(1, 0.1, n_layers)}
    statistics = np.stack(list(observed.values()), axis=1).astype(np.float32)
    SubnetTable(meta, scores, macs, statistics).save(path)
    return path
