"""What a finished search looks like: its units, its rewards one by one, and the picture in its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from das_gym.agents.searching.record import SearchResult, keeps_budget

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.picture import Scene, draw
from das_gym.drawing.report import Progress
from das_gym.files import replacing


def draw_search(path: Path, result: SearchResult, facts: Sequence[str]) -> None:
    """A PNG of the mask that was found on the architecture, and of the best reward over evaluations.

    Args:
        path: Where to.
        result: The search.
        facts: Lines in words, up to 6.
    """
    from PIL import Image

    rewards = progress_of(result)
    best = [] if rewards is None else rewards.best
    rises = [
        (at, value) for at, value in enumerate(best, 1) if value is not None and value != (best[at - 2] if at > 1 else None)
    ]
    title = f"{result.agent}: {result.n_skipped} of {len(result.mask)} layers skipped, {result.env_id}"
    scene = Scene(architecture_of(result), np.array(result.mask, bool), title, facts, rises, len(best))
    with replacing(path) as part:
        Image.fromarray(draw(scene)).save(part, "PNG")


def architecture_of(result: SearchResult, tabular: Any = None) -> Architecture:
    """The units that were searched; of older records without the table's environment, their names alone."""
    if result.units:
        return Architecture.of_record(result.units)
    return Architecture.of(result.layer_names) if tabular is None else tabular.scorer.architecture()


def progress_of(result: SearchResult, tabular: Any = None) -> Progress | None:
    """Every scored mask in order; None where the turns are not kept.

    Args:
        result: The search.
        tabular: The environment that it searched, if that knows every mask; None = no regret is told.
    """
    if not result.history:
        return None
    rewards: list[float | None] = []
    best: list[float | None] = []
    so_far: float | None = None
    for turn in result.history:
        for index, reward in enumerate(turn.rewards):
            row = turn.row(index)
            allowed = turn.examples_share == 1.0 and keeps_budget(result.env_kwargs, row["mask"], row["macs_saved"])
            if reward is not None and allowed:
                so_far = reward if so_far is None else max(so_far, reward)
            rewards.append(reward)
            best.append(so_far)
    return Progress(rewards, best, None if tabular is None else _regrets(best, tabular))


def _regrets(best: Sequence[float | None], tabular: Any) -> list[float | None]:
    scorer, table = tabular.scorer, tabular.table
    values = table.values(scorer.objective, scorer.split)
    highest = float(values[scorer.budget.is_kept_by(table.masks)].max())
    return [None if reward is None else max(0.0, highest - reward) for reward in best]
