"""Which learning rate the bandit wants in a search of a few hundred masks: many seeds on a bundled table's masks of k = 4.

    python -m benchmarks.bandit_rate
    python -m benchmarks.bandit_rate das_gym/assets/meter_mini/vqa_table.npz

Searches the reward split, reports the test split. Under a minute.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from das_gym.agents.ask_tell.bandit import Bandit

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import ASSETS
from das_gym.tables.table import SubnetTable

RATES = (1.0, 3.0, 10.0, 20.0, 50.0)
SEEDS = 60
EVALUATIONS = 240
MASKS_PER_TURN = 3
SKIP_NUM = 4


def found_by(table: SubnetTable, rewards: np.ndarray, seed: int, rate: float) -> int:
    """The index of the mask that a search ends at."""
    agent = Bandit(MaskSpace(Budget(table.n_layers, SKIP_NUM)), seed, learning_rate=rate)
    for _ in range(EVALUATIONS // MASKS_PER_TURN):
        masks = agent.ask(MASKS_PER_TURN)
        agent.tell(masks, rewards[table.index(masks)])
    return int(table.index(agent.best()[None])[0])


def main() -> None:
    """Print, for each rate, what searches end at."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", default=ASSETS / "meter_mini/vqa_table.npz")
    table = SubnetTable.load(parser.parse_args().table)
    rewards, metrics = table.values("exp_neg_loss"), 100 * table.values("metric", "test")
    allowed = metrics[table.within(skip_num=SKIP_NUM)]
    print(f"{len(allowed)} masks: median {table.meta.metric_name} {np.median(allowed):.2f} %, best {allowed.max():.2f} %")
    for rate in RATES:
        found = metrics[[found_by(table, rewards, seed, rate) for seed in range(SEEDS)]]
        below = np.mean(found <= np.median(allowed))
        print(f"rate {rate:4g}: mean {found.mean():.2f} %, worst {found.min():.2f} %, at the median or below {below:.0%}")


if __name__ == "__main__":
    main()
