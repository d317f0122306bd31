"""Episodes on problems of a suite, many side by side: what the environments of a suite are made of."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.picture import height_of
from das_gym.envs.actions import Moves, find_action_mode
from das_gym.envs.rendering import LastStep, View
from das_gym.problem.budget import Masks
from das_gym.tables.suite import MAX_UNITS, Suite


class SuiteEpisodes:
    """m episodes, each on its own problem.

    To its action mode, it is the budget and the cost: those of the problems that the episodes are on now.

    Args:
        suite: The problems.
        action: A name in `das_gym.envs.actions.ACTION_MODES`.
        flat: Whether an observation is one vector.
        rows: m.

    Attributes:
        mode: Turns actions into masks.
        which: (m,) int64, the problem of each episode.
        costs: Names of costs besides MACs, keys of `SAVED`, whose savings `info` has: those that budgets of the suite limit.
    """

    is_free = False
    range = (-1.0, 1.0)

    def __init__(self, suite: Suite, action: str, flat: bool, rows: int) -> None:
        self.suite, self.flat = suite, flat
        self.which = np.zeros(rows, np.int64)
        self.costs = list(suite.other_costs)
        names = tuple(f"unit.{number}" for number in range(MAX_UNITS))
        itself = cast(Any, self)
        self.mode = find_action_mode(action)(names, itself, itself, rows)

    def begin(self, which: np.ndarray, problems: Any) -> None:
        """Start episodes in (m,) bool rows on those problems, one number each."""
        self.which[which] = problems
        self.mode.begin(which)

    @property
    def useful_layers(self) -> Masks:
        """(m, MAX_UNITS) bool: units that serve the budget of each problem."""
        return self.suite.useful[self.which]

    def is_kept_by(self, masks: Masks) -> Masks:
        """Return (m,) bool: which masks satisfy the budgets."""
        return self.suite.kept[self.suite.rows(self.which, masks)]

    def skip_highest(self, scores: np.ndarray) -> Masks:
        """Skip the highest scores within the budget of each problem; see `Budget.skip_highest`."""
        return self.suite.skip_highest(self.which, scores)

    def saved(self, masks: Masks) -> np.ndarray:
        """Return (m,) float64: the share of the budget's own cost that skipping saves."""
        return self.suite.saved[self.suite.rows(self.which, masks)] - self.suite.saved_full[self.which]

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """Of one episode: a `Dict` of vectors, or all of them in one."""
        low, high = (np.tile(bound, MAX_UNITS) for bound in self.suite.bounds)
        parts = {
            "statistics": spaces.Box(np.minimum(low, 0.0), np.maximum(high, 0.0), dtype=np.float32),  # 0 where no unit is
            "units": spaces.Box(0.0, 1.0, (MAX_UNITS,), np.float32),
            "savings": spaces.Box(-1.0, 1.0, (MAX_UNITS,), np.float32),
            "budget": spaces.Box(0.0, 1.0, (2,), np.float32),
        }
        if self.mode.name == "sequence":
            parts["skipped"] = spaces.Box(0.0, 1.0, (MAX_UNITS,), np.float32)
            parts["saved"] = spaces.Box(-1.0, 1.0, (1,), np.float32)
        return joined(parts) if self.flat else spaces.Dict(dict(parts))

    def observe(self) -> Any:
        """Return the observations of all episodes: (m, size) float32, or a dictionary of such arrays."""
        parts: dict[str, np.ndarray] = {}
        if self.mode.name == "sequence":
            saved = self.saved(self.mode.masks)[:, None].astype(np.float32)
            parts = {"skipped": self.mode.masks.astype(np.float32), "saved": saved}
        if self.flat:
            return np.concatenate((self.suite.known_flat[self.which], *parts.values()), axis=1)
        return {name: values[self.which] for name, values in self.suite.known.items()} | parts

    def step(self, actions: Any, batch: tuple[int, ...]) -> Moves:
        """Take a step; units that the model does not have are never skipped. See `ActionMode.step`."""
        moves = self.mode.step(actions, batch)
        return moves._replace(masks=moves.masks & self.suite.units[self.which])

    def score(self, moves: Moves) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return (m,) float64 rewards of a step, and its `info`, each (m,)."""
        suite = self.suite
        rows = suite.rows(self.which, moves.masks)
        kept, raw = suite.kept[rows], suite.raw[rows]
        info = {
            "raw_reward": np.where(kept, raw, -np.inf),
            "regret": np.where(kept, suite.optima[self.which] - raw, np.inf),
            "loss": np.where(kept, suite.losses[rows], np.inf),
            "metric": np.where(kept, suite.metrics[rows], 0.0),
            "macs_saved": suite.saved_of("macs_saved")[rows],
            "n_skipped": moves.masks.sum(axis=1),
            "feasible": kept,
            **self.problem_info(),
        }
        info |= {name: suite.saved_of(name)[rows] for name in self.costs}
        return np.where(moves.ended, suite.scaled[rows], 0.0), info | moves.info

    def problem_info(self) -> dict[str, np.ndarray]:
        """Return the `info` of the problems, each (m,)."""
        which = self.which
        return {
            "problem": which.copy(),
            "random_mean": self.suite.random_means[which],
            "optimum": self.suite.optima[which],
        }

    def reset_info(self) -> dict[str, np.ndarray]:
        """Return the `info` of a reset, each with m rows."""
        masks = {"action_mask": self.mode.action_masks()} if self.mode.name == "sequence" else {}
        return self.problem_info() | masks

    def last_step(self, mask: np.ndarray, reward: float, info: dict[str, Any], ended: bool) -> LastStep:
        """Return a step as `render` shows it: without units that the model does not have."""
        n = self.suite.problems[int(info["problem"])].table.n_layers
        return LastStep(mask[:n], reward, {"evaluations": int(np.isfinite(info["loss"])), **info}, ended)

    def view(self, last: LastStep | None, row: int) -> View:
        """Return what `render` shows of an episode; one that ended is shown until the next step."""
        problem = self.suite.problems[int(self.which[row] if last is None else last.info["problem"])]
        scored = last is not None and last.scored
        improvements = [(1, last.reward)] if last is not None and scored else []
        return View(
            Architecture.of_table(problem.table),
            problem.budget.describe(),
            improvements,
            int(scored),
            problem.name,
            self.height,
        )

    @cached_property
    def height(self) -> int:
        """Pixels of the problem that needs most, so that all images have one size."""
        tables = {id(problem.source): problem.table for problem in self.suite.problems}
        return max(height_of(Architecture.of_table(table)) for table in tables.values())


def joined(parts: Mapping[str, Any]) -> spaces.Box:
    """Return one flat Box of several, in their order."""
    low = np.concatenate([box.low for box in parts.values()])
    high = np.concatenate([box.high for box in parts.values()])
    return spaces.Box(low, high, dtype=np.float32)
