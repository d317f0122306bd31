"""The environment from a table, with a vector for a reward."""

from __future__ import annotations

import numpy as np

from das_gym.envs.mo_env import ManyObjectivesEnv, ManyObjectivesVectorEnv
from das_gym.envs.tabular_env import TabularEnv
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.front import undominated_rows


class MOTabularEnv(ManyObjectivesEnv, TabularEnv):
    """`TabularEnv` with a vector for a reward, see `MOSkipEnv`; the true front is known.

    ## Description
    As `MOSkipEnv`, answered from a table.

    ## Action Space
    As `SkipEnv`'s.

    ## Observation Space
    As `SkipEnv`'s.

    ## Rewards
    As `MOSkipEnv`'s.

    ## Starting State
    As `SkipEnv`'s.

    ## Episode End
    As `SkipEnv`'s.

    ## Information
    As `MOSkipEnv`'s. `env.get_wrapper_attr("true_front")()` is the front of all masks, and `dominated_volume` of it
    (`das_gym.problem.front`) the largest `hypervolume` that there is.

    ## Version History
    v0: first.

    Args:
        objectives: As for `MOSkipEnv`; a table times nothing, so that `latency_saved` needs `costs`.
        arguments: As for `TabularEnv`; `skip_num` is None here.

    Raises:
        ValueError: a setting that is not allowed.
        FileNotFoundError: no such table.
    """

    def true_front(self) -> tuple[Masks, Floats]:
        """(m, n_layers) masks within the budget that none beats in every objective, and their (m, reward_dim) rewards."""
        kept = self.budget.is_kept_by(self.table.masks)
        masks, rewards = self.table.masks[kept], self.table.values(self.scorer.objective, self._arguments["split"])[kept]
        points = np.column_stack((rewards, self._saved(masks)))
        rows = undominated_rows(points)
        return masks[rows], points[rows]


class MOTabularVectorEnv(ManyObjectivesVectorEnv):
    """`num_envs` copies of `MOTabularEnv`, see `ManyObjectivesVectorEnv`."""

    env_class = MOTabularEnv
