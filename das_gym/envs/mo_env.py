"""More than one objective: environments with a vector for a reward, in the API of MO-Gymnasium, which they do not need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from das_gym.config import check_names
from das_gym.envs.scored_env import ScoredEnv
from das_gym.envs.scored_vector_env import ScoredVectorEnv
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.front import dominated_volume, undominated_rows
from das_gym.problem.mask_cost import SAVED

TASK = "task"
OBJECTIVES = (TASK, *SAVED)
DEFAULT_OBJECTIVES = (TASK, "macs_saved")


class ManyObjectivesEnv(ScoredEnv):
    """Turns the reward of an environment into a vector; comes before that environment's class."""

    def __init__(self, objectives: Sequence[str] = DEFAULT_OBJECTIVES, **arguments: Any) -> None:
        _refuse_sync_vector_env()
        names = tuple(objectives) if not isinstance(objectives, str) else (objectives,)
        check_names(names, OBJECTIVES, "objective")
        if len(names) != len(set(names)) or len(names) < 2 or names[0] != TASK:
            raise ValueError(f"objectives={names}: give {TASK!r} first, then one or more of {', '.join(SAVED)}, each once")
        budget: dict[str, Any] = {} if {"skip_num", *SAVED} & set(arguments) else {"skip_num": None}
        super().__init__(**budget, **arguments)
        self.objectives = names
        self._arguments["objectives"] = names
        self._costs = [self.scorer.cost_of(name) for name in names[1:]]
        objective = self.scorer.objective
        low = [min(objective.low - 1.0, 0.0), *(min(cost.range[0], 0.0) for cost in self._costs)]
        high = [max(objective.high, 0.0), *(max(cost.range[1], 0.0) for cost in self._costs)]
        self.reward_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
        self.reward_dim = len(names)
        self._front = np.empty((0, len(names)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's own; a seed also forgets the masks that `hypervolume` is of."""
        observation, info = super().reset(seed=seed, options=options)
        if seed is not None:
            self._front = self._front[:0]
        return observation, info | {"hypervolume": dominated_volume(self._front)}

    def step(self, action: Any) -> Any:
        """As the environment's own, with a (reward_dim,) float32 reward."""
        observation, reward, ended, truncated, info = super().step(action)
        vector = np.zeros(self.reward_dim)
        if ended and self.last_mask is not None:
            vector = self.reward_vectors(np.array([reward]), self.last_mask[None], np.array([info["feasible"]]))[0]
            if info["feasible"]:
                self._front = _front_with(self._front, vector)
        return (
            observation,
            vector.astype(np.float32),
            ended,
            truncated,
            info | {"hypervolume": dominated_volume(self._front)},
        )

    def reward_vectors(self, rewards: Floats, masks: Masks, feasible: np.ndarray) -> Floats:
        """(m, reward_dim): (m,) rewards, and what (m, n_layers) masks save, which is nothing where they miss a budget."""
        return np.column_stack((rewards, self._saved(masks) * feasible[:, None]))

    def _saved(self, masks: Masks) -> Floats:
        """(m, reward_dim - 1) share of each cost that (m, n_layers) masks save."""
        return np.stack([cost.saved(masks) for cost in self._costs], axis=1)

    def get_state(self) -> dict[str, Any]:
        """As the environment's own, with the front so far."""
        return {**super().get_state(), "front": self._front.tolist()}

    def set_state(self, state: dict[str, Any]) -> None:
        """As the environment's own."""
        super().set_state(state)
        self._front = np.array(state["front"]).reshape(-1, self.reward_dim)


class ManyObjectivesVectorEnv(ScoredVectorEnv):
    """As `ScoredVectorEnv`, of environments of many objectives: rewards are (num_envs, reward_dim) float32.

    `info["hypervolume"]`, (num_envs,), is of each copy's own rewards since `reset` was last given a seed.

    Args:
        num_envs: How many masks a step scores.
        arguments: As for the environment.

    Attributes:
        reward_space: Box of the rewards of one copy, as MO-Gymnasium's vector environments have it.
        reward_dim: How many objectives there are.
    """

    template: ManyObjectivesEnv

    def __init__(self, num_envs: int = 1, **arguments: Any) -> None:
        super().__init__(num_envs, **arguments)
        self.reward_dim = self.template.reward_dim
        self.reward_space = self.template.reward_space
        self._fronts = [np.empty((0, self.reward_dim))] * num_envs

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """As `ScoredVectorEnv.reset`; a seed also forgets the masks that `hypervolume` is of."""
        observations, info = super().reset(seed=seed, options=options)
        if seed is not None:
            self._fronts = [front[:0] for front in self._fronts]
        return observations, info | {"hypervolume": self._volumes()}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """As `ScoredVectorEnv.step`, with (num_envs, reward_dim) float32 rewards."""
        observations, rewards, ended, truncated, info = super().step(actions)
        vectors = np.zeros((self.num_envs, self.reward_dim))
        if ended.any():
            feasible, masks = info["feasible"][ended], self.last_masks
            assert masks is not None
            vectors[ended] = self.template.reward_vectors(rewards[ended], masks[ended], feasible)
            for index in np.flatnonzero(ended)[feasible]:
                self._fronts[index] = _front_with(self._fronts[index], vectors[index])
        told = {"hypervolume": self._volumes(), "_hypervolume": np.ones(self.num_envs, dtype=bool)}
        if "final_info" in info:
            info["final_info"] |= told | {"_hypervolume": ended}
        return observations, vectors.astype(np.float32), ended, truncated, info | told

    def get_state(self) -> dict[str, Any]:
        """As `ScoredVectorEnv.get_state`, with the fronts so far."""
        return {**super().get_state(), "fronts": [front.tolist() for front in self._fronts]}

    def set_state(self, state: dict[str, Any]) -> None:
        """As `ScoredVectorEnv.set_state`."""
        super().set_state(state)
        self._fronts = [np.array(front).reshape(-1, self.reward_dim) for front in state["fronts"]]

    def _volumes(self) -> Floats:
        """(num_envs,) volume between the origin and the rewards of each copy."""
        return np.array([dominated_volume(front) for front in self._fronts])


def _refuse_sync_vector_env() -> None:
    """Refuse to be made by Gymnasium's SyncVectorEnv, which keeps one number a reward and fails amid the first step.

    Gymnasium does not tell an environment who makes it, so the callers are looked at. MO-Gymnasium's subclass keeps vectors.

    Raises:
        ValueError: names the setting.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if type(frame.f_locals.get("self")) is SyncVectorEnv:
            raise ValueError(
                '`vectorization_mode` cannot hold reward vectors: got "sync", expected None or "async". Leave '
                "`vectorization_mode` out."
            )
        frame = frame.f_back


def _front_with(front: Floats, point: Floats) -> Floats:
    """What of a front and another point nothing else beats."""
    points = np.concatenate((front, point[None]))
    return points[undominated_rows(points)]
