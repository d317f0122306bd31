"""Blocks of layers that `angular` and `interlace` choose by: measured on a model, or read from the file next to a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
from das_gym.agents.ask_tell.heuristics import Blocks
from das_gym.agents.searching.environment import is_tabular, make_scored

from das_gym.envs.tabular_env import bundled_table, load_table
from das_gym.files import read_json
from das_gym.registration import ENVIRONMENTS


def blocks_of(env_id: str, env_kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the blocks of an environment's model, measured by `measure_blocks` or read from the file next to its table.

    Args:
        env_id: Its id.
        env_kwargs: Its settings besides the budget.

    Returns:
        None if they are unknown: a custom environment, or a table without such a file.
    """
    return _blocks_of(env_id, json.dumps(dict(env_kwargs), sort_keys=True))


@lru_cache(maxsize=32)
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
    """Return the blocks stored next to a table; None without a file for the same model and data.

    Raises:
        ValueError: the file is damaged.
    """
    path = blocks_file(table)
    if not path.is_file():
        return None
    record, meta = read_json(path), load_table(table).meta
    try:
        if record["hashes"] != meta.hashes:
            return None
        Blocks.from_record(record["blocks"], len(meta.layer_names))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{path} is damaged ({error}). Remove it: agents then estimate what it holds.") from error
    return dict(record["blocks"])
