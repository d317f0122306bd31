"""The base of the environments with one problem, whatever the source of their scores."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Self

import gymnasium
import numpy as np
from gymnasium import spaces

from das_gym.envs.actions import find_action_mode
from das_gym.envs.rendering import RENDER_MODES, LastStep, View, check_render_mode, render
from das_gym.envs.scoring import Scorer


class ScoredEnv(gymnasium.Env[np.ndarray, Any]):
    """An environment around a scorer. A subclass makes the scorer; `SkipEnv` documents the environment.

    Args:
        scorer: Scores masks.
        action: A name in `das_gym.envs.actions.ACTION_MODES`.
        render_mode: `ansi`, `rgb_array` or None.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 2}  # noqa: RUF012 - as in gymnasium.Env

    n_layers = property(attrgetter("scorer.n_layers"), doc="How many layers can be skipped.")
    layer_names = property(attrgetter("scorer.layer_names"), doc="Names of the layers, in mask order.")
    skip_num = property(attrgetter("scorer.budget.skip_num"), doc="How many layers are to be skipped, or None.")
    budget = property(attrgetter("scorer.budget"), doc="The constraint on a mask.")
    macs_full = property(attrgetter("scorer.macs.full"), doc="MACs of one example through the model without adapters.")

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Store the arguments, from which unpickling makes the environment again."""
        env = super().__new__(cls)
        env._arguments = args, kwargs
        return env

    def __init__(self, scorer: Scorer, action: str, render_mode: str | None) -> None:
        check_render_mode(render_mode)
        self.scorer = scorer
        self.render_mode = render_mode
        self.mode = find_action_mode(action)(scorer.layer_names, scorer.budget, scorer.macs)
        low, high = scorer.bounds()
        self.observation_space = spaces.Box(
            np.concatenate((low, self.mode.low)), np.concatenate((high, self.mode.high)), dtype=np.float32
        )
        self.action_space = self.mode.space
        self._last: LastStep | None = None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the observation's entries: `<layer>/<statistic>`, then those of the action space."""
        return self.scorer.feature_names + self.mode.feature_names

    @property
    def last_mask(self) -> np.ndarray | None:
        """(n_layers,) bool: the mask after the last step; None right after a reset."""
        return None if self._last is None else self._last.mask.copy()

    def action_masks(self) -> np.ndarray:
        """Return (n_choices,) bool: actions that have an effect now, as MaskablePPO reads them."""
        return self.mode.action_masks()[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Return the first observation and the `info` of the full model. A seed also restarts the reward examples."""
        super().reset(seed=seed)
        if seed is not None:
            self.scorer.restart()
        self.mode.begin()
        self._last = None
        return self._observation(), self.scorer.full_model_info() | first_row(self.mode.info())

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action; a complete mask is scored."""
        moves = self.mode.step(action)
        ended = bool(moves.ended[0])
        reward, info = self.scorer.score_one(moves.masks, self.np_random, ended)
        info |= first_row(moves.info)
        self._last = LastStep(moves.masks[0], reward, info, ended)
        return self._observation(), reward, ended, False, info

    def view(self) -> View:
        """Return what `render` shows besides the last step."""
        scorer = self.scorer
        return View(scorer.architecture(), scorer.budget.describe(), scorer.improvements, scorer.evaluations)

    def render(self) -> Any:
        """Return the architecture under the last mask; see `das_gym.envs.rendering.render`."""
        return None if self.render_mode is None else render(self.render_mode, self.view(), self._last)

    def close(self) -> None:
        """Stop the workers, if there are any; they start again when the environment is used again."""
        super().close()
        self.scorer.close()

    def __getstate__(self) -> dict[str, Any]:
        """Return arguments and state: the model is loaded again, from the process-wide cache if possible.

        Gymnasium's EzPickle keeps the arguments only, and would lose generator, examples and a running episode.
        """
        args, kwargs = self._arguments
        return {
            "arguments": (args, kwargs | self.scorer.budget.known_costs),  # so that a copy measures nothing again
            "state": self.get_state(),
            "spec": self.spec,
            "last": self._last,
            "action_space": self.action_space,  # with their generators
            "observation_space": self.observation_space,
        }

    def __setstate__(self, pickled: dict[str, Any]) -> None:
        self._arguments = args, kwargs = pickled["arguments"]
        self.__init__(*args, **kwargs)  # type: ignore[misc]
        self.set_state(pickled["state"])
        self.spec, self._last = pickled["spec"], pickled["last"]
        self.action_space = self.mode.space = pickled["action_space"]
        self.observation_space = pickled["observation_space"]

    def get_state(self) -> dict[str, Any]:
        """Return the environment's state as JSON values, also within an episode. `set_state` continues exactly there."""
        return {
            **self.scorer.get_state(),
            "rng": self.np_random.bit_generator.state,
            "episode": self.mode.get_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self.scorer.set_state(state)
        self.np_random.bit_generator.state = state["rng"]
        self.mode.set_state(state["episode"])

    def _observation(self) -> np.ndarray:
        statistics = self.scorer.observation()
        return np.concatenate((statistics, self.mode.features()[0])) if self.mode.feature_names else statistics


def first_row(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the first row of each array: a plain number where it is one."""
    return {key: values[0].item() if values.ndim == 1 else values[0] for key, values in arrays.items()}
