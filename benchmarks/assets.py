"""Make the files that come with the bundled models, besides weights and tables (`agents table`).

python -m benchmarks.assets checksums                das_gym/assets/checksums.json, after a bundled file changed
python -m benchmarks.assets references               the full model with adapters and the baseline of `python -m adapt`
"""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from das_gym.adapt.evaluate import evaluate
from das_gym.adapt.finetuning import finetune, new_subnet, reference_file, relevant_settings
from das_gym.adapt.report import BASELINE, FULL_MODEL
from das_gym.adapt.settings import TrainingConfig
from das_gym.adapt.step_loss import resolve_defaults

from benchmarks.machine import make_parser
from das_gym.files import ASSETS, CHECKSUMS, checksum, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.loading import load_backbone, load_splits
from das_gym.problem.problem import Problem
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the files, and print their paths."""
    parser = make_parser("assets", __doc__)
    parser.add_argument("what", choices=("checksums", "references"))
    options = parser.parse_args(arguments)
    if options.what == "checksums":
        print(write_checksums())
    else:
        print(*map(write_reference, (FULL_MODEL, BASELINE)), sep="\n")


if __name__ == "__main__":
    main()
