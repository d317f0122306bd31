"""Action spaces: how what an agent does becomes masks, for one environment or many side by side.

`mask`      a whole skip mask at once
`sequence`  one layer a step, until the budget is spent
`scores`    a number for every layer; the highest are skipped
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces

from das_gym.config import check_names, read_array
from das_gym.problem.budget import Budget
from das_gym.problem.mask_cost import MaskCost


class Moves(NamedTuple):
    """Where m episodes stand after a step.

    Attributes:
        masks: (m, n_layers) bool, True = skipped.
        ended: (m,) bool, the mask is chosen and the episode over.
        info: What `info` says besides, each with a leading m.
    """

    masks: np.ndarray
    ended: np.ndarray
    info: dict[str, np.ndarray]


class ActionMode(ABC):
    """Turns actions into masks.

    Args:
        layer_names: Names of the skippable layers, in mask order.
        budget: What a mask must satisfy.
        macs: Their MACs.
        rows: m, how many episodes go on side by side.

    Attributes:
        space: The action space of one environment.
        feature_names: What is observed besides the layer statistics.
        low, high: (n_features,) float32, the bounds of that.
        masks: (m, n_layers) bool, what the episodes that go on have skipped so far.
        over: (m,) bool, which wait for `begin`: all of them at first, and those that have ended.
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
        self.over = np.ones(rows, dtype=bool)

    @abstractmethod
    def take(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """Go one step.

        Args:
            actions: Of shape `batch` + the space's shape.
            batch: () for one environment, (m,) for many.

        Raises:
            ValueError: actions of another shape or outside the space.
            gymnasium.error.ResetNeeded: an episode has not begun, or is over.
        """

    def _check_begun(self) -> None:
        if np.count_nonzero(self.over):
            raise gymnasium.error.ResetNeeded("no episode goes on: call reset() before the first step and after the last")

    def begin(self, which: np.ndarray | None = None) -> None:
        """Begin the episodes of those rows ((m,) bool) anew; None = all."""
        if which is None:
            self.masks.fill(False)
            self.over.fill(False)
        else:
            self.masks[which] = False
            self.over[which] = False

    def features(self) -> np.ndarray:
        """(m, n_features) float32: what is observed besides the layer statistics."""
        return np.zeros((self.rows, 0), dtype=np.float32)

    def info(self) -> dict[str, np.ndarray]:
        """What `info` says at a reset besides the numbers of the unskipped model, each with a leading m."""
        return {}

    def action_masks(self) -> np.ndarray:
        """(m, n_choices) bool: which actions have an effect; never all False.

        Raises:
            ValueError: nothing can be masked in this action space.
        """
        raise ValueError(f"action={self.name!r} has no actions to mask; use action='sequence'")

    def get_state(self) -> dict[str, Any]:
        """Where the episodes stand, JSON-able."""
        return {"masks": self.masks.astype(int).tolist(), "over": self.over.tolist()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from where `get_state` was called."""
        self.masks = read_array("masks", state["masks"], (self.rows, self.n_layers), bool)
        over = state.get("over", [False] * self.rows)  # older states tell it of sequences alone
        self.over = read_array("over", over, (self.rows,), bool)

    def _whole(self, masks: np.ndarray) -> Moves:
        self._check_begun()
        self.over.fill(True)
        return Moves(masks, self.over.copy(), {})


class MaskMode(ActionMode):
    """`MultiBinary(n_layers)`: a skip mask, 1 = skipped. An episode is one step; a mask may break the budget."""

    name = "mask"

    def __init__(self, layer_names: tuple[str, ...], budget: Budget, macs: MaskCost, rows: int = 1) -> None:
        super().__init__(layer_names, budget, macs, rows)
        self.space = spaces.MultiBinary(self.n_layers)

    def take(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """As `ActionMode.take`."""
        array, shape = np.asarray(actions), (*batch, self.n_layers)
        if array.shape != shape:
            raise ValueError(
                f"action of shape {array.shape}; give a skip mask of shape {shape}: one 0 (keep) or 1 (skip) a layer"
            )
        whole = array.dtype.kind in "biu"
        others = array >> 1 if whole else (array != 0) & (array != 1)  # of 0 and 1 nothing is left without their last bit
        if np.count_nonzero(others):
            raise ValueError(f"action {array.tolist()} holds other values than 0 (keep) and 1 (skip)")
        return self._whole(array.astype(bool).reshape(self.rows, self.n_layers))

    def action_masks(self) -> np.ndarray:
        """(m, 2 n_layers) bool, pairs (may be 0, may be 1) as sb3-contrib reads them: all True.

        Bits cannot say "exactly k of them": where a budget is to be kept, use action='sequence'.
        """
        return np.ones((self.rows, 2 * self.n_layers), dtype=bool)


class ScoreMode(ActionMode):
    """`Box(-1, 1, (n_layers,))`: layers are skipped from the highest score down, see `Budget.skip_highest`.

    Every mask keeps its budget. An episode is one step.
    """

    name = "scores"

    def __init__(self, layer_names: tuple[str, ...], budget: Budget, macs: MaskCost, rows: int = 1) -> None:
        super().__init__(layer_names, budget, macs, rows)
        self.space = spaces.Box(-1.0, 1.0, (self.n_layers,), dtype=np.float32)

    def take(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """As `ActionMode.take`; only the order of scores counts, so values beyond -1 and 1 are allowed."""
        array, shape = np.asarray(actions, dtype=np.float64), (*batch, self.n_layers)
        if array.shape != shape:
            raise ValueError(f"action of shape {array.shape}; give scores of shape {shape}: one number a layer")
        if np.count_nonzero(np.isnan(array)):
            raise ValueError(f"action {array.tolist()} holds a score that is not a number")
        return self._whole(self.budget.skip_highest(array.reshape(self.rows, self.n_layers)))


class Standing(NamedTuple):
    """Where one sequence stands, which its mask alone decides.

    Attributes:
        complete: Whether no more layers are to be skipped.
        choices: Whether each action changes anything.
        action_mask: (1, n_choices) bool: `choices`, or all True where no action changes anything.
        features: (1, n_features) float32: what is observed.
    """

    complete: bool
    choices: list[bool]
    action_mask: np.ndarray
    features: np.ndarray


REMEMBERED_MASKS = 2**14
"""How many masks `SequenceMode` knows the standing of; each takes about 1 KB."""


class SequenceMode(ActionMode):
    """`Discrete(n_layers)`: one layer a step.

    With `skip_num=k` an episode is k layers long; by cost it ends as soon as the saving is reached, and layers
    whose skipping saves nothing cannot be chosen, so that it always can be. Without a budget, action n_layers is "stop".
    An action without effect (a layer already skipped, or one that cannot be chosen) stands for the next one that has
    (`with_effect`) and is told by `info["invalid_action"]`: a policy that repeats itself comes to an end, too. A budget
    that nothing skipped keeps (skip_num=0) ends with the first step, whatever the action.
    """

    name = "sequence"

    def __init__(self, layer_names: tuple[str, ...], budget: Budget, macs: MaskCost, rows: int = 1) -> None:
        super().__init__(layer_names, budget, macs, rows)
        self.can_stop = budget.is_free
        self.space = spaces.Discrete(self.n_layers + self.can_stop)
        self.feature_names = (*(f"{layer}/skipped" for layer in layer_names), "macs_saved", "budget_left")
        least, most = macs.range
        self.low = np.array([0.0] * self.n_layers + [least, 0.0], dtype=np.float32)
        self.high = np.array([1.0] * self.n_layers + [most, 1.0], dtype=np.float32)
        self._standings: dict[bytes, Standing] = {}

    def take(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """As `ActionMode.take`."""
        chosen = self._check(actions, batch)
        self._check_begun()
        if self.rows == 1:
            return self._take_alone(chosen.item())
        rows = np.arange(self.rows)
        choices = self._choices(self._complete())
        some = np.asarray(choices.any(axis=1))
        invalid = some & ~choices[rows, chosen]
        if invalid.any():
            chosen = with_effect(chosen, choices | ~some[:, None])
        skips = some & (chosen < self.n_layers)
        self.masks[rows[skips], chosen[skips]] = True
        complete = self._complete()
        self.over = complete | (chosen == self.n_layers)
        told = {"action_mask": _never_none(self._choices(complete)), "invalid_action": invalid}
        return Moves(self.masks.copy(), self.over.copy(), told)

    def _take_alone(self, action: int) -> Moves:
        """As `take`, of one environment: a dozen operations on arrays of one row take longer than looking the mask up."""
        before = self._standing()
        invalid = not before.choices[action] and True in before.choices
        if invalid:
            action = int(with_effect(np.array([action]), before.action_mask)[0])
        if action < self.n_layers and before.choices[action]:
            self.masks[0, action] = True
        after = self._standing()
        self.over[0] = after.complete or action == self.n_layers
        told = {"action_mask": after.action_mask.copy(), "invalid_action": np.array([invalid])}
        return Moves(self.masks.copy(), self.over.copy(), told)

    def _standing(self) -> Standing:
        """Where the only episode stands, from memory where its mask was met before."""
        key = self.masks.tobytes()
        standing = self._standings.get(key)
        if standing is None:
            complete = self._complete()
            choices = self._choices(complete)
            standing = Standing(bool(complete[0]), choices[0].tolist(), _never_none(choices), self._features())
            if len(self._standings) == REMEMBERED_MASKS:
                self._standings.clear()
            self._standings[key] = standing
        return standing

    def features(self) -> np.ndarray:
        """(m, n_layers + 2) float32: 1 for each skipped layer, share of MACs saved, what is left of the budget."""
        return self._standing().features.copy() if self.rows == 1 else self._features()

    def _features(self) -> np.ndarray:
        numbers = (self.masks, self.macs.saved(self.masks)[:, None], self.budget.left(self.masks)[:, None])
        return np.concatenate(numbers, axis=1, dtype=np.float32)

    def info(self) -> dict[str, np.ndarray]:
        """As `ActionMode.info`: `action_mask` and `invalid_action`."""
        return {"action_mask": self.action_masks(), "invalid_action": np.zeros(self.rows, dtype=bool)}

    def action_masks(self) -> np.ndarray:
        """As `ActionMode.action_masks`; where no action has an effect any more, all are True."""
        return self._standing().action_mask.copy() if self.rows == 1 else _never_none(self._choices(self._complete()))

    def _check(self, actions: Any, batch: tuple[int, ...]) -> np.ndarray:
        array, count = np.asarray(actions), int(self.space.n)  # type: ignore[attr-defined]
        if array.shape != batch or array.dtype.kind not in "iu":
            raise ValueError(
                f"action {array.tolist()!r}; give {'one whole number' if not batch else f'{batch[0]} whole numbers'}: "
                f"a layer, 0..{self.n_layers - 1}{f', or {self.n_layers} to stop' if self.can_stop else ''}"
            )
        if np.count_nonzero((array < 0) | (array >= count)):
            raise ValueError(f"action {array.tolist()} is outside 0..{count - 1}")
        return array.reshape(self.rows)

    def _complete(self) -> np.ndarray:
        """(m,) bool: no more layers are to be skipped."""
        if self.can_stop:
            return self.masks.sum(axis=1) == self.n_layers
        return self.budget.is_kept_by(self.masks)

    def _choices(self, complete: np.ndarray) -> np.ndarray:
        """(m, n_choices) bool: actions that change anything; (m,) bool says whose masks are `_complete`."""
        choices = ~self.masks & ~complete[:, None] & self.budget.useful_layers
        return np.concatenate((choices, np.ones((self.rows, 1), dtype=bool)), axis=1) if self.can_stop else choices


def _never_none(choices: np.ndarray) -> np.ndarray:
    """(m, n_choices) bool choices; all of them where there are none."""
    return choices | ~choices.any(axis=1, keepdims=True)


def with_effect(actions: np.ndarray, action_masks: np.ndarray) -> np.ndarray:
    """(m,) actions, each that has no effect replaced by the next that has, around the action space.

    Args:
        actions: (m,) whole numbers.
        action_masks: (m, n_choices) bool, which have an effect; at least one in each row.
    """
    m, n = action_masks.shape
    order = (actions[:, None] + np.arange(n)) % n
    first = np.take_along_axis(action_masks, order, axis=1).argmax(axis=1)
    return order[np.arange(m), first]


ACTION_MODES: dict[str, type[ActionMode]] = {mode.name: mode for mode in (MaskMode, SequenceMode, ScoreMode)}
"""Every action space by name."""


def find_action_mode(name: str) -> type[ActionMode]:
    """The action space of that name.

    Raises:
        ValueError: there is none.
    """
    check_names([name], ACTION_MODES, "action")
    return ACTION_MODES[name]
