"""Train a policy on the problems of a suite, by MaskablePPO.

python -m agents policy with out=policy.safetensors                the bundled suite's `train`
python -m agents policy with out=FILE members=5                    five, trained apart, that decide together
python -m agents policy with out=FILE steps=200_000 seed=3 suite=FOLDER
python -m agents policy with out=FILE problems=50                  fewer problems, to see what that costs
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from das_gym.agents.policy.choosing import suite_masks
from das_gym.agents.policy.network import NEIGHBOURS, UnitNetwork, UnitNetworks

import das_gym  # noqa: F401  (registers the environments)
from das_gym.config import choice
from das_gym.runs import PluginSettings
from das_gym.tables.suite import BUDGET_KINDS, DEFAULT_BUDGETS, Suite, load_suite


@dataclass(frozen=True)
class PolicySettings(PluginSettings):
    """The settings of `python -m agents policy`.

    Attributes:
        out: File to write, such as policy.safetensors.
        suite: Folder of a suite. None uses the bundled one.
        steps: Total number of environment steps.
        members: Number of policies to train, with seeds from `seed` on. The policies in a file decide together.
        seed: Random seed.
        n_envs: Number of parallel environments.
        n_steps: Steps of each environment between two updates.
        batch_size: Environment steps in a gradient step.
        n_epochs: Passes over the collected steps at each update.
        learning_rate: Initial learning rate. It falls linearly to 0.
        ent_coef: Weight of the entropy bonus.
        width: Hidden width of the network.
        blocks: Number of blocks of the network.
        statistics: Layer statistics that the policy observes, see `python -m agents list`.
        problems: Number of training problems, drawn by `seed`. None uses all.
        relatives: Problems to add for each model: the same model without one to three of its layers.
        budgets: Kinds of budgets of the problems: a number of layers, a share of MACs, a share of latency.
    """

    out: str
    suite: str | None = None
    steps: int = 400_000
    members: int = 1
    seed: int = 0
    n_envs: int = 64
    n_steps: int = 32
    batch_size: int = 256
    n_epochs: int = 4
    learning_rate: float = 1e-3
    ent_coef: float = 0.01
    width: int = 32
    blocks: int = 2
    statistics: tuple[str, ...] = NEIGHBOURS
    problems: int | None = None
    relatives: int = 0
    budgets: tuple[str, ...] = choice(DEFAULT_BUDGETS, BUDGET_KINDS)

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"`members` is out of range: got {self.members}, expected at least 1")


def mean_scaled(network: UnitNetwork, suite: Suite) -> float:
    """Return the mean reward of the policy's masks on the problems, scaled: 0 = random, 1 = the optimum."""
    which = np.arange(len(suite.problems))
    return float(suite.scaled[suite.rows(which, suite_masks(network, suite, which))].mean())


def train_policy(settings: PolicySettings, log: Any = print) -> UnitNetwork:
    """Train a policy; the one that does best on `valid` is kept.

    Args:
        settings: How.
        log: Told now and then how it does on `train` and `valid`.
    """
    from das_gym.agents.policy.sb3 import SuitePolicy
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.callbacks import BaseCallback

    from das_gym.envs.sb3_vec_env import SB3VecEnv

    env = gymnasium.make_vec(
        "DAS-Suite-v0",
        num_envs=settings.n_envs,
        action="sequence",
        suite=settings.suite,
        statistics=settings.statistics,
        problems=settings.problems,
        relatives=settings.relatives,
        problems_seed=settings.seed,
        budgets=settings.budgets,
    )
    suite: Suite = env.unwrapped.suite  # type: ignore[attr-defined]
    valid = load_suite(settings.suite, "valid", statistics=settings.statistics, budgets=settings.budgets)
    sizes = {"statistics": suite.statistics, "width": settings.width, "blocks": settings.blocks}
    model = MaskablePPO(
        SuitePolicy,
        SB3VecEnv(env),
        policy_kwargs=sizes,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        learning_rate=lambda left: settings.learning_rate * left,
        ent_coef=settings.ent_coef,
        gamma=1.0,
        gae_lambda=0.98,
        seed=settings.seed,
        device="cpu",
    )
    best: dict[str, Any] = {"score": -np.inf}
    started = time.perf_counter()

    class KeepBest(BaseCallback):
        """Keeps the weights with the best result on `valid`."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if (self.num_timesteps // (settings.n_envs * settings.n_steps)) % 5 == 0:
                network = self.model.policy.network
                score, known = mean_scaled(network, valid), mean_scaled(network, suite)
                if score > best["score"]:
                    best.update(score=score, state={k: v.clone() for k, v in network.state_dict().items()})
                passed = f"{self.num_timesteps:>9,} steps, {time.perf_counter() - started:.0f} s"
                log(f"{passed}: train {known:.3f}, valid {score:.3f}")

    model.learn(settings.steps, callback=KeepBest())
    network = model.policy.network
    if mean_scaled(network, valid) < best["score"]:
        network.load_state_dict(best["state"])
    return network.eval()


def main(settings: PolicySettings) -> None:
    """Train the policies and write them to one file."""
    seeds = range(settings.seed, settings.seed + settings.members)
    UnitNetworks(train_policy(replace(settings, seed=seed)) for seed in seeds).save(settings.out)
    print(f"policy: {Path(settings.out).absolute()}")
