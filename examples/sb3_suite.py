"""sb3-contrib's MaskablePPO on the suite: it learns from ranks of layer statistics, and is measured on unseen models."""

import argparse

import gymnasium
import numpy as np
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import das_gym  # noqa: F401 - registers the environments
from das_gym.envs.sb3_vec_env import make_sb3_vec_env


class RankScores(BaseFeaturesExtractor):
    """Scores each unit from the ranks of its statistics among the model's units: one network for all units and models."""

    def __init__(self, observation_space: gymnasium.spaces.Dict) -> None:
        units = observation_space["units"].shape[0]
        super().__init__(observation_space, units)
        inputs = observation_space["statistics"].shape[0] // units + 4
        self.score = nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, observations: dict[str, torch.Tensor]) -> torch.Tensor:
        units = observations["units"]
        values = observations["statistics"].unflatten(1, (units.shape[1], -1))
        higher = (values[:, :, None] - values[:, None]).sign() * units[:, None, :, None]
        ranks = higher.sum(dim=2) / units.sum(dim=1)[:, None, None]
        problem = torch.cat((observations["budget"], observations["saved"]), dim=1)
        problem = problem[:, None].expand(-1, units.shape[1], -1)
        return self.score(torch.cat((ranks, observations["skipped"][..., None], problem), dim=2)).squeeze(2)


def regrets(model: MaskablePPO, split: str) -> np.ndarray:
    """Return the regret of one mask for each problem, (problems,): 0 = the optimum, 1 = skipping in a random order."""
    env = gymnasium.make("DAS-Suite-v0", split=split, action="sequence")
    found = []
    for name in env.unwrapped.problem_names:
        observation, info = env.reset(options={"problem": name})
        ended = False
        while not ended:
            action, _ = model.predict(observation, deterministic=True, action_masks=info["action_mask"])
            observation, _, ended, _, info = env.step(int(action))
        found.append(info["regret"] / (info["optimum"] - info["random_mean"]))
    return np.array(found)


def train(total_timesteps: int, seed: int = 0) -> MaskablePPO:
    """Return an agent that learned on the problems of `train`."""
    vec_env = make_sb3_vec_env("DAS-Suite-v0", n_envs=64, seed=seed, action="sequence")
    policy_kwargs = {"features_extractor_class": RankScores, "net_arch": []}
    settings = {"n_steps": 32, "batch_size": 512, "n_epochs": 4, "gamma": 1.0, "learning_rate": 3e-3, "ent_coef": 0.01}
    model = MaskablePPO("MultiInputPolicy", vec_env, policy_kwargs=policy_kwargs, seed=seed, device="cpu", **settings)
    nn.init.eye_(model.policy.action_net.weight)  # the scores are the logits
    return model.learn(total_timesteps)


def main(total_timesteps: int = 60_000, split: str = "test", seed: int = 0) -> float:
    regret = float(regrets(train(total_timesteps, seed), split).mean())
    print(f"mean regret on `{split}`: {regret:.3f}")
    return regret


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--total_timesteps", type=int, default=60_000, help="steps of training")
    parser.add_argument("--split", choices=("train", "valid", "test"), default="test", help="problems to measure on")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
