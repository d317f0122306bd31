"""Episodes on problems of a suite, many side by side: what the environments of a suite are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces

from das_gym.drawing.architecture import Architecture, height_of
from das_gym.envs.actions import Moves, find_action_mode
from das_gym.envs.episodes import Episodes
from das_gym.envs.rendering import LastStep, View
from das_gym.envs.scoring import first_row
from das_gym.names import check_names
from das_gym.problem.budget import SAVED, Masks
from das_gym.problem.statistics import STATISTICS
from das_gym.tables.suite import MAX_UNITS, Suite


class SuiteEpisodes(Episodes):
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
        feature_names: Name of each entry of an observation, part by part, such as `unit.3/savings`.
        costs: Names of costs besides MACs, keys of `SAVED`, whose savings `info` has: those that budgets of the suite limit.
    """

    is_free = False
    range = (-1.0, 1.0)

    def __init__(self, suite: Suite, action: str, flat: bool, rows: int) -> None:
        self.suite = suite
        self.flat = flat
        self.which = np.zeros(rows, np.int64)
        self.costs = list(suite.other_costs)
        names = tuple(f"unit.{number}" for number in range(MAX_UNITS))
        itself = cast(Any, self)
        self.mode = find_action_mode(action)(names, itself, itself, rows)
        observed = [STATISTICS[name] for name in suite.statistics]
        low = np.tile(np.array([min(each.low, 0.0) for each in observed], np.float32), MAX_UNITS)  # 0 where no unit is
        high = np.tile(np.array([max(each.high, 0.0) for each in observed], np.float32), MAX_UNITS)
        parts = {
            "statistics": spaces.Box(low, high, dtype=np.float32),
            "units": spaces.Box(0.0, 1.0, (MAX_UNITS,), np.float32),
            "savings": spaces.Box(-1.0, 1.0, (MAX_UNITS,), np.float32),
            "budget": spaces.Box(0.0, 1.0, (2,), np.float32),
        }
        if action == "sequence":
            parts["skipped"] = spaces.Box(0.0, 1.0, (MAX_UNITS,), np.float32)
            parts["saved"] = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = joined(parts) if flat else spaces.Dict(dict(parts))
        special = {
            "statistics": tuple(f"{unit}/{name}" for unit in names for name in suite.statistics),
            "budget": ("budget/units", "budget/cost"),
            "saved": ("saved",),
        }
        entries = [special.get(part, tuple(f"{unit}/{part}" for unit in names)) for part in parts]
        self.feature_names = tuple(name for part in entries for name in part)

    def copies(self, rows: int) -> SuiteEpisodes:
        return SuiteEpisodes(self.suite, self.mode.name, self.flat, rows)

    def reset(self, rng: np.random.Generator, seeded: bool, options: Any) -> None:
        """Draw a problem for each episode, or take `options={"problem": ...}`; ValueError for other options."""
        if not isinstance(options, Mapping | None):
            raise ValueError(f"`options` is not a dictionary: got {options!r}, expected {{'problem': 3}}, or None")
        check_names(options or {}, ("problem",), "option of reset")
        everyone = np.ones(len(self.which), bool)
        named = (options or {}).get("problem")
        if named is None:
            self.begin(everyone, rng)
            return
        several = isinstance(named, (list, tuple, np.ndarray))
        numbers = [self.suite.index(each) for each in (named if several else [named])]
        if len(numbers) not in (1, len(everyone)):
            raise ValueError(
                f"`options` names the wrong number of problems: got {len(numbers)}, expected 1 or {len(everyone)}"
            )
        self.place(everyone, numbers)

    def begin(self, which: np.ndarray, rng: np.random.Generator) -> None:
        """Start episodes in (m,) bool rows on drawn problems."""
        count = int(np.count_nonzero(which))
        # a scalar is drawn several times faster than an array of one, and is the same number
        self.place(which, rng.integers(len(self.suite.problems), size=None if count == 1 else count))

    def place(self, which: np.ndarray, problems: Any) -> None:
        """Start episodes in (m,) bool rows on those problems, one number each."""
        self.which[which] = problems
        self.mode.begin(which)

    @property
    def useful_layers(self) -> Masks:
        """(m, MAX_UNITS) bool: units that serve the budget of each problem."""
        return self.suite.useful[self.which]

    def is_feasible(self, masks: Masks) -> Masks:
        """Return (m,) bool: which masks satisfy the budgets."""
        return self.suite.kept[self.suite.rows(self.which, masks)]

    def skip_highest(self, scores: np.ndarray) -> Masks:
        """Skip the highest scores within the budget of each problem; see `Budget.skip_highest`."""
        return self.suite.skip_highest(self.which, scores)

    def saved(self, masks: Masks) -> np.ndarray:
        """Return (m,) float64: the share of the budget's own cost that skipping saves."""
        return self.suite.saved[self.suite.rows(self.which, masks)] - self.suite.saved_full[self.which]

    def observe(self) -> Any:
        """Return the observations of all episodes: (m, size) float32, or a dictionary of such arrays."""
        parts: dict[str, np.ndarray] = {}
        if self.mode.name == "sequence":
            saved = self.saved(self.mode.masks)[:, None].astype(np.float32)
            parts = {"skipped": self.mode.masks.astype(np.float32), "saved": saved}
        if self.flat:
            return np.concatenate((self.suite.known_flat[self.which], *parts.values()), axis=1)
        return {name: values[self.which] for name, values in self.suite.known.items()} | parts

    def observe_one(self) -> Any:
        observed = self.observe()
        return observed[0] if self.flat else {name: values[0] for name, values in observed.items()}

    def step(self, actions: Any, batch: tuple[int, ...] = ()) -> Moves:
        """Take a step; units that the model does not have are never skipped. See `ActionMode.step`."""
        moves = self.mode.step(actions, batch)
        return moves._replace(masks=moves.masks & self.suite.units[self.which])

    def score(self, moves: Moves, rng: np.random.Generator | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See `Episodes.score`; nothing is drawn."""
        suite = self.suite
        rows = suite.rows(self.which, moves.masks)
        kept = suite.kept[rows]
        raw = suite.raw[rows]
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
        # An episode ends as soon as its budget is kept: a mask within a sequence is off it, which `info` says already.
        return np.where(moves.ended, suite.scaled[rows], 0.0), info | moves.info

    def score_one(self, moves: Moves, rng: np.random.Generator) -> tuple[float, dict[str, Any]]:
        rewards, info = self.score(moves, rng)
        return float(rewards[0]), first_row(info)

    def report_savings(self, costs: Sequence[str]) -> list[tuple[float, float]]:
        saved = {name: self.suite.saved_of(name) for name in costs}
        for name, shares in saved.items():
            if np.isnan(shares).any():
                raise ValueError(f"`{name}` is not supported: a table of this suite does not hold the {SAVED[name]}")
        self.costs += [name for name in saved if name not in ("macs_saved", *self.costs)]
        return [(shares.min(), shares.max()) for shares in (self.suite.scaled, *saved.values())]

    def reference_reward(self) -> float:
        """See `Episodes.reference_reward`. Rewards of a suite are scaled: 0 = layers skipped in a random order."""
        return 0.0

    def problem_info(self) -> dict[str, np.ndarray]:
        """Return the `info` of the problems, each (m,)."""
        which = self.which
        return {"problem": which.copy(), "random_mean": self.suite.random_means[which], "optimum": self.suite.optima[which]}

    def reset_info(self) -> dict[str, np.ndarray]:
        """Return the `info` of a reset, each with m rows."""
        masks = {"action_mask": self.mode.action_masks()} if self.mode.name == "sequence" else {}
        return self.problem_info() | masks

    def reset_info_one(self) -> dict[str, Any]:
        return first_row(self.reset_info())

    def last_step(self, mask: np.ndarray, reward: float, info: dict[str, Any], ended: bool) -> LastStep:
        """Return a step as `render` shows it: without units that the model does not have."""
        n = self.suite.problems[int(info["problem"])].table.n_layers
        return LastStep(mask[:n], reward, {"evaluations": int(np.isfinite(info["loss"])), **info}, ended)

    def view(self, last: LastStep | None, row: int) -> View:
        """Return what `render` shows of an episode; one that ended is shown until the next step."""
        if last is None and self.mode.over[row]:
            raise gymnasium.error.ResetNeeded("no problem has been drawn: call reset() before render()")
        problem = self.suite.problems[int(self.which[row] if last is None else last.info["problem"])]
        return View(Architecture.from_table(problem.table), problem.budget.describe(), problem.name, self.height)

    @cached_property
    def height(self) -> int:
        """Pixels of the problem that needs most, so that all images have one size."""
        tables = {id(problem.source): problem.table for problem in self.suite.problems}
        return max(height_of(Architecture.from_table(table)) for table in tables.values())


def joined(parts: Mapping[str, Any]) -> spaces.Box:
    """Return one flat Box of several, in their order."""
    low = np.concatenate([box.low for box in parts.values()])
    high = np.concatenate([box.high for box in parts.values()])
    return spaces.Box(low, high, dtype=np.float32)
