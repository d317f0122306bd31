"""A custom reward: registered by name, used in a search, and compared with the paper's on a table."""

import gymnasium
import numpy as np
from das_gym.agents import SearchConfig, search

from das_gym import Reward, register_reward

CHANCE = 0.2


def above_chance(scores):
    """max(metric - 0.2, 0) / 0.8: what a mask does better than guessing.

    Range: 0..1.
    """
    return np.maximum(scores.metrics - CHANCE, 0.0) / (1.0 - CHANCE)


def main(env_id: str = "DAS-METER-VQA-Tabular-v0", evaluations: int = 120) -> float:
    register_reward(Reward("above_chance", 0.0, 1.0, above_chance))
    table = gymnasium.make(env_id).unwrapped.table
    for reward in ("above_chance", "exp_neg_loss"):
        config = SearchConfig(env_id=env_id, env_kwargs={"reward": reward}, agent="bayes", evaluations=evaluations)
        result = search(config)
        rank = table.rank(np.array(result.mask), reward, skip_num=4)
        test = table.values("metric", "test")[table.index(result.mask)]
        print(f"{reward:>12}: {result.reward:.4f}, rank {rank}, test accuracy {test:.4f}")
    return float(table.values("above_chance")[table.index(result.mask)])


if __name__ == "__main__":
    main()
