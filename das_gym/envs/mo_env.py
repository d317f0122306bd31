"""Environments with several objectives: a reward wrapper in the API of MO-Gymnasium, which it does not need.

The ids with `-MO-` make a single-objective environment and wrap it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorWrapper

from das_gym.config import check_names
from das_gym.envs.scored_env import ScoredEnv
from das_gym.envs.vector_env import ScoredVectorEnv
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.front import dominated_volume, undominated_rows
from das_gym.problem.mask_cost import SAVED
from das_gym.registration import find_class

TASK = "task"
OBJECTIVES = (TASK, *SAVED)
DEFAULT_OBJECTIVES = (TASK, "macs_saved")


class Objectives:
    """The objectives of an environment: the reward of a mask, and the share that it saves of each cost.

    Args:
        env: The environment.
        names: `task` first, then one or more keys of `SAVED`.

    Attributes:
        reward_space: Box of the reward vectors.

    Raises:
        ValueError: other names, or one twice.
    """

    def __init__(self, env: ScoredEnv, names: Sequence[str]) -> None:
        names = (names,) if isinstance(names, str) else tuple(names)
        check_names(names, OBJECTIVES, "objective")
        if len(names) != len(set(names)) or len(names) < 2 or names[0] != TASK:
            raise ValueError(
                f"`objectives` is not allowed: got {names}, expected {TASK!r} first, then one or more of {', '.join(SAVED)}"
            )
        self.names = names
        self.costs = [env.scorer.cost_of(name) for name in names[1:]]
        objective = env.scorer.objective
        low = [min(objective.low - 1.0, 0.0), *(min(cost.range[0], 0.0) for cost in self.costs)]
        high = [max(objective.high, 0.0), *(max(cost.range[1], 0.0) for cost in self.costs)]
        self.reward_space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)

    def announce(self, env: Any) -> None:
        """Set the attributes that MO-Gymnasium's wrappers and MORL-Baselines read from `env.unwrapped`."""
        env.reward_space, env.reward_dim, env.objectives = self.reward_space, len(self.names), self.names

    def saved(self, masks: Masks) -> Floats:
        """Return (m, n_objectives - 1): the share of each cost that (m, n_layers) masks save."""
        return np.stack([cost.saved(masks) for cost in self.costs], axis=1)

    def vectors(self, rewards: Floats, masks: Masks, feasible: np.ndarray, ended: np.ndarray) -> Floats:
        """Return (m, n_objectives) reward vectors: no savings off the budget, and zeros within an episode."""
        vectors = np.column_stack((rewards, self.saved(masks) * feasible[:, None]))
        return np.where(ended[:, None], vectors, 0.0)


class MultiObjectiveReward(gymnasium.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Turns the reward of an environment into a vector: the reward of the mask, and the share that it saves of each cost.

    ## Description
    As the environment's; without a budget unless one is given, since what to save is an objective here. The API is that
    of MO-Gymnasium (`reward_space`, `reward_dim`, a vector from `step`), whose wrappers and MORL-Baselines take it.

    ## Rewards
    (reward_dim,) float32: the environment's reward, then the share of each cost that the mask saves, 1 = all of it, negative
    where the mask costs more than the full model. Zeros within a sequence; a mask that breaks a budget saves nothing.

    ## Information
    As the environment's, and `hypervolume`: the volume between the origin and all rewards since `reset` last had a seed.

    ## Version History
    v0: first.

    Args:
        env: A single-objective environment of das_gym.
        objectives: `task` and one or more of `macs_saved`, `latency_saved`, `parameters_saved`, `memory_saved`.

    Raises:
        ValueError: other objectives.

    Example:
        >>> env = gymnasium.make("DAS-METER-VQA-Tabular-MO-v0", objectives=("task", "macs_saved"))
        >>> _ = env.reset(seed=0)
        >>> env.step(env.action_space.sample())[1].shape
        (2,)
    """

    def __init__(self, env: ScoredEnv, objectives: Sequence[str] = DEFAULT_OBJECTIVES) -> None:
        super().__init__(env)
        self._objectives = Objectives(env, objectives)
        self._front = np.empty((0, len(self._objectives.names)))
        self._objectives.announce(env)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._objectives.announce(self.unwrapped)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the environment. A seed also clears the rewards in `hypervolume`."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._front = self._front[:0]
        return observation, info | {"hypervolume": dominated_volume(self._front)}

    def step(self, action: Any) -> Any:
        """Step the environment, with a (reward_dim,) float32 reward."""
        observation, reward, ended, truncated, info = self.env.step(action)
        masks, feasible = self.get_wrapper_attr("last_mask")[None], np.array([info["feasible"]])
        (vector,) = self._objectives.vectors(np.array([reward]), masks, feasible, np.array([ended]))
        if ended and info["feasible"]:
            self._front = _front_with(self._front, vector)
        info |= {"hypervolume": dominated_volume(self._front)}
        return observation, vector.astype(np.float32), ended, truncated, info

    def true_front(self) -> tuple[Masks, Floats]:
        """Return the Pareto front of all masks of a table: (m, n_layers) masks within the budget and their rewards.

        `dominated_volume` of the rewards is the largest possible `hypervolume`.
        """
        table, scorer = self.get_wrapper_attr("table"), self.get_wrapper_attr("scorer")
        kept = scorer.budget.is_kept_by(table.masks)
        masks, rewards = table.masks[kept], table.values(scorer.objective, scorer.split)[kept]
        points = np.column_stack((rewards, self._objectives.saved(masks)))
        rows = undominated_rows(points)
        return masks[rows], points[rows]

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environment and the front so far."""
        return {**self.unwrapped.get_state(), "front": self._front.tolist()}  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.unwrapped.set_state(state)  # type: ignore[attr-defined]
        self._front = np.array(state["front"]).reshape(-1, len(self._objectives.names))


class MultiObjectiveVectorReward(VectorWrapper):
    """Like `MultiObjectiveReward`, for vector environments: rewards are (num_envs, reward_dim) float32.

    `info["hypervolume"]`, (num_envs,), is of each copy's own rewards since `reset` was last given a seed. `reward_space` is
    that of one copy, as in MO-Gymnasium's vector environments.
    """

    def __init__(self, env: ScoredVectorEnv, objectives: Sequence[str] = DEFAULT_OBJECTIVES) -> None:
        super().__init__(env)
        self._objectives = Objectives(env.template, objectives)
        self._objectives.announce(env)
        self.reward_space = self._objectives.reward_space
        self._fronts = [np.empty((0, len(self._objectives.names)))] * env.num_envs

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. A seed also clears the rewards in `hypervolume`."""
        observations, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        if seed is not None:
            self._fronts = [front[:0] for front in self._fronts]
        return observations, info | self._volumes()

    def step(self, actions: np.ndarray) -> tuple[Any, Any, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the environments, with (num_envs, reward_dim) float32 rewards."""
        observations, rewards, ended, truncated, info = self.env.step(actions)
        masks, feasible = self.env.unwrapped.last_masks, info["feasible"]  # type: ignore[attr-defined]
        vectors = self._objectives.vectors(rewards, masks, feasible, ended)
        for index in np.flatnonzero(ended & feasible):
            self._fronts[index] = _front_with(self._fronts[index], vectors[index])
        volumes = self._volumes()
        if "final_info" in info:
            info["final_info"] |= volumes | {"_hypervolume": ended}
        return observations, vectors.astype(np.float32), ended, truncated, info | volumes

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environments and the fronts so far."""
        return {**self.env.get_state(), "fronts": [front.tolist() for front in self._fronts]}  # type: ignore[attr-defined]

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.env.set_state(state)  # type: ignore[attr-defined]
        self._fronts = [np.array(front).reshape(-1, len(self._objectives.names)) for front in state["fronts"]]

    def _volumes(self) -> dict[str, Any]:
        volumes = np.array([dominated_volume(front) for front in self._fronts])
        return {"hypervolume": volumes, "_hypervolume": np.ones(self.num_envs, dtype=bool)}


def make_env(env: str, objectives: Sequence[str] = DEFAULT_OBJECTIVES, **arguments: Any) -> MultiObjectiveReward:
    """Make an environment (`env`: "module:name" of its class) with vector rewards; without a budget unless one is given."""
    return MultiObjectiveReward(find_class(env)(**_without_budget(arguments)), objectives)


def make_vector_env(
    env: str, num_envs: int = 1, objectives: Sequence[str] = DEFAULT_OBJECTIVES, **arguments: Any
) -> MultiObjectiveVectorReward:
    """Make the vector environment of `env` with vector rewards; see `make_env`."""
    vector = f"{env.removesuffix('Env')}VectorEnv"
    return MultiObjectiveVectorReward(find_class(vector)(num_envs=num_envs, **_without_budget(arguments)), objectives)


# `gymnasium.make` reads the render modes of what it calls.
make_env.metadata = make_vector_env.metadata = ScoredEnv.metadata  # type: ignore[attr-defined]


def _without_budget(arguments: dict[str, Any]) -> dict[str, Any]:
    return arguments if {"skip_num", *SAVED} & set(arguments) else {"skip_num": None, **arguments}


def _front_with(front: Floats, point: Floats) -> Floats:
    """Return the Pareto front of a front and another point."""
    points = np.concatenate((front, point[None]))
    return points[undominated_rows(points)]
