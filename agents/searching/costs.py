"""Measured costs of masks, which a search keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from das_gym.agents.searching.config import SearchConfig
from das_gym.agents.searching.record import CHECKPOINT
from das_gym.agents.searching.scorer import open_scorer

from das_gym.files import read_json
from das_gym.problem.loading import Problem
from das_gym.problem.mask_cost import SAVED


def with_costs(config: SearchConfig, folder: Path | None = None, problem: Problem | None = None) -> SearchConfig:
    """Return the search with measured costs in its `env_kwargs`, if its budget is of another cost than MACs.

    Latency is measured only once, so that the same masks satisfy the budget until the end of the search, and wherever its
    record is replayed: a search that continues from the checkpoint in `folder` has the costs measured then. `problem` is the
    loaded problem of the environment, if there is one.
    """
    if folder is not None and (folder / CHECKPOINT).is_file():
        costs = read_json(folder / CHECKPOINT)
        for name in ("config", "env_kwargs", "costs"):  # `Checkpoint.load` reports damage
            costs = costs.get(name) if isinstance(costs, Mapping) else None
    else:
        names = [name for name in config.budget if name in SAVED and name != "macs_saved"]
        costs = None
        if names:
            with closing(open_scorer(config.env_id, config.mask_kwargs, problem=problem)) as scorer:
                costs = {name: scorer.cost_of(name).as_dict() for name in names}
    if not isinstance(costs, Mapping):
        return config
    return dataclasses.replace(config, env_kwargs={**config.env_kwargs, "costs": costs})
