"""REINFORCE in plain PyTorch, in CleanRL's manner: one layer a step, with a mask over what can still be skipped."""

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import das_gym  # noqa: F401 - registers the environments


def main(env_id: str = "DAS-METER-VQA-v0", num_updates: int = 30, num_envs: int = 8, seed: int = 0, **env_kwargs) -> float:
    torch.manual_seed(seed)
    envs = gymnasium.make_vec(env_id, num_envs=num_envs, action="sequence", **env_kwargs)
    n_features = envs.single_observation_space.shape[0]
    n_actions = int(envs.single_action_space.n)
    policy = nn.Sequential(nn.Linear(n_features, 64), nn.Tanh(), nn.Linear(64, n_actions))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    best_reward = -np.inf
    best_mask = None
    for update in range(num_updates):
        observations, info = envs.reset(seed=seed if update == 0 else None)
        log_probs = torch.zeros(num_envs)
        entropies = []
        rewards = np.zeros(num_envs)
        masks = np.zeros((num_envs, envs.unwrapped.n_layers), dtype=bool)
        running = np.ones(num_envs, dtype=bool)
        while running.any():  # until each environment has ended once: under a budget of MACs, some end before others
            logits = policy(torch.as_tensor(observations))
            distribution = Categorical(logits=logits.masked_fill(~torch.as_tensor(info["action_mask"]), -1e9))
            actions = distribution.sample()
            log_probs += torch.as_tensor(running) * distribution.log_prob(actions)
            entropies.append(distribution.entropy()[running])
            observations, step_rewards, terminated, truncated, info = envs.step(actions.numpy())
            ended = running & (terminated | truncated)
            rewards[ended] = step_rewards[ended]  # the last step of an episode is the only one rewarded
            masks[ended] = envs.unwrapped.last_masks[ended]
            running = running & ~ended  # a new array: the graph of log_probs holds the old one
        returns = torch.as_tensor(rewards, dtype=torch.float32)
        advantages = (returns - returns.mean()) / (returns.std() + 1e-8)
        loss = -(log_probs * advantages).mean() - 0.01 * torch.cat(entropies).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rewards.max() > best_reward:
            best_reward = float(rewards.max())
            best_mask = masks[rewards.argmax()]
            print(f"update {update}: mean reward {rewards.mean():.4f}, best so far {best_reward:.4f}")
    names = envs.unwrapped.layer_names
    print("skips", [name for name, skipped in zip(names, best_mask, strict=True) if skipped])
    return best_reward


if __name__ == "__main__":
    main()
