"""The other action spaces as wrappers around an environment of whole masks.

`SequenceWrapper(env)` and `ScoresWrapper(env)` do what `gymnasium.make(id, action="sequence")` and `"scores"` do, for who
has the environment already.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from das_gym.envs.actions import ActionMode, Moves, ScoreMode, SequenceMode
from das_gym.envs.rendering import Shown, render
from das_gym.envs.scored_env import ScoredEnv, first_row
from das_gym.envs.scoring import Scorer


class ActionModeWrapper(gymnasium.Wrapper[np.ndarray, Any, np.ndarray, np.ndarray], RecordConstructorArgs):
    """Another action space for an environment whose action is a skip mask.

    Args:
        env: Made with `action="mask"`.

    Raises:
        TypeError: an environment of another kind.
    """

    mode_class: ClassVar[type[ActionMode]]

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        base = env.unwrapped
        if not isinstance(base, ScoredEnv) or not isinstance(env.action_space, spaces.MultiBinary):
            raise TypeError(f"{type(self).__name__} wraps a das_gym environment made with action='mask', not {env}")
        self.mode = self.mode_class(base.layer_names, base.scorer.budget, base.scorer.macs)
        inner = env.observation_space
        if not isinstance(inner, spaces.Box):
            raise TypeError(f"{type(self).__name__} appends to a flat Box, not to {inner}")
        self.action_space = self.mode.space
        self.observation_space = spaces.Box(
            np.concatenate((inner.low, self.mode.low)), np.concatenate((inner.high, self.mode.high)), dtype=np.float32
        )
        self._statistics = np.zeros(inner.shape, dtype=np.float32)
        self._last: Shown | None = None

    @property
    def scorer(self) -> Scorer:
        """The environment's."""
        return cast(ScoredEnv, self.unwrapped).scorer

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What each entry of the observation is."""
        return self.scorer.feature_names + self.mode.feature_names

    def action_masks(self) -> np.ndarray:
        """(n_choices,) bool: actions that have an effect now; what MaskablePPO reads."""
        return self.mode.action_masks()[0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """As the environment's."""
        self._statistics, info = self.env.reset(seed=seed, options=options)
        self.mode.begin()
        self._last = None
        return self._observation(), info | first_row(self.mode.info())

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action; the environment sees the mask that it completes."""
        moves = self.mode.take(action)
        if moves.ended[0]:
            self._statistics, reward, _, _, info = self.env.step(moves.masks[0].astype(np.int8))
        else:
            reward, info = self._unfinished(moves)
        ended = bool(moves.ended[0])
        self._last = Shown(moves.masks[0], float(reward), info, ended)
        return self._observation(), float(reward), ended, False, info | first_row(moves.info)

    def render(self) -> Any:
        """As the environment's; amid a sequence, what is skipped so far."""
        return render(self.render_mode, self.scorer, self._last)

    def get_state(self) -> dict[str, Any]:
        """As the environment's, amid an episode too."""
        return {**self.env.get_wrapper_attr("get_state")(), "episode": self.mode.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """As the environment's."""
        self.env.get_wrapper_attr("set_state")(state)
        self.mode.set_state(state["episode"])
        self._statistics = self.scorer.observation()

    def _unfinished(self, moves: Moves) -> tuple[float, dict[str, Any]]:
        return self.scorer.score_one(moves.masks, self.unwrapped.np_random, ended=False)

    def _observation(self) -> np.ndarray:
        return np.concatenate((self._statistics, self.mode.features()[0]))


class SequenceWrapper(ActionModeWrapper):
    """One layer a step: `Discrete(n_layers)`, see `das_gym.envs.actions.SequenceMode`."""

    mode_class = SequenceMode


class ScoresWrapper(ActionModeWrapper):
    """A score for every layer, the highest are skipped: `Box(-1, 1, (n_layers,))`, see `das_gym.envs.actions.ScoreMode`."""

    mode_class = ScoreMode
