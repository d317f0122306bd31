"""The parts of searches, for their estimates: see `das_gym.problem.estimate`."""

from __future__ import annotations

from typing import Any

import numpy as np

from das_gym.problem.estimate import Part, Walk, scoring, time_walk
from das_gym.problem.mask_space import MaskSpace
from das_gym.tables.shipped_losses import shipped_losses

TURNS = 20
"""Turns of random masks, whose runs along the mask tree stand for those of a search."""


def search_parts(scorer: Any, evaluations: int, masks_per_turn: int, walk: Walk | None = None) -> list[Part]:
    """Return the parts of a search; none if a table or Ray's workers score its masks."""
    problem = getattr(scorer, "problem", None)
    if problem is None or problem.backbone.config.workers is not None:
        return []
    examples, rng, n_layers = scorer.fixed_examples, np.random.default_rng(0), scorer.n_layers
    walk = walk or time_walk(problem, examples)
    count = TURNS * masks_per_turn
    if scorer.budget.is_free:
        masks = rng.random((count, n_layers)) < rng.random((count, 1))
    else:
        space = MaskSpace(scorer.budget)
        masks = np.stack([space.sample(rng) for _ in range(count)])
    turns = np.split(masks, TURNS)
    search = scoring(problem, walk, "search", len(examples), turns, evaluations / count)
    shipped = scorer.observation_masks == 0 or shipped_losses(problem, examples) is not None
    alone = np.eye(n_layers, dtype=bool)[: 0 if shipped else n_layers]
    # The activity of layers takes a forward, and about as much for comparing their inputs and outputs.
    seconds = len(examples) * (2 * walk.forward + walk.seconds(alone, problem.vlp.stages))
    return [Part("layer statistics", seconds), search]
