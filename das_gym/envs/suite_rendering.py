"""What the environments of a suite show of themselves: one problem after another, in pictures of one size."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.picture import Points, height_of
from das_gym.envs.rendering import Shown, View, show
from das_gym.envs.suite_episodes import SuiteEpisodes


class Kept(NamedTuple):
    """What is shown of an episode.

    Attributes:
        problem: The number of its problem.
        last: What its last step did; None right after its reset.
        improvements: At which of its masks the best reward rose, and to what.
    """

    problem: int
    last: Shown | None
    improvements: Points = ()


class SuiteScreen:
    """Where episodes are shown.

    Args:
        episodes: Them.
        render_mode: `ansi` or `rgb_array`.
    """

    def __init__(self, episodes: SuiteEpisodes, render_mode: str) -> None:
        self.episodes, self.render_mode = episodes, render_mode

    @cached_property
    def height(self) -> int:
        """Pixels of the problem that needs most."""
        tables = {id(problem.source): problem.table for problem in self.episodes.suite.problems}
        return max(height_of(Architecture.of_table(table)) for table in tables.values())

    def keep(self, row: int, reward: float, info: dict[str, Any], whole: bool) -> Kept:
        """What a step did in an episode.

        Args:
            row: The episode's.
            reward: Of the step.
            info: Likewise; `evaluations` is 1 for a mask that was scored, unless it says so.
            whole: Whether the mask is complete.
        """
        number = int(self.episodes.which[row])
        mask = self.episodes.masks[row, : self.episodes.suite.problems[number].table.n_layers].copy()
        shown = Shown(mask, reward, {"evaluations": int(np.isfinite(info["loss"])), **info}, whole)
        return Kept(number, shown, [(1, reward)] if shown.scored else [])

    def render(self, kept: Kept) -> str | np.ndarray:
        """What was kept of an episode."""
        problem = self.episodes.suite.problems[kept.problem]
        view = View(
            Architecture.of_table(problem.table),
            problem.budget.describe(),
            kept.improvements,
            0 if kept.last is None else int(kept.last.info["evaluations"]),
            problem.name,
            self.height if self.render_mode == "rgb_array" else None,
        )
        return show(self.render_mode, view, kept.last)
