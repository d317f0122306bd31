"""Made-up tables: no model, but every part that a real one has."""

import numpy as np

from das_gym.engine.scores import Scores
from das_gym.problem.budget import MaskCost
from das_gym.problem.mask_space import every_mask
from das_gym.problem.statistics import DEFAULT_STATISTICS
from das_gym.tables.examples import ExampleScores
from das_gym.tables.table import SCORES, SPLITS, SubnetTable, TableMeta

GROUPS = ("color", "count")


def made_up_table(n: int, seed: int, examples: int = 12) -> SubnetTable:
    """Losses of single units and pairs, differing from example to example; the statistics reveal those of single units.

    The more MACs a unit takes, the less time it takes: the last one is faster than its adapter.
    """
    rng = np.random.default_rng(seed)
    masks = every_mask(n)
    x = masks.astype(float)
    single, pairs = rng.uniform(0.02, 0.5, n), np.triu(rng.normal(0, 0.15, (n, n)), 1)
    base = 0.3 + x @ single + np.abs(((x @ pairs) * x).sum(axis=1))
    each, means = {}, {}
    for split in SPLITS:
        losses = base[:, None] * rng.uniform(0.5, 1.5, examples)
        scores = Scores(losses, (losses < 1.0).astype(float), losses)
        numbers = np.arange(examples, dtype=np.int16) % len(GROUPS)
        keys = [f"{split}/{i}" for i in range(examples)]
        each[split] = ExampleScores.empty(len(masks), numbers, numbers.astype(np.int32), keys).put(0, scores)
        means[split] = Scores(*(getattr(scores, name).mean(axis=1).astype(np.float32) for name in SCORES))
    names = (*DEFAULT_STATISTICS, "leave_one_out")
    statistics = np.zeros((n, len(names)), np.float32)
    statistics[:, names.index("depth")] = np.linspace(0, 1, n)
    statistics[:, names.index("leave_one_out")] = single
    meta = TableMeta(
        env_id="DAS-METER-VQA-v0",
        layer_names=tuple(f"block.{i}" for i in range(n)),
        metric_name="accuracy",
        macs_full=950,  # the full model has adapters besides
        reward_examples=examples,
        test_examples=examples,
        statistics=names,
        hashes={},
        versions={},
        costs={"latency_saved": MaskCost(40.0, 41.0, np.append(np.arange(n - 1, 0, -1.0), -0.5)).as_dict()},
        groups=GROUPS,
    )
    macs = 1000 - masks.astype(np.int64) @ (20 + 10 * np.arange(n))
    return SubnetTable(meta, means, macs, statistics, each, np.stack([statistics, statistics]))
