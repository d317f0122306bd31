"""A custom layer statistic: registered by name, observed, and used to rank layers."""

import gymnasium
import numpy as np
from das_gym.agents import SearchConfig, search

from das_gym import Statistic, register_statistic


def influence_per_mac(inputs):
    """(n_layers,) how much a layer changes its stream for what it costs, 1 = as the layer with the most of it."""
    worth = inputs.activity.block_influence_tokens / inputs.costs.layer_macs
    return worth / worth.max()


def main(env_id: str = "DAS-METER-VQA-v0", reward_examples: int = 100) -> float:
    formula = "block influence over tokens / MACs of the layer, as a share of the largest"
    register_statistic(Statistic("influence_per_mac", formula, 0.0, 1.0, influence_per_mac))
    env_kwargs = {"statistics": ["block_influence_tokens", "influence_per_mac"], "reward_examples": reward_examples}
    env = gymnasium.make(env_id, **env_kwargs)
    observation, _ = env.reset(seed=0)
    for name, value in zip(env.get_wrapper_attr("feature_names"), observation, strict=True):
        print(f"{name:>30} {value:.3f}")
    rewards = []
    for statistic in env_kwargs["statistics"]:
        agent = {"agent": "block_influence", "agent_kwargs": {"statistic": statistic}}
        result = search(SearchConfig(env_id=env_id, env_kwargs=env_kwargs, skip_num=None, macs_saved=0.12, **agent))
        rewards.append(result.reward)
        print(f"12 % of the MACs saved by lowest {statistic}: reward {result.reward:.4f}")
    return float(np.max(rewards))


if __name__ == "__main__":
    main()
