"""The better of two models is saved: by a significant difference of scores, or else by loss."""

import numpy as np
import pytest
from das_gym.adapt.shrinking.measuring import Quality, Scored
from das_gym.adapt.shrinking.selecting import select

COUNT = 100


def scored(loss: float, right: int) -> Scored:
    """A model that answers the first questions right."""
    scores = (np.arange(COUNT) < right).astype(float)
    return Scored(Quality(loss, float(scores.mean()), 0.0, 1.0), [""] * COUNT, scores)


@pytest.mark.parametrize(
    ("untrained", "trained", "better", "by"),
    [
        ((0.037, 98), (0.082, 94), False, "loss"),
        ((0.037, 98), (0.082, 80), False, "score"),
        ((0.8, 40), (0.3, 70), True, "score"),
        ((0.3, 40), (0.8, 70), True, "score"),  # answers count for more than their likelihood
        ((0.3, 70), (0.2, 40), False, "score"),
        ((0.3, 50), (0.2, 49), True, "loss"),
        ((0.3, 50), (0.3, 50), False, "loss"),
        ((0.3, 50), (float("nan"), 50), False, "loss"),
    ],
)
def test_select(untrained, trained, better, by):
    selection = select(scored(*untrained), scored(*trained))
    assert (selection.trained_is_better, selection.by) == (better, by)
    assert f"The {'trained' if better else 'untrained'} model is saved." in selection.reason
    assert f"loss {untrained[0]:.4f} before and {trained[0]:.4f} after" in selection.reason
