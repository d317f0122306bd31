"""Vector environments: n episodes side by side, whose masks are scored together."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from das_gym.envs.actions import Moves
from das_gym.envs.episodes import Episodes, MaskEnv, ScoredEnv
from das_gym.envs.rendering import LastStep, render
from das_gym.problem.budget import is_whole


class MaskVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies of one environment; a step scores the masks of all episodes that end with it at once.

    Environments reset within the step (autoreset mode SAME_STEP): `final_obs` and `final_info` describe the end of an
    episode. `info` holds the numbers of the step itself; only `action_mask` belongs to the state after the reset, for which
    the next action is chosen. With `vectorization_mode="sync"`, `gymnasium.make_vec` makes one that resets in the next step.

    Args:
        num_envs: How many episodes run side by side.
        render_mode: `ansi`, `rgb_array` or None.
        kwargs: Arguments of the single environment.
    """

    metadata = {**MaskEnv.metadata, "autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012 - as in gymnasium.Env
    autoreset_mode = AutoresetMode.SAME_STEP  # TorchRL reads it here, Gymnasium's wrappers in the metadata
    env_class: ClassVar[type[Any]]
    template: Any

    def __init__(self, num_envs: int = 1, render_mode: str | None = None, **kwargs: Any) -> None:
        if not is_whole(num_envs) or num_envs < 1:
            raise ValueError(f"`num_envs` is out of range: got {num_envs!r}, expected an integer of at least 1")
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.template = self.env_class(render_mode=render_mode, **kwargs)
        self.episodes: Episodes = self.template.episodes.copies(num_envs)
        self.mode = self.episodes.mode
        self.single_observation_space = self.template.observation_space
        self.single_action_space = self.template.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._last: tuple[Moves, np.ndarray, dict[str, np.ndarray]] | None = None

    @property
    def last_masks(self) -> np.ndarray | None:
        """(num_envs, n_layers) bool: masks after the last step, also of episodes that ended with it."""
        return None if self._last is None else self._last[0].masks.copy()

    def action_masks(self) -> np.ndarray:
        """Return (num_envs, n_choices) bool: actions that have an effect now."""
        return self.mode.action_masks()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return the first observations. All share one generator, seeded by the first of several seeds."""
        super().reset(seed=self._first_seed(seed))
        self.episodes.reset(self.np_random, self._first_seed(seed) is not None, options)
        self._last = None
        return self.episodes.observe(), with_presence(self.episodes.reset_info(), np.ones(self.num_envs, dtype=bool))

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take an action in each environment, and score the masks that are complete."""
        moves = self.episodes.step(actions, (self.num_envs,))
        ended = moves.ended
        rewards, info = self.episodes.score(moves, self.np_random)
        self._last = (moves, rewards, info)
        final: dict[str, Any] = {}
        if ended.any():
            final_info = with_presence(info, ended)
            final = {"final_obs": self._rows_of(ended), "_final_obs": ended, "final_info": final_info, "_final_info": ended}
            self.episodes.begin(ended, self.np_random)
            if "action_mask" in info:  # the next action is chosen in the state after the reset
                info = info | {"action_mask": self.mode.action_masks()}
        present = with_presence(info, np.ones(self.num_envs, dtype=bool))
        return self.episodes.observe(), rewards, ended, np.zeros(self.num_envs, dtype=bool), present | final

    def render(self) -> tuple[Any, ...] | None:
        """Return the architecture under each episode's last mask; see `das_gym.envs.rendering.render`."""
        if self.render_mode is None:
            return None
        steps = [self._last_step(row) for row in range(self.num_envs)]
        return tuple(render(self.render_mode, self.episodes.view(last, row), last) for row, last in enumerate(steps))

    def _last_step(self, row: int) -> LastStep | None:
        """Return the last step of an episode; None right after `reset`."""
        if self._last is None:
            return None
        moves, rewards, info = self._last
        row_info = {key: values[row] for key, values in info.items()}
        return self.episodes.last_step(moves.masks[row], float(rewards[row]), row_info, bool(moves.ended[row]))

    def _first_seed(self, seed: int | list[int | None] | None) -> int | None:
        """Return the one seed that counts: all environments share one generator."""
        if not isinstance(seed, (list, tuple)):
            return seed
        if len(seed) != self.num_envs:
            raise ValueError(f"`seed` has the wrong length: got {len(seed)} seeds, expected one or {self.num_envs}")
        return seed[0]

    def _rows_of(self, which: np.ndarray) -> np.ndarray:
        """Return an object array with the observations of (num_envs,) bool rows, None in others."""
        observations = self.episodes.observe()
        if isinstance(observations, dict):
            columns = zip(*observations.values(), strict=True)
            observations = [dict(zip(observations, values, strict=True)) for values in columns]
        rows = np.fromiter(observations, dtype=object, count=self.num_envs)
        rows[~which] = None
        return rows


class ScoredVectorEnv(MaskVectorEnv):
    """Copies of a `ScoredEnv` that share model and examples: one turn of the paper's search is one step of three copies.

    Masks are scored on the same examples in one engine call. See `MaskVectorEnv` for arguments and autoreset modes.
    `ScoredVectorEnv(num_envs, scorer=scorer, action="scores")` has episodes around a scorer.
    """

    env_class: ClassVar[type[ScoredEnv]] = ScoredEnv
    template: ScoredEnv

    n_layers = property(attrgetter("template.n_layers"), doc="How many layers can be skipped.")
    layer_names = property(attrgetter("template.layer_names"), doc="Names of the layers, in mask order.")
    feature_names = property(attrgetter("template.feature_names"), doc="What each entry of an observation is.")
    skip_num = property(attrgetter("template.skip_num"), doc="How many layers are to be skipped, or None.")
    budget = property(attrgetter("template.budget"), doc="The constraint on a mask.")
    macs_full = property(attrgetter("template.macs_full"), doc="MACs of one example through the model without adapters.")

    def close_extras(self, **kwargs: Any) -> None:
        """See `ScoredEnv.close`."""
        self.template.close()

    def get_state(self) -> dict[str, Any]:
        """Return the state of all episodes; see `ScoredEnv.get_state`."""
        state = {"rng": self.np_random.bit_generator.state, "episode": self.mode.get_state()}
        return {**self.template.scorer.get_state(), **state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.template.scorer.set_state(state)
        self.np_random.bit_generator.state = state["rng"]
        self.mode.set_state(state["episode"])


def with_presence(arrays: dict[str, np.ndarray], present: np.ndarray) -> dict[str, Any]:
    """Add `_key` for each key: Gymnasium's convention for which environments have it."""
    return arrays | {f"_{key}": present for key in arrays}
