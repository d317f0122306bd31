"""The environment in which an episode is a search: for agents that learn how to search."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from gymnasium import spaces

from das_gym.envs.episodes import first_row
from das_gym.envs.rendering import LastStep, View
from das_gym.envs.suite_env import SuiteEnv
from das_gym.envs.suite_episodes import joined
from das_gym.problem.budget import is_whole
from das_gym.tables.suite import MAX_UNITS


class SuiteSearchEnv(SuiteEnv):
    """Search a problem drawn from a suite: each action is a mask, and masks and rewards so far are observed.

    ## Description
    As `SuiteEnv`, but an episode has `evaluations` masks, and what counts is the best of them.

    ## Action Space
    `action="scores"`: `Box(-1, 1, (16,))`, units are skipped from the highest score down until the budget is kept;
    `action="mask"`: `MultiBinary(16)`, 1 = skip.

    ## Observation Space
    As `SuiteEnv`'s, and of the masks so far, in their order, 0 for those to come: `masks` (evaluations x 16), `rewards`
    (evaluations, scaled, -1 for one off its budget), `scored` (evaluations: 1 for those so far), `best` (1).

    ## Rewards
    By how much a mask is better than the best before it, scaled as in `SuiteEnv`; the best before the first is 0, the
    random mean. So an episode earns 0..1, and 1 if it finds the optimum.

    ## Episode End
    After `evaluations` masks.

    ## Information
    As `SuiteEnv`'s, of the last mask, its `scaled_reward`, `best` and `evaluations`.

    ## Arguments
    evaluations: Masks an episode, 1 to 65,536.
    The others are `SuiteEnv`'s.
    """

    def __init__(self, evaluations: int = 30, action: str = "scores", **settings: Any) -> None:
        if action == "sequence":
            raise ValueError(
                "`action` is not supported: got 'sequence', expected 'scores' or 'mask', which make complete masks"
            )
        if not is_whole(evaluations) or not 1 <= evaluations <= 2**MAX_UNITS:
            raise ValueError(
                f"`evaluations` is out of range: got {evaluations!r}, expected an integer from 1 to {2**MAX_UNITS}"
            )
        super().__init__(action=action, **settings)
        self.evaluations = evaluations
        parts = {
            "masks": spaces.Box(0.0, 1.0, (evaluations * MAX_UNITS,), np.float32),
            "rewards": spaces.Box(-1.0, 1.0, (evaluations,), np.float32),
            "scored": spaces.Box(0.0, 1.0, (evaluations,), np.float32),
            "best": spaces.Box(0.0, 1.0, (1,), np.float32),
        }
        known: Any = self.observation_space
        flat = not isinstance(known, spaces.Dict)
        self.observation_space = joined({"known": known, **parts}) if flat else spaces.Dict({**known.spaces, **parts})
        self._history = {name: np.zeros(box.shape, np.float32) for name, box in parts.items()}
        self._count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draw a problem, or take the one in `options`."""
        self._count = 0
        for values in self._history.values():
            values[:] = 0
        _, info = super().reset(seed=seed, options=options)
        return self._observation(), info | self._progress()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Score a mask."""
        moves = self.episodes.step(action)
        rewards, info = self.episodes.score(moves, self.np_random)
        place, self._count = self._count, self._count + 1
        ended = self._count == self.evaluations
        # To its action mode every mask ends an episode; here the last one does.
        self.mode.over[:] = ended
        scaled, history = float(np.clip(rewards[0], -1.0, 1.0)), self._history
        history["masks"][place * MAX_UNITS : self._count * MAX_UNITS] = moves.masks[0]
        history["rewards"][place], history["scored"][place] = scaled, 1.0
        gain = max(scaled - float(history["best"][0]), 0.0)
        history["best"][0] = max(scaled, float(history["best"][0]))
        told = first_row(info) | {"scaled_reward": scaled} | self._progress()
        self._last = LastStep(moves.masks[0], gain, told, ended=True)
        return self._observation(), gain, ended, False, told

    def view(self) -> View:
        """Return what `render` shows besides the last step."""
        rewards = self._history["rewards"][: self._count].tolist()
        rises = [(at + 1, reward) for at, reward in enumerate(rewards) if reward > max(rewards[:at], default=-1.0)]
        return replace(super().view(), improvements=rises, evaluations=self._count)

    def _progress(self) -> dict[str, Any]:
        return {"best": float(self._history["best"][0]), "evaluations": self._count}

    def _observation(self) -> Any:
        known = self.episodes.observe_one()
        if not isinstance(known, dict):
            return np.concatenate((known, *self._history.values()))
        return known | {name: values.copy() for name, values in self._history.items()}
