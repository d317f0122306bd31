"""The vector environment: n masks on the same examples in one engine call."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from das_gym.envs.skip_env import SkipEnv


class SkipVectorEnv(VectorEnv[np.ndarray, np.ndarray, np.ndarray]):
    """`num_envs` copies of `SkipEnv` that share model and examples: the paper's turn is one step of three.

    Every episode is one step and environments reset within it (autoreset mode SAME_STEP). Since every reset
    tells the same, `info` holds the numbers of the step itself: the keys of `SkipEnv`, each an array of
    (num_envs,), and again under `final_info`, beside `final_obs`, as Gymnasium's wrappers expect.

    Args:
        num_envs: How many masks a step scores.
        render_mode: `ansi` or None.
        kwargs: As for `SkipEnv`.
    """

    metadata = {**SkipEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as in gymnasium.Env

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **kwargs: Any) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs={num_envs}: a vector environment has at least one")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.template = SkipEnv(render_mode=render_mode, **kwargs)
        self.single_observation_space = self.template.observation_space
        self.single_action_space = self.template.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._last: tuple[str, ...] | None = None

    @property
    def n_layers(self) -> int:
        """How many layers can be skipped."""
        return self.template.n_layers

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers, in mask order."""
        return self.template.layer_names

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of an observation is."""
        return self.template.feature_names

    @property
    def skip_num(self) -> int | None:
        """The budget."""
        return self.template.skip_num

    @property
    def macs_full(self) -> int:
        """MACs of one example through the model without adapters."""
        return self.template.macs_full

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Layer statistics for every environment. They share one generator: of a list of seeds, the first counts."""
        first = seed[0] if isinstance(seed, (list, tuple)) else seed
        observation, info = self.template.reset(seed=first, options=options)
        self._np_random, self._np_random_seed = self.template.np_random, self.template.np_random_seed
        arrays = {key: np.repeat(np.array([value]), self.num_envs) for key, value in info.items()}
        return self._repeat(observation), _with_presence(arrays, self.num_envs)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Score `num_envs` masks ((num_envs, n_layers), 1 = skipped) on the same examples."""
        scorer = self.template.scorer
        masks = scorer.check(actions, (self.num_envs, self.n_layers))
        scored = scorer.score(masks, self.template.np_random)
        observations = self._repeat(scorer.observation())
        info = _with_presence(scored.info, self.num_envs)
        everywhere = np.ones(self.num_envs, dtype=bool)
        final = {"final_info": dict(info), "_final_info": everywhere, "_final_obs": everywhere}
        final["final_obs"] = np.array([*observations, None], dtype=object)[:-1]
        self._last = tuple(self.template.describe(m, scored.rewards[i], scored.row(i)) for i, m in enumerate(masks))
        return observations, scored.rewards, everywhere.copy(), np.zeros(self.num_envs, dtype=bool), info | final

    def render(self) -> tuple[str, ...] | None:
        """The last masks in words, for `render_mode="ansi"`."""
        return self._last if self.render_mode == "ansi" else None

    def get_state(self) -> dict[str, Any]:
        """What the next rewards depend on, JSON-able; give it to `set_state` to go on exactly from here."""
        return self.template.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self.template.set_state(state)

    def _repeat(self, observation: np.ndarray) -> np.ndarray:
        return np.repeat(observation[None], self.num_envs, axis=0)


def _with_presence(arrays: dict[str, np.ndarray], num_envs: int) -> dict[str, Any]:
    """Gymnasium's convention: beside each key, `_key` says which environments have it."""
    return arrays | {f"_{key}": np.ones(num_envs, dtype=bool) for key in arrays}
