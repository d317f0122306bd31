"""Environments with several objectives: a reward wrapper in the API of MO-Gymnasium, which it does not need.

The ids with `-MO-` make a single-objective environment and wrap it.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorWrapper

from das_gym.envs.episodes import ScoredEnv
from das_gym.names import check_names
from das_gym.problem.budget import SAVED, Floats, Masks
from das_gym.problem.mask_space import dominated_volume, undominated_rows
from das_gym.registration import find_class

TASK = "task"
OBJECTIVES = (TASK, *SAVED)
DEFAULT_OBJECTIVES = (TASK, "macs_saved")


class VectorReward:
    """Base of both wrappers: makes the reward vectors, and keeps the Pareto fronts of those so far.

    Each copy in a vector environment has its own fronts, one a problem: a suite has many, other environments have one.
    """

    env: Any
    unwrapped: Any

    def __init__(
        self, env: Any, objectives: Sequence[str] = DEFAULT_OBJECTIVES, reference: Sequence[float] | None = None
    ) -> None:
        super().__init__(env)  # type: ignore[call-arg]  # of Gymnasium's wrapper
        names = (objectives,) if isinstance(objectives, str) else tuple(objectives)
        check_names(names, OBJECTIVES, "objective")
        if len(names) != len(set(names)) or len(names) < 2 or names[0] != TASK:
            raise ValueError(
                f"`objectives` is not allowed: got {names}, expected {TASK!r} first, then one or more of {', '.join(SAVED)}"
            )
        if reference is not None and (np.shape(reference) != (len(names),) or not np.isfinite(reference).all()):
            raise ValueError(f"`reference` is not allowed: got {reference}, expected {len(names)} finite numbers")
        self._names = names
        self._given_reference = reference
        self._fronts: dict[tuple[int, int], Floats] = {}
        self._volumes: dict[tuple[int, int], float] = {}
        self._announce()

    def _announce(self) -> None:
        """Set what MO-Gymnasium's wrappers and MORL-Baselines read from `env.unwrapped`; `info` gets the savings."""
        ranges = self.unwrapped.episodes.add_savings_to_info(self._names[1:])
        # 0 is the reward within an episode, and what a mask off its budget saves.
        low = [min(0.0, *ends) for ends in ranges]
        high = [max(0.0, *ends) for ends in ranges]
        space = spaces.Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)
        self.unwrapped.reward_space = space
        self.unwrapped.reward_dim = len(ranges)
        self.unwrapped.objectives = self._names

    @cached_property
    def reference(self) -> Floats:
        """(reward_dim,) the point that `hypervolume` is measured from."""
        if self._given_reference is not None:
            return np.array(self._given_reference, dtype=np.float64)
        reference = np.zeros(len(self._names))
        reference[0] = self.unwrapped.episodes.reference_reward()
        return reference

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environment and the fronts so far; environments of a suite have no state."""
        return {**self.unwrapped.get_state(), "fronts": [[*key, front.tolist()] for key, front in self._fronts.items()]}

    def set_state(self, state: dict[str, Any]) -> None:
        self.unwrapped.set_state(state)
        self._fronts = {(copy, problem): np.array(front) for copy, problem, front in state["fronts"]}
        self._volumes = {}

    def _vectors(self, rewards: Floats, info: Mapping[str, Any], scored: np.ndarray) -> Floats:
        """Return (m, reward_dim) reward vectors: no savings off the budget, and zeros within an episode."""
        saved = np.stack([np.atleast_1d(info[name]) for name in self._names[1:]], axis=1)
        vectors = np.column_stack((rewards, saved * np.atleast_1d(info["feasible"])[:, None]))
        return np.where(scored[:, None], vectors, 0.0)

    def _add(self, copy: int, problem: int, point: Floats) -> None:
        front = self._fronts.get((copy, problem), np.empty((0, len(point))))
        # A dominated point changes nothing, and most points are.
        if not (front >= point).all(axis=1).any():
            points = np.concatenate((front, point[None]))
            self._fronts[copy, problem] = points[undominated_rows(points)]
            self._volumes.pop((copy, problem), None)

    def _volume(self, copy: int, problem: int) -> float:
        key = copy, problem
        if key in self._fronts and key not in self._volumes:
            self._volumes[key] = dominated_volume(self._fronts[key], self.reference)
        return self._volumes.get(key, 0.0)

    def _forget(self) -> None:
        self._fronts = {}
        self._volumes = {}


class MultiObjectiveReward(VectorReward, gymnasium.Wrapper[np.ndarray, Any, np.ndarray, Any]):
    """Turns the reward of an environment into a vector: the reward of the mask, and the share that it saves of each cost.

    ## Description
    As the environment's, but without a budget unless one is given, since savings are objectives here. Problems of a suite
    keep their budgets. The API is that of MO-Gymnasium (`reward_space`, `reward_dim`, a vector from `step`), whose wrappers
    and MORL-Baselines take it.

    ## Rewards
    (reward_dim,) float32: the environment's reward, then the share of each cost that the mask saves, 1 = all of it, negative
    where the mask costs more than the full model. Zeros within a sequence; a mask that breaks a budget saves nothing. The
    first entry of `DAS-Suite-Search-MO-v0` is each mask's own scaled reward instead of its improvement.

    ## Information
    As the environment's, with what the mask saves of each objective, and `hypervolume`: the volume between `reference` and
    all rewards since `reset` last had a seed. In a suite, only the rewards of the problem of this episode count; in a search
    of a suite, only those of this episode.

    ## Version History
    v0: first.

    Args:
        env: A single-objective environment of das_gym.
        objectives: `task` and one or more of `macs_saved`, `latency_saved`, `parameters_saved`, `memory_saved`.
        reference: The point that `hypervolume` is measured from, one number per objective. None = 0 for each; but for
            rewards that may be negative, such as `neg_loss`, the task's is the reward of skipping every layer, for which a
            model scores one mask that `evaluations` does not count.

    Example:
        >>> env = gymnasium.make("DAS-METER-VQA-Tabular-MO-v0", objectives=("task", "macs_saved"))
        >>> _ = env.reset(seed=0)
        >>> env.step(env.action_space.sample())[1].shape
        (2,)
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._announce()  # unpickling makes the environment again

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset the environment. A seed, or a new search of a suite, also clears the rewards in `hypervolume`."""
        observation, info = self.env.reset(seed=seed, options=options)
        if seed is not None or "best" in info:
            self._forget()
        return observation, info | {"hypervolume": self._volume(0, info.get("problem", 0))}

    def step(self, action: Any) -> Any:
        """Step the environment, with a (reward_dim,) float32 reward."""
        observation, reward, ended, truncated, info = self.env.step(action)
        scored = ended or "scaled_reward" in info  # each mask of a search of a suite is complete
        (vector,) = self._vectors(np.array([info.get("scaled_reward", reward)]), info, np.array([scored]))
        problem = info.get("problem", 0)
        if scored and info["feasible"]:
            self._add(0, problem, vector)
        info |= {"hypervolume": self._volume(0, problem)}
        return observation, vector.astype(np.float32), ended, truncated, info

    def true_front(self) -> tuple[Masks, Floats]:
        """Return the Pareto front of all masks of a table: (m, n_layers) masks within the budget and their rewards.

        `dominated_volume` of the rewards from `reference` is the largest possible `hypervolume`.
        """
        table = self.get_wrapper_attr("table")
        scorer = self.get_wrapper_attr("scorer")
        kept = scorer.budget.is_feasible(table.masks)
        masks = table.masks[kept]
        rewards = table.values(scorer.objective, scorer.split)[kept]
        points = np.column_stack((rewards, *(scorer.cost_of(name).saved(masks) for name in self._names[1:])))
        rows = undominated_rows(points)
        return masks[rows], points[rows]


class MultiObjectiveVectorReward(VectorReward, VectorWrapper):
    """Like `MultiObjectiveReward`, for vector environments: rewards are (num_envs, reward_dim) float32.

    `info["hypervolume"]`, (num_envs,), is of each copy's own rewards since `reset` was last given a seed.
    """

    reward_space = property(attrgetter("unwrapped.reward_space"), doc="That of one copy.")

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment. A seed also clears the rewards in `hypervolume`."""
        observations, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._forget()
        return observations, info | self._volume_info(info)

    def step(self, actions: np.ndarray) -> tuple[Any, Any, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step the environments, with (num_envs, reward_dim) float32 rewards."""
        observations, rewards, ended, truncated, info = self.env.step(actions)
        vectors = self._vectors(rewards, info, ended)
        problems = self._problems(info)
        for index in np.flatnonzero(ended & info["feasible"]).tolist():
            self._add(index, problems[index], vectors[index])
        volumes = self._volume_info(info)
        if "final_info" in info:
            info["final_info"] |= volumes | {"_hypervolume": ended}
        return observations, vectors.astype(np.float32), ended, truncated, info | volumes

    def _problems(self, info: Mapping[str, Any]) -> list[int]:
        return np.broadcast_to(info.get("problem", 0), self.num_envs).tolist()

    def _volume_info(self, info: Mapping[str, Any]) -> dict[str, Any]:
        volumes = np.array([self._volume(*pair) for pair in enumerate(self._problems(info))])
        return {"hypervolume": volumes, "_hypervolume": np.ones(self.num_envs, dtype=bool)}


def make_env(
    env: str, objectives: Sequence[str] = DEFAULT_OBJECTIVES, reference: Sequence[float] | None = None, **arguments: Any
) -> MultiObjectiveReward:
    """Make an environment (`env`: "module:name" of its class) with vector rewards; without a budget unless one is given."""
    cls = _own_class(env)
    return MultiObjectiveReward(cls(**_without_budget(cls, arguments)), objectives, reference)


def make_vector_env(
    env: str, objectives: Sequence[str] = DEFAULT_OBJECTIVES, reference: Sequence[float] | None = None, **arguments: Any
) -> MultiObjectiveVectorReward:
    """Make the vector environment of `env` with vector rewards; see `make_env`."""
    cls = _own_class(f"{env.removesuffix('Env')}VectorEnv")
    made = cls(**_without_budget(cls.env_class, arguments))
    return MultiObjectiveVectorReward(made, objectives, reference)


def _own_class(name: str) -> Any:
    """Return the class that an id is registered with; an `env` that a caller passes instead could name any class."""
    if not name.startswith("das_gym.envs."):
        raise ValueError(f"`env` is set by the environment's id: got {name}. Leave it out.")
    return find_class(name)


# `gymnasium.make` reads the render modes of what it calls.
make_env.metadata = make_vector_env.metadata = ScoredEnv.metadata  # type: ignore[attr-defined]


def _without_budget(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    if not issubclass(cls, ScoredEnv) or {"skip_num", *SAVED} & set(arguments):
        return arguments
    return {"skip_num": None, **arguments}
