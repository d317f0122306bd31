"""Episodes on problems of a suite, many side by side: what the environments of a suite are made of."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from das_gym.config import check_names
from das_gym.envs.actions import with_effect
from das_gym.tables.suite import MAX_UNITS, Suite

SUITE_ACTIONS = ("mask", "sequence", "scores")


class SuiteEpisodes:
    """m episodes, each on a problem of its own.

    Args:
        suite: The problems.
        action: One of `SUITE_ACTIONS`.
        flat: Whether an observation is one vector.
        rows: m.

    Attributes:
        which: (m,) int64, the problem of each.
        masks: (m, MAX_UNITS) bool, what each has skipped so far.
        over: (m,) bool, which wait for `begin`.

    Raises:
        ValueError: an unknown action space.
    """

    def __init__(self, suite: Suite, action: str, flat: bool, rows: int) -> None:
        check_names([action], SUITE_ACTIONS, "action")
        self.suite, self.action, self.flat, self.m = suite, action, flat, rows
        self.which = np.zeros(rows, np.int64)
        self.masks = np.zeros((rows, MAX_UNITS), bool)
        self.over = np.ones(rows, bool)
        self.everyone = np.arange(rows)

    @property
    def action_space(self) -> spaces.Space[Any]:
        """Of one episode."""
        if self.action == "mask":
            return spaces.MultiBinary(MAX_UNITS)
        if self.action == "sequence":
            return spaces.Discrete(MAX_UNITS)
        return spaces.Box(-1.0, 1.0, (MAX_UNITS,), np.float32)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Of one episode: a `Dict` of vectors, or all of them in one."""
        low, high = (np.tile(bound, MAX_UNITS) for bound in self.suite.bounds)
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)  # where there is no unit
        parts = {
            "statistics": spaces.Box(low, high, dtype=np.float32),
            "units": spaces.Box(0.0, 1.0, (MAX_UNITS,), np.float32),
            "savings": spaces.Box(-1.0, 1.0, (MAX_UNITS,), np.float32),
            "budget": spaces.Box(0.0, 1.0, (2,), np.float32),
        }
        if self.action == "sequence":
            parts["skipped"] = spaces.Box(0.0, 1.0, (MAX_UNITS,), np.float32)
            parts["saved"] = spaces.Box(-1.0, 1.0, (1,), np.float32)
        if not self.flat:
            return spaces.Dict(dict(parts))
        lows, highs = (np.concatenate([getattr(box, name) for box in parts.values()]) for name in ("low", "high"))
        return spaces.Box(lows, highs, dtype=np.float32)

    def begin(self, rows: np.ndarray, problems: np.ndarray) -> None:
        """Begin the episodes of some rows ((k,) int64) on problems ((k,) int64)."""
        self.which[rows], self.masks[rows], self.over[rows] = problems, False, False

    def observe(self) -> Any:
        """The observations of all episodes: (m, size) float32, or a dictionary of such."""
        parts = {} if self.flat else {name: values[self.which] for name, values in self.suite.known.items()}
        more: dict[str, np.ndarray] = {}
        if self.action == "sequence":
            saved = self.suite.saved[self.suite.rows(self.which, self.masks)]
            more = {
                "skipped": self.masks.astype(np.float32),
                "saved": (saved - self.suite.saved_whole[self.which])[:, None].astype(np.float32),
            }
        if self.flat:
            return np.concatenate((self.suite.known_flat[self.which], *more.values()), axis=1)
        return parts | more

    def action_masks(self) -> np.ndarray:
        """(m, n_choices) bool: actions that have an effect; never all False.

        Raises:
            ValueError: in this action space nothing can be masked.
        """
        if self.action == "mask":
            return np.ones((self.m, 2 * MAX_UNITS), bool)
        if self.action == "scores":
            raise ValueError("action='scores' has no actions to mask; use action='sequence'")
        choices: np.ndarray = self.suite.useful[self.which] & ~self.masks
        return choices | ~choices.any(axis=1, keepdims=True)

    def choices(self) -> dict[str, np.ndarray]:
        """What `info` says of the actions: (m, n_choices) bool `action_mask`, of sequences alone."""
        return {"action_mask": self.action_masks()} if self.action == "sequence" else {}

    def take(self, actions: Any, batch: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Go one step.

        Args:
            actions: Of shape `batch` + that of the action space.
            batch: () or (m,).

        Returns:
            (m,) float64 rewards, (m,) bool episodes that ended, and what `info` says, each (m,).

        Raises:
            ValueError: actions of another shape, or outside the space.
            gymnasium.error.ResetNeeded: an episode has not begun, or is over.
        """
        if self.over.any():
            raise gymnasium.error.ResetNeeded("no episode goes on: call reset() before the first step and after the last")
        invalid = np.zeros(self.m, bool)
        if self.action == "sequence":
            chosen = _whole(actions, batch).reshape(self.m)
            choices = self.action_masks()
            invalid = ~choices[self.everyone, chosen]
            chosen = with_effect(chosen, choices) if invalid.any() else chosen
            self.masks[self.everyone, chosen] = True
        else:
            self.masks = self._masks(actions, batch)
        rows = self.suite.rows(self.which, self.masks)
        kept = self.suite.kept[rows]
        self.over = kept.copy() if self.action == "sequence" else np.ones(self.m, bool)
        return np.where(self.over, self.suite.scaled[rows], 0.0), self.over.copy(), self._info(rows, kept, invalid)

    def _masks(self, actions: Any, batch: tuple[int, ...]) -> np.ndarray:
        """(m, MAX_UNITS) bool: what whole actions skip."""
        try:
            array = np.asarray(actions, dtype=np.float64)  # whatever it was: scores are negated, which some types cannot be
        except (TypeError, ValueError):
            raise ValueError(f"action {actions!r} holds no numbers; give {MAX_UNITS}, one a unit") from None
        if array.shape != (*batch, MAX_UNITS):
            raise ValueError(f"action of shape {array.shape}; give {(*batch, MAX_UNITS)}: one number a unit")
        if self.action == "scores":
            if np.isnan(array).any():
                raise ValueError("action holds a score that is not a number")
            return self.suite.skip_highest(self.which, array.reshape(self.m, MAX_UNITS))
        if ((array != 0) & (array != 1)).any():
            raise ValueError(f"action {array.tolist()} holds other values than 0 (keep) and 1 (skip)")
        return array.astype(bool).reshape(self.m, MAX_UNITS) & self.suite.units[self.which]

    def _info(self, rows: np.ndarray, kept: np.ndarray, invalid: np.ndarray) -> dict[str, np.ndarray]:
        info = {
            "raw_reward": np.where(kept, self.suite.raw[rows], -np.inf),
            "regret": np.where(kept, self.optima - self.suite.raw[rows], np.inf),
            "loss": np.where(kept, self.suite.losses[rows], np.inf),
            "metric": np.where(kept, self.suite.metrics[rows], 0.0),
            "macs_saved": self.suite.macs_saved[rows],
            "n_skipped": self.masks.sum(axis=1),
            "feasible": kept,
            **self.told(),
        }
        if self.suite.latency_saved is not None:
            info["latency_saved"] = self.suite.latency_saved[rows]
        return info | ({"invalid_action": invalid} if self.action == "sequence" else {})

    @property
    def optima(self) -> np.ndarray:
        """(m,) what the best masks earn."""
        return self.suite.optima[self.which]

    def told(self) -> dict[str, np.ndarray]:
        """What `info` says of the problems, each (m,)."""
        return {"problem": self.which.copy(), "random_mean": self.suite.random_means[self.which], "optimum": self.optima}


def _whole(actions: Any, batch: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(actions)
    if array.shape != batch or not np.issubdtype(array.dtype, np.integer) or ((array < 0) | (array >= MAX_UNITS)).any():
        raise ValueError(f"action {array.tolist()!r}: give whole numbers 0..{MAX_UNITS - 1} of shape {batch}, units to skip")
    return array.astype(np.int64)
