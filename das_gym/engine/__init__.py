"""The engine: many masks of one frozen model, fast and exact."""

from das_gym.engine.evaluator import Evaluator, Scores
from das_gym.engine.spending import Spending

__all__ = ["Evaluator", "Scores", "Spending"]
