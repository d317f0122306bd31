"""The pruning papers' baseline: rank the layers once by a statistic, skip the least important."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from das_gym.agents.ask_tell.best_seen import OneMask

from das_gym.config import check_names
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace

SKIPS = ("lowest", "highest")


class OneShot(OneMask):
    """The layers where a statistic of the unskipped model is lowest: one mask.

    The statistics are those that the environment observes. Most take no mask; `leave_one_out` has the model score
    n_layers + 1, which count as evaluations of the search. (`das_gym.agents.ask_tell.greedy.LeaveOneOut` asks for them.)

    Args:
        space: The masks to choose from.
        seed: Not used: nothing is drawn.
        statistics: Statistic name to (n_layers,) values.
        statistic: Which one to rank by.
        skip: "lowest" or "highest" values first.

    Raises:
        ValueError: a statistic that is not observed, or another word for `skip`.
    """

    preferences: Floats

    def __init__(
        self,
        space: MaskSpace,
        seed: int | np.random.Generator | None = None,
        statistics: Mapping[str, Floats] | None = None,
        statistic: str = "block_influence_tokens",
        skip: str = "lowest",
    ) -> None:
        super().__init__(space, seed)
        check_names([statistic], statistics or {}, "statistic")
        check_names([skip], SKIPS, "value of skip,")
        self.statistics_read = (statistic,)
        values = np.asarray((statistics or {})[statistic], dtype=np.float64)
        self.preferences = -values if skip == "lowest" else values

    def best(self) -> Masks:
        """The mask."""
        return self.space.top(self.preferences)
