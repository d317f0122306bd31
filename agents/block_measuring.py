"""Measure the blocks of layers that `angular` and `interlace` choose by, and keep them beside a table.

    python -m agents blocks with table=das_gym/assets/meter_mini/vqa_table.npz
    python -m agents blocks with table=das_gym/assets/llava_mini/answering_table.npz checkpoint=llava_mini
    python -m agents blocks with table=runs/3/table.npz supernet=mine.safetensors data_root=/data/vqa

Searches on a model measure them by themselves, on the reward examples. A table does not hold them: this command loads the
model and the data that the table was made from and writes `vqa_blocks.json`, which is found there from then on.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from das_gym.agents.ask_tell.base import agent_class
from das_gym.agents.ask_tell.blocks import Blocks
from das_gym.agents.compare.oracle import is_tabular, make_scored
from das_gym.agents.sb3.algorithms import is_algorithm
from das_gym.agents.searching.loop import SearchConfig

from das_gym.commandline import CommandSettings, parse_or_help, typed
from das_gym.envs.tabular_env import load_table
from das_gym.files import at_home, read_json, write_json
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
        words = typed("agents blocks", shlex.quote(f"table={table}"))
        raise ValueError(f"{path} is damaged ({error}): remove it, or make it again with `{words}`") from error
    return blocks


def measure_beside(table: Path, **paths: str | None) -> Path:
    """Measure the model on the reward examples of a table, and write that beside it.

    Args:
        table: Its file.
        **paths: Fields of `ProblemConfig` that say what it was made from; None is the bundled one.

    Raises:
        ValueError: the table was made from something else.
    """
    from das_gym.problem.blocks import measure_blocks
    from das_gym.problem.config import ProblemConfig
    from das_gym.problem.loading import load_problem
    from das_gym.tables.build import check_table, table_examples

    content = load_table(table)
    entry = ENVIRONMENTS[content.meta.env_id]
    halves = any(name.endswith(".mlp") for name in content.meta.layer_names)
    units = "sublayers" if halves else None
    problem = load_problem(ProblemConfig(model=entry.model, task=entry.task, units=units, **cast(Any, paths)))
    check_table(content, problem)
    blocks = measure_blocks(problem.evaluator, table_examples(problem, "reward", content.meta.reward_examples))
    write_json(file_beside(table), {"hashes": content.meta.hashes, "blocks": blocks}, indent=None)
    return file_beside(table)


@dataclass(frozen=True)
class BlocksSettings(CommandSettings):
    """The settings of `python -m agents blocks`.

    Attributes:
        table: File of the table.
        checkpoint: Checkpoint of the model that the table was made with. None uses the bundled one.
        supernet: Supernet that the table was made with. None uses the bundled one.
        data_root: Folder of the data that the table was made with. None uses the bundled data.
        tokenizer: Folder of the tokenizer, if the checkpoint's folder has none.
    """

    table: str
    checkpoint: str | None = None
    supernet: str | None = None
    data_root: str | None = None
    tokenizer: str | None = None


def main(words: Sequence[str] = ()) -> None:
    """Measure and write as the words behind `python -m agents blocks` say."""
    settings = parse_or_help(BlocksSettings, words, "agents blocks")
    if settings is not None:
        paths = {name: getattr(settings, name) for name in ("checkpoint", "supernet", "data_root", "tokenizer")}
        print(f"blocks of layers: {measure_beside(at_home(settings.table), **paths)}")
