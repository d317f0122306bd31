"""PPO in one file, in CleanRL's manner: one layer a step, and never one whose skipping has no effect.

python examples/masked_ppo.py --seed 1
"""

import argparse
import time
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import das_gym  # noqa: F401 - registers the environments


@dataclass
class Args:
    env_id: str = "DAS-METER-VQA-Tabular-v0"  # an id with -Tabular
    seed: int = 0
    total_timesteps: int = 16_384
    num_envs: int = 8
    num_steps: int = 16  # of each environment between two updates
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    gamma: float = 1.0  # only the last step of an episode earns something
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    hidden: int = 64
    log_every: int = 16  # updates


class Agent(nn.Module):
    def __init__(self, features: int, actions: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh())
        self.actor = nn.Linear(hidden, actions)
        self.critic = nn.Linear(hidden, 1)
        nn.init.zeros_(self.actor.weight)  # begins with all allowed actions alike

    def forward(self, observations: torch.Tensor, allowed: torch.Tensor) -> tuple[Categorical, torch.Tensor]:
        hidden = self.body(observations)
        return Categorical(logits=self.actor(hidden).masked_fill(~allowed, -1e9)), self.critic(hidden)[:, 0]


@torch.no_grad()
def final_regret(agent: Agent, env_id: str) -> float:
    """Return the regret of the likeliest mask on the table."""
    env = gymnasium.make(env_id, action="sequence")
    observation, info = env.reset()
    ended = False
    while not ended:
        policy, _ = agent(torch.as_tensor(observation)[None], torch.as_tensor(info["action_mask"])[None])
        observation, reward, ended, _, info = env.step(int(policy.probs.argmax()))
    scorer = env.get_wrapper_attr("scorer")
    return float(scorer.table.values(scorer.objective).max() - reward)


def advantages_of(rewards, values, ended, last_value, args: Args) -> torch.Tensor:
    """(num_steps, num_envs) generalized advantage estimates; `ended` marks the last steps of episodes."""
    found = torch.zeros_like(rewards)
    running = torch.zeros(rewards.shape[1])
    for step in reversed(range(len(rewards))):
        following = last_value if step + 1 == len(rewards) else values[step + 1]
        error = rewards[step] + args.gamma * following * ~ended[step] - values[step]
        found[step] = running = error + args.gamma * args.gae_lambda * running * ~ended[step]
    return found


def improve(agent: Agent, optimizer: torch.optim.Optimizer, batch: list[torch.Tensor], args: Args) -> None:
    """Some epochs on a rollout: observations, allowed, actions, log_probs, advantages, returns, each (steps, ...)."""
    for _ in range(args.epochs):
        for rows in torch.randperm(len(batch[0])).chunk(args.minibatches):
            observations, allowed, actions, log_probs, advantages, returns = (part[rows] for part in batch)
            policy, values = agent(observations, allowed)
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            ratio = (policy.log_prob(actions) - log_probs).exp()
            gain = torch.minimum(ratio * advantages, ratio.clamp(1 - args.clip, 1 + args.clip) * advantages).mean()
            loss = args.value * (values - returns).square().mean() - gain - args.entropy * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()


def main(**settings) -> float:
    """Train with these fields of `Args`; return the regret of the result, in units of reward."""
    args = Args(**settings)
    torch.manual_seed(args.seed)
    envs = gymnasium.make_vec(args.env_id, num_envs=args.num_envs, action="sequence")
    agent = Agent(envs.single_observation_space.shape[0], int(envs.single_action_space.n), args.hidden)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate)
    observations, info = envs.reset(seed=args.seed)
    earned = []
    started = time.perf_counter()
    per_update = args.num_envs * args.num_steps
    for update in range(1, args.total_timesteps // per_update + 1):
        steps = []
        for _ in range(args.num_steps):
            seen = torch.as_tensor(observations)
            allowed = torch.as_tensor(info["action_mask"])
            with torch.no_grad():
                policy, values = agent(seen, allowed)
            actions = policy.sample()
            observations, rewards, ended, _, info = envs.step(actions.numpy())  # nothing is ever truncated
            told = torch.as_tensor(rewards, dtype=torch.float32), torch.as_tensor(ended)
            steps.append((seen, allowed, actions, policy.log_prob(actions), values, *told))
            earned += rewards[ended].tolist()
        seen, allowed, actions, log_probs, values, rewards, ended = (torch.stack(part) for part in zip(*steps, strict=True))
        with torch.no_grad():
            last_value = agent(torch.as_tensor(observations), torch.as_tensor(info["action_mask"]))[1]
        advantages = advantages_of(rewards, values, ended, last_value, args)
        rollout = (seen, allowed, actions, log_probs, advantages, advantages + values)
        improve(agent, optimizer, [part.flatten(0, 1) for part in rollout], args)
        if update % args.log_every == 0:
            rate = update * per_update / (time.perf_counter() - started)
            print(f"step {update * per_update}: mean reward {np.mean(earned[-256:]):.4f}, {rate:.0f} steps/s")
    regret = final_regret(agent, args.env_id)
    print(f"regret {regret:.4f} after {len(earned)} masks")
    return regret


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Args()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(**vars(parser.parse_args()))
