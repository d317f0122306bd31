"""The environments."""

from das_gym.envs.skip_env import SkipEnv
from das_gym.envs.skip_vector_env import SkipVectorEnv
from das_gym.envs.wrappers import ScoresWrapper, SequenceWrapper

__all__ = ["ScoresWrapper", "SequenceWrapper", "SkipEnv", "SkipVectorEnv"]
