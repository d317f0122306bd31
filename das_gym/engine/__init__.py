"""The engine: many masks of one frozen model, fast and exact."""

from das_gym.evaluation.engine import Evaluator, Scores
from das_gym.evaluation.spending import Spending

__all__ = ["Evaluator", "Scores", "Spending"]
