"""Agents as searches and comparisons make them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import Agent, agent_class, make_agent

from das_gym.problem.budget import Floats
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import CHECKPOINT_TABLES, ENVIRONMENTS

SEARCH_DEFAULTS: dict[str, dict[str, Any]] = {"bandit": {"learning_rate": 20.0}}
"""Agent settings for searches of a few hundred masks; the paper's rate of 1 is for hundreds of turns."""


def make_search_agent(
    name: str,
    space: MaskSpace,
    seed: int,
    agent_kwargs: Mapping[str, Any],
    statistics: Mapping[str, Floats],
    blocks: Callable[[], dict[str, Any] | None],
) -> Agent:
    """Make the agent of a search; `SEARCH_DEFAULTS` and, for agents that take them, `blocks()` are filled in."""
    settings = {**SEARCH_DEFAULTS.get(name, {}), **agent_kwargs}
    if "blocks" in inspect.signature(agent_class(name)).parameters and "blocks" not in settings:
        settings["blocks"] = blocks()
    # The agent draws from a child of the seed, since the environment draws from the seed itself.
    rng = np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])
    return make_agent(name, space, rng, settings, statistics)


def is_tabular(env_id: str) -> bool:
    """Return whether an id, or `module:id`, is an environment of das_gym that looks scores up in a table."""
    return env_id.rpartition(":")[2] in {*(entry.tabular_id for entry in ENVIRONMENTS.values()), *CHECKPOINT_TABLES}
