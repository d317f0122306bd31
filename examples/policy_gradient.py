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
    observations, info = envs.reset(seed=seed)
    policy = nn.Sequential(nn.Linear(observations.shape[1], 64), nn.Tanh(), nn.Linear(64, int(envs.single_action_space.n)))
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01)
    best_reward, best_mask = -np.inf, None
    for update in range(num_updates):
        log_probs, entropies, done = [], [], np.zeros(num_envs, dtype=bool)
        while not done.all():  # masked episodes of one budget in layers end together
            logits = policy(torch.as_tensor(observations))
            distribution = Categorical(logits=logits.masked_fill(~torch.as_tensor(info["action_mask"]), -1e9))
            actions = distribution.sample()
            log_probs.append(distribution.log_prob(actions))
            entropies.append(distribution.entropy())
            observations, rewards, terminated, truncated, info = envs.step(actions.numpy())
            done = terminated | truncated
        returns = torch.as_tensor(rewards, dtype=torch.float32)  # the last step of an episode is the only one rewarded
        advantages = (returns - returns.mean()) / (returns.std() + 1e-8)
        loss = -(torch.stack(log_probs).sum(0) * advantages).mean() - 0.01 * torch.stack(entropies).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if rewards.max() > best_reward:
            best_reward, best_mask = float(rewards.max()), envs.unwrapped.last_masks[rewards.argmax()]
            print(f"update {update}: mean reward {rewards.mean():.4f}, best so far {best_reward:.4f}")
    names = envs.unwrapped.layer_names
    print("skips", [name for name, skipped in zip(names, best_mask, strict=True) if skipped])
    return best_reward


if __name__ == "__main__":
    main()
