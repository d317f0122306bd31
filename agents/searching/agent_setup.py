"""Agents as searches and comparisons make them: with search defaults, their own generator, and measured blocks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from das_gym.agents.ask_tell.base import Agent, agent_class, make_agent
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.blocks import blocks_of

from das_gym.problem.budget import Floats
from das_gym.problem.mask_space import MaskSpace

SEARCH_DEFAULTS: dict[str, dict[str, Any]] = {"bandit": {"learning_rate": 20.0}}
"""Agent settings for searches of a few hundred masks; the paper's rate of 1 is for thousands of turns."""


def agent_generator(seed: int) -> np.random.Generator:
    """Return the generator of a search's agent: a child of the seed, since the environment draws from the seed itself."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])


def make_search_agent(
    name: str,
    space: MaskSpace,
    seed: int,
    agent_kwargs: Mapping[str, Any],
    statistics: Mapping[str, Floats],
    env_id: str,
    env_kwargs: Mapping[str, Any],
) -> Agent:
    """Make the agent of a search.

    Args:
        name: A key of `AGENTS`, or "module:class".
        space: The masks to choose from.
        seed: Seed of the search.
        agent_kwargs: Hyperparameters. `SEARCH_DEFAULTS` and, for agents that take them, `blocks` are filled in.
        statistics: Layer statistics.
        env_id: The environment, to measure blocks.
        env_kwargs: Its settings besides the budget.
    """
    settings = {**SEARCH_DEFAULTS.get(name, {}), **agent_kwargs}
    if takes(name, "blocks") and "blocks" not in settings:
        settings["blocks"] = blocks_of(env_id, env_kwargs)
    return make_agent(name, space, agent_generator(seed), settings, statistics)


def takes(agent: str, parameter: str) -> bool:
    """Return whether an ask/tell agent has a hyperparameter; False for any algorithm of Stable-Baselines3."""
    return not is_algorithm(agent) and parameter in inspect.signature(agent_class(agent)).parameters
