"""Blocks of layers that `angular` and `interlace` choose by: measured on a model, or read from the file beside a table."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.ask_tell.blocks import Blocks
from das_gym.agents.compare.oracle import is_tabular, make_scored
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.loop import SearchConfig

from das_gym.envs.tabular_env import load_table
from das_gym.files import read_json
from das_gym.registration import ENVIRONMENTS


def takes_blocks(agent: str) -> bool:
    """Whether an agent of `AGENTS`, or one's own, chooses by blocks of layers."""
    return not is_algorithm(agent) and "blocks" in inspect.signature(agent_class(agent)).parameters


def with_blocks(config: SearchConfig) -> SearchConfig:
    """A search whose agent is told what it needs of blocks; as it was for an agent that needs nothing.

    A search that `das_gym.agents.search` is given without this estimates them, see `das_gym.agents.ask_tell.blocks`.
    """
    if not takes_blocks(config.agent) or "blocks" in config.agent_kwargs:
        return config
    blocks = blocks_of(config.env_id, config.env_kwargs)
    return config if blocks is None else dataclasses.replace(config, agent_kwargs={**config.agent_kwargs, "blocks": blocks})


def blocks_of(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `das_gym.problem.blocks.measure_blocks` finds in an environment's model; what lies beside its table, of a table.

    Args:
        env_id: Its id.
        env_kwargs: Its settings besides the budget.

    Returns:
        None where nobody knows: an environment of one's own, a table without such a file.
    """
    return _blocks_of(env_id, json.dumps(dict(env_kwargs), sort_keys=True))


@lru_cache(maxsize=32)
def _blocks_of(env_id: str, env_kwargs: str) -> dict[str, Any] | None:
    from das_gym.envs.tabular_env import bundled_table
    from das_gym.problem.blocks import measure_blocks

    settings = json.loads(env_kwargs)
    if is_tabular(env_id):
        entry = next(entry for entry in ENVIRONMENTS.values() if entry.tabular_id == env_id.rpartition(":")[2])
        given = settings.get("table")
        return beside(Path(given) if given is not None else bundled_table(entry.model, entry.task))
    if env_id.rpartition(":")[2] not in ENVIRONMENTS:
        return None
    scorer = make_scored(env_id, {"skip_num": None}, settings).scorer
    return measure_blocks(scorer.problem.evaluator, scorer.fixed_examples)


def file_beside(table: Path) -> Path:
    """Where the blocks of a table lie: `vqa_blocks.json` beside `vqa_table.npz`."""
    return table.with_name(f"{table.stem.removesuffix('_table')}_blocks.json")


def beside(table: Path) -> dict[str, Any] | None:
    """The blocks that lie beside a table; None where there are none of the same model and data.

    Raises:
        ValueError: the file is damaged.
    """
    path = file_beside(table)
    if not path.is_file():
        return None
    record = read_json(path)
    meta = load_table(table).meta
    try:
        blocks = record["blocks"] if record["hashes"] == meta.hashes else None
        if blocks is not None:
            Blocks.of(blocks, None, len(meta.layer_names))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it: agents then estimate what it holds.") from error
    return blocks
