"""The answer of a search: the better of what the agent answers and the best mask that it asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from das_gym.agents.searching.record import Turn
from das_gym.agents.searching.scorer import MaskScorer

from das_gym.problem.budget import Masks

Row = dict[str, Any]
"""A mask with its reward and scores, see `Turn.rows`."""


def score_answers(scorer: MaskScorer, mask: Masks, best: Mapping[str, Any] | None) -> list[Row]:
    """Score an agent's answer and the best mask that it asked for, together on the examples of the next step.

    Args:
        scorer: Scores the masks.
        mask: (n_layers,) bool: the agent's answer.
        best: The best mask that was scored on all examples, as `best_row` returns it; None if there is none.

    Returns:
        One or two rows, the answer's first; one if both are the same mask.
    """
    # Not part of the budget. It is the next step of the environment, so that a replay scores it on the same examples.
    masks = mask[None]
    if best is not None and best["mask"] != mask.astype(int).tolist():
        masks = np.stack((mask, np.array(best["mask"], dtype=bool)))
    return Turn.of(masks, *scorer.score(masks)).rows


def better(rows: Sequence[Row]) -> Row:
    """Return the row with the highest reward, the first of equals."""
    return max(rows, key=lambda row: -math.inf if row["reward"] is None else row["reward"])


def is_scored(mask: Sequence[int], turns: Sequence[Turn]) -> bool:
    """Return True if a mask, 0/1 per layer, was scored on all reward examples in one of the turns."""
    return any(row["mask"] == list(mask) for turn in turns for row in turn.complete_rows)
