"""The bridge to Stable-Baselines3: its `VecEnv` around a vector environment of das_gym.

    PPO("MlpPolicy", make_sb3_vec_env("DAS-METER-VQA-v0", n_envs=16, action="sequence"))

One step of all n environments scores their masks in one engine call; Stable-Baselines3's own `make_vec_env` steps n single
environments instead.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from das_gym.envs.episodes import MaskVectorEnv

METHODS_BY_ENV = ("action_masks", "render")
"""Methods of a das_gym vector environment that return one value per environment; others return one for all."""

FINAL_KEYS = ("final_obs", "_final_obs", "final_info", "_final_info")


class SB3VecEnv(VecEnv):
    """A `VecEnv` of Stable-Baselines3 around a vector environment of das_gym, wrapped by Gymnasium's wrappers or not.

    Episodes that end are reset within the step, and `infos[i]` then describes the end of the episode, with
    `terminal_observation` and `TimeLimit.truncated`. Attributes and methods are the vector environment's: one for all.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        if not isinstance(env.unwrapped, MaskVectorEnv):
            raise ValueError(
                f"`env` is not supported: got {env}, expected das_gym's own vector environment. Make it without "
                "`vectorization_mode`."
            )
        self.env = env
        self.spec = env.spec
        self._base = env.unwrapped
        self._actions: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Return the first observations, with the seeds and options that were set."""
        if any(options != self._options[0] for options in self._options):
            raise ValueError(f"`options` differ: got {self._options}, expected the same for all environments")
        seeds: Any = None if all(seed is None for seed in self._seeds) else list(self._seeds)
        observations, info = self.env.reset(seed=seeds, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = info_rows(info, self.num_envs)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Return observations, rewards (num_envs,) float32, dones (num_envs,) bool, and infos."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        dones = terminated | truncated
        infos = info_rows({key: value for key, value in info.items() if key not in FINAL_KEYS}, self.num_envs)
        if dones.any():
            last = info_rows(_changed(info["final_info"], info), self.num_envs)
            final = info["final_obs"]
            for index in np.flatnonzero(dones).tolist():
                self.reset_infos[index] = infos[index]
                # wrappers such as RecordEpisodeStatistics add keys next to final_info
                infos[index] = {**infos[index], **last[index], "terminal_observation": final[index]}
        for each, cut_off in zip(infos, (truncated & ~terminated).tolist(), strict=True):
            each["TimeLimit.truncated"] = cut_off
        return observations, np.asarray(rewards, dtype=np.float32), dones, infos

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return the attribute, once for each environment."""
        value = getattr(self._base, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set an attribute of all environments; ValueError for some `indices` only."""
        if indices is not None and set(self._get_indices(indices)) != set(range(self.num_envs)):
            raise ValueError(
                f"`indices` is not supported: got {indices}, expected None or all, since the environments share attributes"
            )
        setattr(self._base, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method and return the result of each environment; it is called once."""
        result = getattr(self._base, method_name)(*method_args, **method_kwargs)
        by_env = method_name in METHODS_BY_ENV and result is not None
        return [result[index] if by_env else result for index in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Return for each environment whether the vector environment is wrapped in that class."""
        env = self.env
        found = False
        while isinstance(env, VectorWrapper):
            found = found or isinstance(env, wrapper_class)
            env = env.env
        return [found for _ in self._get_indices(indices)]

    def get_images(self) -> list[Any]:
        return self.env_method("render")


def make_sb3_vec_env(env_id: str, n_envs: int = 1, seed: int | None = None, **kwargs: Any) -> VecEnv:
    """Return environments for Stable-Baselines3, with the statistics of episodes that it logs.

    Args:
        env_id: As for `gymnasium.make_vec`, such as "DAS-METER-VQA-v0".
        n_envs: Number of environments.
        seed: Seed of the first reset; None = random.
        kwargs: Settings of the environment, such as `skip_num`.

    Example:
        >>> from stable_baselines3 import PPO
        >>> envs = make_sb3_vec_env("DAS-METER-VQA-Tabular-v0", n_envs=16, action="scores")
        >>> model = PPO("MlpPolicy", envs, n_steps=32)
    """
    vec_env = SB3VecEnv(gymnasium.make_vec(env_id, num_envs=n_envs, **kwargs))
    vec_env.seed(seed)
    return VecMonitor(vec_env)


def _changed(info: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of an info, with their `_key`, that are not the same array in the other info."""
    same = {key for key, values in info.items() if values is other.get(key)}
    return {key: values for key, values in info.items() if key not in same and key.removeprefix("_") not in same}


def info_rows(info: Mapping[str, Any], num_envs: int) -> list[dict[str, Any]]:
    """Return the info of a vector environment as one dict per environment, with plain numbers."""
    columns: dict[str, Any] = {}
    some: dict[str, tuple[Any, Any]] = {}
    for key, values in info.items():
        if key.startswith("_") and key[1:] in info:
            continue
        present: Any = info.get("_" + key)
        if type(values) is np.ndarray:
            column = values.tolist() if values.ndim == 1 else values
        else:
            column = info_rows(values, num_envs) if isinstance(values, Mapping) else values
        if present is None or np.count_nonzero(present) == num_envs:
            columns[key] = column
        else:
            some[key] = column, present
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] if columns else []
    rows = rows or [{} for _ in range(num_envs)]
    for key, (column, present) in some.items():
        for index in np.flatnonzero(present).tolist():
            rows[index][key] = column[index]
    return rows
