"""Make the files that come with the bundled models, besides weights and tables (`agents table`).

    python -m benchmarks.assets checksums                das_gym/assets/checksums.json, after a bundled file changed
    python -m benchmarks.assets references               the full model with adapters and the baseline of `python -m adapt`
    python -m benchmarks.assets blocks FILE...           what `angular` and `interlace` choose by, next to tables
    python -m benchmarks.assets blocks das_gym/assets/llava_mini/answering_table.npz --problem checkpoint=llava_mini
    python -m benchmarks.assets blocks runs/3/table.npz --problem supernet=mine.safetensors data_root=/data/vqa

Searches on a model measure blocks by themselves. A table does not hold them: the command loads the model and the data that
the table was made from, fields of `ProblemConfig`, and writes `vqa_blocks.json`, which is found there from then on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import finetune, new_subnet, reference_file, relevant_settings
from das_gym.adapt.report import BASELINE, FULL_MODEL
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import resolve_defaults

from benchmarks.machine import make_parser
from das_gym.commands.commandline import read_settings
from das_gym.commands.settings import build
from das_gym.envs.tabular_env import blocks_file, load_table
from das_gym.files import ASSETS, CHECKSUMS, checksum, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits
from das_gym.problem.problem import Problem, load_problem
from das_gym.problem.statistic_inputs import measure_blocks
from das_gym.registration import ENVIRONMENTS
from das_gym.tables.build import problem_hashes, table_examples
from das_gym.tables.table import SubnetTable


def check_table(table: SubnetTable, problem: Problem) -> None:
    """Raise a ValueError for a table of another model, supernet or data; the message names what differs."""
    reward = table_examples(problem, "reward", table.meta.reward_examples)
    test = table_examples(problem, "test", table.meta.test_examples)
    hashes = problem_hashes(problem, reward, test, content=table.examples is not None)
    differing = [name for name in hashes if table.meta.hashes.get(name) != hashes[name]]
    if differing:
        words = "; ".join(f"{name} is {table.meta.hashes.get(name)} there and {hashes[name]} here" for name in differing)
        raise ValueError(f"this table of {table.meta.env_id} belongs to another problem: {words}. Make one for it.")


def bundled_files() -> dict[str, Path]:
    """Return every bundled file that has a checksum, by its path within `ASSETS`."""
    files = {path.relative_to(ASSETS).as_posix(): path for path in sorted(ASSETS.rglob("*")) if path.is_file()}
    return {name: path for name, path in files.items() if name not in ("checksums.json", "README.md")}


def write_checksums() -> Path:
    """Write the checksum of every bundled file."""
    write_json(CHECKSUMS, {name: checksum(path) for name, path in bundled_files().items()})
    return CHECKSUMS


def write_reference(name: str) -> Path:
    """Train the full model or the baseline of the default problem, from the seed."""
    problem = ProblemConfig()
    splits = load_splits(problem)
    nothing = np.zeros(len(load_backbone(problem).vlp.layers), dtype=bool)
    model = new_subnet(problem, nothing, adapters=name == FULL_MODEL)
    config, _ = resolve_defaults(TrainingConfig(), model)
    finetune(model, splits, config, f"fine-tuning, {name}")
    print(f"{name}: {100 * evaluate(model, splits.test, f'evaluating, {name}').metric:.2f} % on test")
    path = cast(Path, reference_file(problem, name))
    model.adaptation(settings=relevant_settings(problem, config)).save(path)
    return path


def write_blocks(table: Path, origin: dict[str, Any]) -> Path:
    """Measure the model on the reward examples of a table. `origin`: fields of `ProblemConfig`, if not bundled."""
    content = load_table(table)
    entry = ENVIRONMENTS[content.meta.env_id]
    units = "sublayers" if any(name.endswith(".mlp") for name in content.meta.layer_names) else None
    problem = load_problem(build(ProblemConfig, {"model": entry.model, "task": entry.task, "units": units, **origin}))
    check_table(content, problem)
    blocks = measure_blocks(problem.evaluator, table_examples(problem, "reward", content.meta.reward_examples))
    write_json(blocks_file(table), {"hashes": content.meta.hashes, "blocks": blocks}, indent=None)
    return blocks_file(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files, and print their paths."""
    parser = make_parser("assets", __doc__)
    parser.add_argument("what", choices=("checksums", "references", "blocks"))
    parser.add_argument("tables", nargs="*", type=Path, help="of `blocks`")
    parser.add_argument("--problem", nargs="+", default=[], metavar="NAME=VALUE", help="what `blocks` loads")
    options = parser.parse_args(arguments)
    if options.what == "checksums":
        print(write_checksums())
    elif options.what == "references":
        print(*map(write_reference, (FULL_MODEL, BASELINE)), sep="\n")
    for table in options.tables:
        print(write_blocks(table, read_settings(options.problem)[0]))


if __name__ == "__main__":
    main()
