"""Measure the blocks of layers that `angular` and `interlace` choose by, and write them next to a table.

    python -m benchmarks.blocks with table=das_gym/assets/meter_mini/vqa_table.npz
    python -m benchmarks.blocks with table=das_gym/assets/llava_mini/answering_table.npz checkpoint=llava_mini
    python -m benchmarks.blocks with table=runs/3/table.npz supernet=mine.safetensors data_root=/data/vqa

Searches on a model measure them by themselves, on the reward examples. A table does not hold them: this command loads the
model and the data that the table was made from and writes `vqa_blocks.json`, which is found there from then on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from das_gym.agents.searching.setup import blocks_file

from das_gym.commandline import parse_or_help
from das_gym.envs.tabular_env import load_table
from das_gym.files import at_home, write_json
from das_gym.problem.blocks import measure_blocks
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_problem
from das_gym.registration import ENVIRONMENTS
from das_gym.runs import PluginSettings
from das_gym.tables.build import check_table, table_examples


def measure_beside(table: Path, **paths: str | None) -> Path:
    """Measure the model on the reward examples of a table, and write the result next to it.

    Args:
        table: Its file.
        **paths: Fields of `ProblemConfig` that describe its origin; None is the bundled one.

    Raises:
        ValueError: the table was made from something else.
    """
    content = load_table(table)
    entry = ENVIRONMENTS[content.meta.env_id]
    halves = any(name.endswith(".mlp") for name in content.meta.layer_names)
    units = "sublayers" if halves else None
    problem = load_problem(ProblemConfig(model=entry.model, task=entry.task, units=units, **cast(Any, paths)))
    check_table(content, problem)
    blocks = measure_blocks(problem.evaluator, table_examples(problem, "reward", content.meta.reward_examples))
    write_json(blocks_file(table), {"hashes": content.meta.hashes, "blocks": blocks}, indent=None)
    return blocks_file(table)


@dataclass(frozen=True)
class BlocksSettings(PluginSettings):
    """The settings of `python -m benchmarks.blocks`.

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
    """Measure and write as the words behind `python -m benchmarks.blocks` say."""
    settings = parse_or_help(BlocksSettings, words, "benchmarks.blocks")
    if settings is not None:
        paths = {name: getattr(settings, name) for name in ("checkpoint", "supernet", "data_root", "tokenizer")}
        print(f"blocks of layers: {measure_beside(at_home(settings.table), **paths)}")


if __name__ == "__main__":
    main(sys.argv[1:])
