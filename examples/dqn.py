"""DQN in one file, in CleanRL's manner: one layer a step, and never one whose skipping has no effect.

python examples/dqn.py --seed 1
"""

import argparse
import time
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import nn

import das_gym  # noqa: F401 - registers the environments


@dataclass
class Args:
    env_id: str = "DAS-METER-VQA-Tabular-v0"  # an id with -Tabular
    seed: int = 0
    total_timesteps: int = 16_384
    num_envs: int = 8
    buffer_size: int = 10_000
    batch_size: int = 128
    learning_starts: int = 512  # steps
    learning_rate: float = 1e-3
    gamma: float = 1.0  # only the last step of an episode earns something
    epsilon_end: float = 0.05
    exploration_fraction: float = 0.5  # of all steps, over which epsilon falls from 1
    target_update_every: int = 512  # steps
    hidden: int = 64
    log_every: int = 2_048  # steps


class Replay:
    """Ring buffer of the last transitions, with one array for each part."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self.parts = []

    def add(self, *parts: np.ndarray) -> None:
        """(num_envs, ...) arrays."""
        if not self.parts:
            self.parts = [np.zeros((self.size, *part.shape[1:]), part.dtype) for part in parts]
        places = np.arange(self.count, self.count + len(parts[0])) % self.size
        for kept, part in zip(self.parts, parts, strict=True):
            kept[places] = part
        self.count += len(places)

    def sample(self, number: int, rng: np.random.Generator) -> list[torch.Tensor]:
        places = rng.integers(min(self.count, self.size), size=number)
        return [torch.as_tensor(part[places]) for part in self.parts]


@torch.no_grad()
def greedy(network: nn.Module, observations: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """(num_envs,) the allowed actions of the highest value; () for one environment."""
    return np.where(allowed, network(torch.as_tensor(observations)).numpy(), -np.inf).argmax(axis=-1)


def final_regret(network: nn.Module, env_id: str) -> float:
    """Return the regret of the greedy mask on the table."""
    env = gymnasium.make(env_id, action="sequence")
    observation, info = env.reset()
    ended = False
    while not ended:
        action = greedy(network, observation, info["action_mask"])
        observation, reward, ended, _, info = env.step(int(action))
    scorer = env.get_wrapper_attr("scorer")
    return float(scorer.table.values(scorer.objective).max() - reward)


def main(**settings) -> float:
    """Train with these fields of `Args`; return the regret of the result, in units of reward."""
    args = Args(**settings)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    envs = gymnasium.make_vec(args.env_id, num_envs=args.num_envs, action="sequence")
    features = envs.single_observation_space.shape[0]
    actions = int(envs.single_action_space.n)
    network, target = (
        nn.Sequential(nn.Linear(features, args.hidden), nn.ReLU(), nn.Linear(args.hidden, args.hidden), nn.ReLU(), last)
        for last in (nn.Linear(args.hidden, actions), nn.Linear(args.hidden, actions))
    )
    target.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate)
    replay = Replay(args.buffer_size)
    earned = []
    started = time.perf_counter()
    observations, info = envs.reset(seed=args.seed)
    for step in range(args.num_envs, args.total_timesteps + 1, args.num_envs):
        seen = observations
        allowed = info["action_mask"]
        explored = min(step / (args.exploration_fraction * args.total_timesteps), 1.0)
        epsilon = 1 + explored * (args.epsilon_end - 1)
        anything = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(axis=1)
        chosen = np.where(rng.random(args.num_envs) < epsilon, anything, greedy(network, seen, allowed))
        observations, rewards, ended, _, info = envs.step(chosen)  # nothing is ever truncated
        replay.add(seen, chosen, rewards.astype(np.float32), ended, observations, info["action_mask"])
        earned += rewards[ended].tolist()
        if step >= args.learning_starts:
            seen, chosen, rewards, ended, following, allowed = replay.sample(args.batch_size, rng)
            with torch.no_grad():
                hoped = target(following).masked_fill(~allowed, -torch.inf).amax(dim=1)
            values = network(seen).gather(1, chosen[:, None])[:, 0]
            loss = nn.functional.mse_loss(values, rewards + args.gamma * hoped * ~ended)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if step % args.target_update_every < args.num_envs:
            target.load_state_dict(network.state_dict())
        if step % args.log_every < args.num_envs:
            rate = step / (time.perf_counter() - started)
            recent = np.mean(earned[-256:])
            print(f"step {step}: {len(earned)} masks scored, mean reward {recent:.4f}, {rate:.0f} steps/s")
    regret = final_regret(network, args.env_id)
    print(f"regret {regret:.4f} after {len(earned)} masks")
    return regret


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in vars(Args()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(**vars(parser.parse_args()))
