"""The environment with a model, with a vector for a reward."""

from __future__ import annotations

from das_gym.envs.mo_env import ManyObjectivesEnv, ManyObjectivesVectorEnv
from das_gym.envs.skip_env import SkipEnv


class MOSkipEnv(ManyObjectivesEnv, SkipEnv):
    """`SkipEnv` with a vector for a reward: what the mask earns on the task, and what it saves.

    ## Description
    As `das_gym.SkipEnv`; without a budget unless one is given, since what to save is an objective here. The API is that
    of MO-Gymnasium (`reward_space`, `reward_dim`, a vector from `step`), whose wrappers and MORL-Baselines take it.

    ## Action Space
    As `SkipEnv`'s; `action="sequence"` for algorithms that want `Discrete`.

    ## Observation Space
    As `SkipEnv`'s.

    ## Rewards
    (reward_dim,) float32: `SkipEnv`'s reward, then the share of each cost that the mask saves, 1 = all of it, negative where
    the mask costs more than the full model. Zeros amid a sequence; a mask that misses a budget saves nothing.

    ## Starting State
    As `SkipEnv`'s.

    ## Episode End
    As `SkipEnv`'s.

    ## Information
    As `SkipEnv`'s, and `hypervolume`: the volume between the origin and the rewards since `reset` was last given a seed.

    ## Version History
    v0: first.

    Args:
        objectives: `task` and one or more of `macs_saved`, `latency_saved`, `parameters_saved`, `memory_saved`.
        arguments: As for `SkipEnv`; `skip_num` is None here.

    Attributes:
        reward_space: Box of the rewards.
        reward_dim: How many objectives there are.

    Raises:
        ValueError: a setting that is not allowed.
        FileNotFoundError: a path that does not exist.
    """


class MOSkipVectorEnv(ManyObjectivesVectorEnv):
    """`num_envs` copies of `MOSkipEnv`, see `ManyObjectivesVectorEnv`."""

    env_class = MOSkipEnv
