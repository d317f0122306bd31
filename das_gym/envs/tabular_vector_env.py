"""The vector form of the tabular environment."""

from __future__ import annotations

from das_gym.envs.skip_vector_env import SkipVectorEnv
from das_gym.envs.tabular_env import TabularEnv


class TabularVectorEnv(SkipVectorEnv):
    """`num_envs` copies of `TabularEnv`: as `SkipVectorEnv`, a step looks all masks up at once."""

    env_class = TabularEnv
