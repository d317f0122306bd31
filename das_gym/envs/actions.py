"""Action spaces: how actions become masks, for one episode or for many side by side.

`mask`      a complete skip mask
`sequence`  one layer a step, until the budget is spent
`scores`    a number for every layer; the highest are skipped
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from das_gym.files import read_array
from das_gym.names import check_names
from das_gym.problem.budget import Budget, MaskCost

CACHED_MASKS = 2**14
"""Masks whose state `SequenceMode` keeps for a single episode; each takes about 1 KB."""


class Moves(NamedTuple):
    """Masks of m episodes after a step, (m, n_layers) bool, which of them are complete, (m,) bool, and what `info` gets."""

    masks: np.ndarray
    ended: np.ndarray
    info: dict[str, np.ndarray]


class ActionMode(ABC):
    """Turns actions into masks.

    Attributes:
        space: The action space of one environment.
        feature_names: What is observed besides the layer statistics.
        low, high: (n_features,) float32, the bounds of these features.
        masks: (m, n_layers) bool, what running episodes have skipped so far.
        ended: (m,) bool, episodes that wait for `begin`: at first all of them, later those that have ended.
    """

    name: ClassVar[str]
    space: spaces.Space[Any]
    feature_names: tuple[str, ...] = ()

    def __init__(self, layer_names: tuple[str, ...], budget: Budget, macs: MaskCost, rows: int = 1) -> None:
        self.budget = budget
        self.macs = macs
        self.rows = rows
        self.n_layers = len(layer_names)
        self.low = self.high = np.zeros(0, dtype=np.float32)
        self.masks = np.zeros((rows, self.n_layers), dtype=bool)
        self.ended = np.ones(rows, dtype=bool)
        self._current: tuple[np.ndarray, ...] | None = None  # what was computed of `masks`
        self.space = self._make_space()

    @abstractmethod
    def _make_space(self) -> spaces.Space[Any]: ...

    @abstractmethod
    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """Apply one action in each episode: an array of the space's shape after `batch`, () for one environment or (m,)."""

    def begin(self, which: np.ndarray | None = None) -> None:
        """Start new episodes in those rows ((m,) bool); None starts all."""
        rows = slice(None) if which is None else which
        self.masks[rows] = self.ended[rows] = False
        self._current = None

    def features(self) -> np.ndarray:
        """Return the (m, n_features) float32 observations of the episode's state, which follow the layer statistics."""
        return np.zeros((self.rows, 0), dtype=np.float32)

    def info(self) -> dict[str, np.ndarray]:
        """Return the entries that the action space adds to the `info` of a reset, each with m rows."""
        return {}

    def action_masks(self) -> np.ndarray:
        """Return (m, n_choices) bool: which actions have an effect; never all False. ValueError unless `sequence`."""
        raise ValueError(f"action={self.name!r} has no actions to mask; use action='sequence'")

    def get_state(self) -> dict[str, Any]:
        """Return the state of the episodes, JSON-able."""
        return {"masks": self.masks.astype(int).tolist(), "over": self.ended.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.masks = read_array("masks", state["masks"], (self.rows, self.n_layers), bool)
        self.ended = read_array("over", state["over"], (self.rows,), bool)
        self._current = None

    def _check_running(self) -> None:
        if np.count_nonzero(self.ended):
            raise gymnasium.error.ResetNeeded(
                "no episode is running: call reset() before the first step, and after a step that ends an episode"
            )

    def _end_all(self, masks: np.ndarray) -> Moves:
        self._check_running()
        self.ended.fill(True)
        return Moves(masks, self.ended.copy(), {})


class MaskMode(ActionMode):
    """`MultiBinary(n_layers)`: a skip mask, 1 = skipped. An episode is one step; a mask may break the budget."""

    name = "mask"

    def _make_space(self) -> spaces.Space[Any]:
        return spaces.MultiBinary(self.n_layers)

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        array = np.asarray(actions)
        shape = (*batch, self.n_layers)
        if array.shape != shape:
            raise ValueError(
                f"`action` is not a skip mask: got shape {array.shape}, expected {shape}, one 0 (keep) or 1 (skip) per layer"
            )
        # Shifting out the last bit of an integer is faster than two comparisons: 0 and 1 leave nothing.
        others = array >> 1 if array.dtype.kind in "biu" else (array != 0) & (array != 1)
        if np.count_nonzero(others):
            raise ValueError(f"`action` is not a skip mask: got {array.tolist()}, expected only 0 (keep) and 1 (skip)")
        return self._end_all(array.astype(bool).reshape(self.rows, self.n_layers))


class ScoreMode(ActionMode):
    """`Box(-1, 1, (n_layers,))`: layers are skipped from the highest score down until the budget is kept, in one step."""

    name = "scores"

    def _make_space(self) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (self.n_layers,), dtype=np.float32)

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """Skip the highest scores; only their order counts, so values beyond -1 and 1 are allowed."""
        # Policies draw from unbounded Gaussians: values beyond the space are as good as any, but NaN has no order.
        array = np.asarray(actions, dtype=np.float64)
        shape = (*batch, self.n_layers)
        if array.shape != shape:
            raise ValueError(f"`action` has the wrong shape: got {array.shape}, expected {shape}, one score per layer")
        if np.count_nonzero(np.isnan(array)):
            raise ValueError(f"`action` holds NaN: got {array.tolist()}, expected numbers")
        return self._end_all(self.budget.skip_highest(array.reshape(self.rows, self.n_layers)))


class SequenceMode(ActionMode):
    """`Discrete(n_layers)`: one layer a step.

    With `skip_num=k` an episode has k steps. With a budget by cost it ends as soon as the saving is reached, and layers
    whose skipping saves nothing cannot be chosen, so the saving always stays in reach. Without a budget, action n_layers
    means "stop". An action without effect is replaced by the next one that has an effect (`next_valid_actions`) and reported
    by `info["invalid_action"]`. If the full model satisfies the budget (skip_num=0), the first step ends the episode.
    """

    name = "sequence"

    def __init__(self, layer_names: tuple[str, ...], budget: Budget, macs: MaskCost, rows: int = 1) -> None:
        super().__init__(layer_names, budget, macs, rows)
        self.feature_names = (*(f"{layer}/skipped" for layer in layer_names), "macs_saved", "budget_left")
        least, most = macs.range
        self.low = np.array([0.0] * self.n_layers + [least, 0.0], dtype=np.float32)
        self.high = np.array([1.0] * self.n_layers + [most, 1.0], dtype=np.float32)
        self._cache: dict[bytes, tuple[np.ndarray, ...]] | None = {} if rows == 1 else None

    def _make_space(self) -> spaces.Space[Any]:
        self.can_stop = self.budget.is_free
        return spaces.Discrete(self.n_layers + self.can_stop)

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        chosen = self._check(actions, batch)
        self._check_running()
        if self._cache is not None:
            return self._step_single(int(chosen[0]))
        rows = np.arange(self.rows)
        _, choices, valid, _ = self._state()
        invalid = choices.any(axis=1) & ~choices[rows, chosen]
        if invalid.any():
            chosen = next_valid_actions(chosen, valid)
        skips = choices[rows, chosen] & (chosen < self.n_layers)
        self.masks[rows[skips], chosen[skips]] = True
        self._current = None
        complete, _, valid, _ = self._state()
        self.ended = complete | (chosen == self.n_layers)
        return Moves(self.masks.copy(), self.ended.copy(), {"action_mask": valid.copy(), "invalid_action": invalid})

    def _step_single(self, action: int) -> Moves:
        """Take a step of a single episode. Its states are cached, which is three times as fast as `step`."""
        _, choices, valid, _ = self._state()
        invalid = not choices[0, action] and bool(choices.any())
        if invalid:
            action = int(next_valid_actions(np.array([action]), valid)[0])
        if action < self.n_layers and choices[0, action]:
            self.masks[0, action] = True
        complete, _, valid, _ = self._state()
        # Writing into arrays of one row is faster than making new ones.
        self.ended[0] = complete[0] or action == self.n_layers
        info = {"action_mask": valid.copy(), "invalid_action": np.array([invalid])}
        return Moves(self.masks.copy(), self.ended.copy(), info)

    def features(self) -> np.ndarray:
        return self._features() if self._cache is None else self._state()[3].copy()

    def info(self) -> dict[str, np.ndarray]:
        return {"action_mask": self.action_masks(), "invalid_action": np.zeros(self.rows, dtype=bool)}

    def action_masks(self) -> np.ndarray:
        """Return which actions change the mask; if none does any more, all are True."""
        return self._state()[2].copy()

    def _state(self) -> tuple[np.ndarray, ...]:
        """Return which masks are complete, which actions change something, `action_masks`, and `features`.

        A single environment caches them by its mask, which is faster than a dozen operations on arrays of one row. Without a
        cache, the state is kept until the masks change, and the features are left out, since nothing reads them here.
        """
        if self._cache is None:
            if self._current is None:
                self._current = (*self._choices(), np.zeros(0))
            return self._current
        key = self.masks.tobytes()
        state = self._cache.get(key)
        if state is None:
            if len(self._cache) == CACHED_MASKS:
                self._cache.clear()
            state = self._cache[key] = (*self._choices(), self._features())
        return state

    def _choices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.can_stop:
            complete = np.asarray(self.masks.all(axis=1))
            choices = np.concatenate((~self.masks, np.ones((self.rows, 1), dtype=bool)), axis=1)
        else:
            complete = self.budget.is_feasible(self.masks)
            choices = ~self.masks & ~complete[:, None] & self.budget.useful_layers
        # Where no action has an effect, all are allowed: MaskablePPO cannot normalize a row without any.
        return complete, choices, choices | ~choices.any(axis=1, keepdims=True)

    def _features(self) -> np.ndarray:
        numbers = (self.masks, self.macs.saved(self.masks)[:, None], self.budget.remaining(self.masks)[:, None])
        return np.concatenate(numbers, axis=1, dtype=np.float32)

    def _check(self, actions: Any, batch: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(actions)
        count = int(self.space.n)  # type: ignore[attr-defined]
        if array.shape != batch or array.dtype.kind not in "iu" or np.count_nonzero((array < 0) | (array >= count)):
            stop = f" ({self.n_layers} stops)" if self.can_stop else ""
            raise ValueError(
                f"`action` is not in Discrete({count}): got {array.tolist()!r}, expected a layer from 0..{count - 1}{stop}"
                + (f", for each of {batch[0]} environments" if batch else "")
            )
        return array.reshape(self.rows).astype(np.int64)


def next_valid_actions(actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
    """Replace each of (m,) actions without effect by the next one that has an effect, wrapping around the action space."""
    m, n = action_masks.shape
    # Row by row: all actions in turn, from the given one on.
    order = (actions[:, None] + np.arange(n)) % n
    first = np.take_along_axis(action_masks, order, axis=1).argmax(axis=1)
    return order[np.arange(m), first]


ACTION_MODES: dict[str, type[ActionMode]] = {mode.name: mode for mode in (MaskMode, SequenceMode, ScoreMode)}


def find_action_mode(name: str) -> type[ActionMode]:
    """Return the class of an action space, a key of `ACTION_MODES`; ValueError for another name."""
    check_names([name], ACTION_MODES, "action")
    return ACTION_MODES[name]
