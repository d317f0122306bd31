"""The paper's bandit, as `adapt das` makes it."""

from das_gym.agents.ask_tell.bandit import Bandit

from das_gym.problem.budget import Budget
from das_gym.problem.mask_space import MaskSpace


def paper_bandit(n_layers: int, skip_num: int, seed: int, update_rate: float) -> Bandit:
    """Return a bandit for masks that skip `skip_num` of `n_layers` layers."""
    return Bandit(MaskSpace(Budget(n_layers, skip_num)), seed, learning_rate=update_rate)
