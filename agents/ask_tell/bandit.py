"""The paper's agent: a bandit with one preference per layer."""

from typing import ClassVar

import numpy as np
from das_gym.agents.ask_tell.base import Agent, Seed

from das_gym.commands.settings import PositiveFloat, convert
from das_gym.problem.budget import Floats, Masks
from das_gym.problem.mask_space import MaskSpace


class Bandit(Agent):
    """Gradient bandit over masks: the agent of DAS (arXiv 2309.01479).

    Each layer i has a preference g_i, initially 0, and is drawn with weight p_i = sigmoid(g_i). A mask skips `skip_num`
    layers drawn without replacement, or as many as a budget by cost needs. The masks of a turn are distinct. Given their
    rewards r_j, `tell` computes

        g_i += learning_rate * sum over masks j that skip i of (r_j - mean r) * p_i * (1 - p_i)

    with p as it was before the turn. The answer is the layers with the largest preferences.

    Args:
        learning_rate: eta, > 0. The authors' code uses 1.
    """

    min_masks: ClassVar[int] = 2  # a single mask is its own baseline: its advantage is 0
    preferences: Floats

    def __init__(self, space: MaskSpace, seed: Seed = None, learning_rate: PositiveFloat = 1.0) -> None:
        super().__init__(space, seed)
        self.learning_rate = convert("learning_rate", learning_rate, PositiveFloat)
        self.preferences = np.zeros(self.n_layers)

    def skip_probabilities(self) -> Floats:
        """Return p = sigmoid(g), (n_layers,): the weight with which each layer is drawn."""
        return np.exp(self._log_probabilities())

    def ask(self, n: int) -> Masks:
        """Return `n` distinct masks, (n, n_layers) bool, or all masks if fewer than `n` exist."""
        log_p = self._log_probabilities()
        # Adding Gumbel noise to log weights and taking the k largest draws k without replacement by weight. Where the
        # weights leave all but a few masks out of reach, `distinct` draws the others uniformly instead of looping forever.
        return self.space.distinct(n, lambda: self.space.top(log_p + self.rng.gumbel(size=self.n_layers)), self.rng)

    def tell(self, masks: Masks, rewards: Floats) -> None:
        """Move the preferences of the skipped layers by the advantage of their masks over the turn's mean."""
        masks, rewards = self.check_rewards(masks, rewards)
        p = self.skip_probabilities()
        advantages = rewards - rewards.mean()
        self.preferences = self.preferences + self.learning_rate * (advantages @ masks) * p * (1.0 - p)

    def best(self) -> Masks:
        """Return the (n_layers,) bool mask that skips the layers with the largest preferences; of equal ones, the first."""
        return self.space.top(self.preferences)

    def _log_probabilities(self) -> Floats:
        return -np.logaddexp(0.0, -self.preferences)
