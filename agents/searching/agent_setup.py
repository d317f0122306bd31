"""Agents as searches and comparisons make them: with search defaults, their own generator, and measured blocks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from das_gym.agents.ask_tell.base import Agent, agent_class, make_agent
from das_gym.agents.ask_tell.heuristics import Blocks
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.environment import is_tabular, make_scored

from das_gym.envs.tabular_env import bundled_table, load_table
from das_gym.files import explain_damage, read_json
from das_gym.problem.budget import Floats
from das_gym.problem.mask_space import MaskSpace
from das_gym.registration import ENVIRONMENTS

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
    """Make the agent of a search; `SEARCH_DEFAULTS` and, for agents that take them, `blocks` are filled in."""
    settings = {**SEARCH_DEFAULTS.get(name, {}), **agent_kwargs}
    if takes(name, "blocks") and "blocks" not in settings:
        settings["blocks"] = blocks_of(env_id, env_kwargs)
    return make_agent(name, space, agent_generator(seed), settings, statistics)


def takes(agent: str, parameter: str) -> bool:
    """Return whether an ask/tell agent has a hyperparameter; False for any algorithm of Stable-Baselines3."""
    return not is_algorithm(agent) and parameter in inspect.signature(agent_class(agent)).parameters


def blocks_of(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the blocks of layers that `angular` and `interlace` choose by.

    They are measured on the environment's model, or read from the file next to its table. None if they are unknown: a custom
    environment, or a table without such a file.
    """
    return _blocks_of(env_id, json.dumps(dict(env_kwargs), sort_keys=True))


@lru_cache(maxsize=32)  # by JSON text, as mappings have no hash; measuring takes forwards of the full model
def _blocks_of(env_id: str, env_kwargs: str) -> dict[str, Any] | None:
    from das_gym.problem.blocks import measure_blocks

    settings, name = json.loads(env_kwargs), env_id.rpartition(":")[2]
    if is_tabular(env_id):
        made_with = gymnasium.spec(env_id).kwargs | settings
        table = made_with.get("table") or bundled_table(made_with["model"], made_with["task"])
        return stored_blocks(Path(table))
    if name not in ENVIRONMENTS:
        return None
    scorer = make_scored(env_id, {"skip_num": None}, settings).scorer
    return measure_blocks(scorer.problem.evaluator, scorer.fixed_examples)


def blocks_file(table: Path) -> Path:
    """Return the path of the blocks of a table: `vqa_blocks.json` next to `vqa_table.npz`."""
    return table.with_name(f"{table.stem.removesuffix('_table')}_blocks.json")


def stored_blocks(table: Path) -> dict[str, Any] | None:
    """Return the blocks stored next to a table; None without a file for the same model and data."""
    path = blocks_file(table)
    if not path.is_file():
        return None
    record, meta = read_json(path), load_table(table).meta
    with explain_damage(path, "remove it: agents then estimate what it holds"):
        if record["hashes"] != meta.hashes:
            return None
        Blocks.from_record(record["blocks"], len(meta.layer_names))
    return dict(record["blocks"])
