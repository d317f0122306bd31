"""The environments."""

from das_gym.envs.skip_env import SkipEnv
from das_gym.envs.skip_vector_env import SkipVectorEnv

__all__ = ["SkipEnv", "SkipVectorEnv"]
