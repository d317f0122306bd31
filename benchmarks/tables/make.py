"""Make the tables of the leaderboard that no bundled model has: three models, each trained for a minute, and their tables.

    python -m benchmarks.tables.make --out FOLDER                  all of them; resumes from the content of FOLDER
    python -m benchmarks.tables.make --out FOLDER --only test-03   those whose names begin so

FOLDER/work holds models and data, FOLDER/tables what belongs here. Every table knows the latency of its units: of one
example at a time, by the processor time of one thread, so that other work on the machine barely changes it.

`bundled-*.npz` are tables of METER-mini and ViLT-mini by `agents table`, of 600 (METER-mini on NLVR2), 1,673 (METER-mini on
VQA) and 500 reward examples, of which 256 give the layer statistics.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import make_parser
from benchmarks.tables.models import MODELS, TrainedModel, make_model
from das_gym.commands.runs import lock_folder
from das_gym.files import absolute_path
from das_gym.problem.latency import unit_latencies
from das_gym.problem.problem import Problem, build_problem
from das_gym.registration import find_environment
from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.build import build_table, latency_costs
from das_gym.tables.table import SubnetTable

REWARD_EXAMPLES = 256
TEST_EXAMPLES = 128

LATENCY_BATCH = 1
"""Batch size of the latencies in tables."""


def make_table(spec: TrainedModel, work: Path, path: Path) -> None:
    """Train a model in the folder `work`, and write its table."""
    used = time.process_time()
    problem = build_problem(make_model(spec, write_data(spec, work), work / spec.name))
    env_id = find_environment(spec.model, spec.task).id
    checkpoint = work / f"{spec.name}-table.npz"
    table, _ = build_table(problem, env_id, REWARD_EXAMPLES, TEST_EXAMPLES, checkpoint=checkpoint, each=True)
    timed(table, problem).save(path)
    checkpoint.unlink(missing_ok=True)
    print(f"{spec.name}: {table.n_layers} units, {time.process_time() - used:.0f} s of processor time", flush=True)


def timed(table: SubnetTable, problem: Problem) -> SubnetTable:
    """Return a table with the latency of its units: processor time of one thread, which other load barely affects."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs = table.meta.costs | latency_costs(unit_latencies(problem, LATENCY_BATCH, time.thread_time))
    finally:
        torch.set_num_threads(threads)
    return replace(table, meta=replace(table.meta, costs=costs))


def write_data(spec: TrainedModel, work: Path) -> Path:
    """Write a small data set of the task, drawn from the model's seed."""
    folder = work / f"{spec.name}-data"
    if not folder.is_dir():
        seed = spec.seed % 100_000
        if spec.task == "nlvr2":
            write_shapes_nlvr2(folder, seed, directories=3, directory_sets=30, test_sets=30)
        else:
            write_shapes(folder, seed, train_scenes=300, val_scenes=200)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the tables that do not exist."""
    parser = make_parser("tables.make", __doc__)
    parser.add_argument("--out", type=absolute_path, required=True, help="folder to write to")
    parser.add_argument("--only", default="", help="make only the tables whose names start with this text")
    options = parser.parse_args(arguments)
    work = options.out / "work"
    tables = options.out / "tables"
    work.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(options.out)
    try:
        tables.mkdir(exist_ok=True)
        for spec in MODELS:
            path = tables / f"{spec.name}.npz"
            if spec.name.startswith(options.only) and not path.is_file():
                make_table(spec, work, path)
    finally:
        lock.release()
    print(f"tables: {tables}")


if __name__ == "__main__":
    main()
