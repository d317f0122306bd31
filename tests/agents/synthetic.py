"""A small search problem with the interface of the real vector environment: 12 layers, additive and pairwise losses."""

from contextlib import closing
from typing import ClassVar

import gymnasium
import numpy as np
import pytest
from das_gym.agents.searching.scorer import SCORES, open_scorer
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from das_gym.problem.budget import MaskCost

N_LAYERS = 12
ENV_ID = "synthetic:Synthetic-v0"


class StopError(Exception):
    """Stands for a kill between two turns."""


def stop_after(turns):
    """Return an `on_turn` that stops a search in one of its turns."""
    seen = []

    def on_turn(turn):
        seen.append(turn)
        if len(seen) == turns:
            raise StopError

    return on_turn


def check_replays(result):
    """Check that a record is complete: its environment scores the answer as it says."""
    with closing(open_scorer(result.env_id, result.env_kwargs, result.seed)) as scorer:
        rewards, scores = scorer.score(np.array([result.mask], dtype=bool))
    found = {"reward": rewards, **{name: scores[name] for name in SCORES}}
    recorded = {name: getattr(result, name) for name in found}
    assert {name: float(values[0]) for name, values in found.items()} == pytest.approx(recorded, rel=1e-4, abs=1e-4)


class SyntheticVectorEnv(VectorEnv):
    """reward = exp(-loss); `resample` adds noise from `np_random`, `cycle` a drift with the number of steps."""

    metadata: ClassVar[dict] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(self, num_envs=1, skip_num=4, macs_saved=None, reward_batches="fixed", broken_from=None, no_loss=False):
        self.num_envs, self.skip_num = num_envs, skip_num
        self.n_layers = N_LAYERS
        self.layer_names = tuple(f"{stream}.{i}" for stream in ("text", "image") for i in range(6))
        self.macs_full = 1000
        self.feature_names = tuple(f"{layer}/block_influence_tokens" for layer in self.layer_names)
        self.macs_saved = macs_saved
        self.reward_batches, self.broken_from, self.no_loss = reward_batches, broken_from, no_loss
        self.steps = 0
        rng = np.random.default_rng(5)
        self.single = rng.uniform(0.0, 0.4, N_LAYERS)
        self.pairs = np.triu(rng.uniform(-0.05, 0.1, (N_LAYERS, N_LAYERS)), 1)
        self.single_observation_space = spaces.Box(0.0, 1.0, (N_LAYERS,), np.float32)
        self.single_action_space = spaces.MultiBinary(N_LAYERS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def cost_of(self, setting):
        """The cost of masks: each layer is a twentieth."""
        return MaskCost(1000, 1000, np.full(N_LAYERS, 50))

    def losses(self, masks):
        """(m,) losses of (m, 12) masks without noise."""
        x = np.asarray(masks, dtype=float)
        return 0.3 + np.array([(row * self.single).sum() + row @ self.pairs @ row for row in x])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros((self.num_envs, N_LAYERS), dtype=np.float32), {}

    def step(self, actions):
        assert (actions.shape, actions.dtype) == ((self.num_envs, N_LAYERS), np.int8)
        self.steps += 1
        if self.broken_from is not None and self.steps >= self.broken_from:
            raise FileNotFoundError("images/0007.png is missing; put it back and resume")
        losses = self.losses(actions)
        if self.reward_batches == "resample":
            losses = losses + self.np_random.normal(0.0, 0.05)
        elif self.reward_batches == "cycle":
            losses = losses + 0.01 * (self.steps % 7)
        if self.no_loss:
            losses = np.full(self.num_envs, np.inf)
        skipped = actions.sum(axis=1).astype(np.int64)
        info = {
            "loss": losses,
            "metric": np.exp(-losses) / 2,
            "macs": 1000 - 50 * skipped,
            "macs_saved": 0.05 * skipped,
            "feasible": np.full(self.num_envs, True) if self.skip_num is None else skipped == self.skip_num,
        }
        ended = np.ones(self.num_envs, dtype=bool)
        return np.zeros((self.num_envs, N_LAYERS), dtype=np.float32), np.exp(-losses), ended, ~ended, info

    def get_state(self):
        return {"steps": self.steps, "rng": self.np_random.bit_generator.state}

    def set_state(self, state):
        self.steps = state["steps"]
        self.np_random.bit_generator.state = state["rng"]


if "Synthetic-v0" not in gymnasium.registry:
    gymnasium.register("Synthetic-v0", entry_point="synthetic:none", vector_entry_point="synthetic:SyntheticVectorEnv")
