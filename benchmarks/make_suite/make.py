"""Make the problems of `DAS-Suite-v0`: models, their supernets, and a table of each.

    python -m benchmarks.make_suite --out FOLDER                    all of them; resumes from the content of FOLDER
    python -m benchmarks.make_suite --out FOLDER --only train-03    those models whose names begin so
    python -m benchmarks.make_suite --out FOLDER --seed 7           another suite

FOLDER/work holds models and data, FOLDER/tables what `DAS-Suite-v0` reads: pass it `suite=FOLDER/tables`.

Every table knows the latency of its units: of one example at a time, by the processor time of one thread, so that other work
on the machine barely changes it; tables record the processor. One shape is timed once (the cache folder keeps it).
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.machine import make_parser
from benchmarks.make_suite.models import SuiteModel, make_model
from benchmarks.make_suite.plan import SEED, suite_models
from das_gym.commands.runs import lock_folder
from das_gym.files import absolute_path, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.latency import unit_latencies
from das_gym.problem.problem import Problem, build_problem
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import ENVIRONMENTS, EnvEntry, env_entry, find_environment
from das_gym.shapes.captions import write_shapes_captions
from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.build import build_table, latency_costs, with_statistics
from das_gym.tables.suite import SUITE_FILE, SuiteTable, suite_record
from das_gym.tables.table import SubnetTable

EXAMPLES = {"retrieval": (32, 16)}
USUAL_EXAMPLES = (256, 128)
"""Reward and test examples of a table, by task."""

LATENCY_BATCH = 1
"""Batch size of the latencies in tables."""

BUNDLED_EXAMPLES = 256
"""Number of reward examples for the statistics of a bundled model."""

PRETRAINED = {
    "DAS-SmolLM2-Text-Tabular-v0": "SmolLM2-135M",
    "DAS-SmolVLM135M-Answering-Tabular-v0": "SmolVLM-135M",
}
"""Names of the pretrained models whose bundled tables are part of the `test` split, by the ids of the tables."""


def make_suite(out: Path, seed: int = SEED, only: str = "", bundled: bool = True) -> Path:
    """Make what is missing, and return the folder of tables.

    Args:
        out: Folder to write to. A stopped command continues there.
        seed: Random seed of models and data.
        only: Make only the models whose names start with this text, and no index.
        bundled: Whether the tables of the bundled models are part of the `test` split.
    """
    work = out / "work"
    tables = out / "tables"
    work.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    try:
        tables.mkdir(exist_ok=True)
        models = [spec for spec in suite_models(seed) if spec.name.startswith(only)]
        listed = [_make_one(spec, work, tables) for spec in models]
        if bundled and not only:
            listed += [_bundled_table(entry, tables) for entry in ENVIRONMENTS.values() if entry.table is not None]
            listed += [_pretrained_table(id, name) for id, name in PRETRAINED.items()]
        if not only:
            write_json(tables / SUITE_FILE, suite_record(listed, seed))
        return tables
    finally:
        lock.release()


def _make_one(spec: SuiteModel, work: Path, tables: Path) -> SuiteTable:
    """Make the table of a model if it does not exist."""
    path = tables / f"{spec.name}.npz"
    if not path.is_file():
        started = time.perf_counter()
        used = time.process_time()
        config = make_model(spec, _data(spec, work), work / spec.name)
        env_id = find_environment(spec.model, spec.task).id
        counts = EXAMPLES.get(spec.task, USUAL_EXAMPLES)
        checkpoint = work / f"{spec.name}-table.npz"
        problem = build_problem(config)
        table, _ = build_table(problem, env_id, *counts, checkpoint=checkpoint, each=True)
        timed(table, problem).save(path)
        checkpoint.unlink(missing_ok=True)
        spent = f"{time.process_time() - used:.0f} s of computing in {time.perf_counter() - started:.0f} s"
        print(f"{spec.name}: {table.n_layers} units, {path.stat().st_size / 1e3:.0f} kB, {spent}", flush=True)
    return SuiteTable(path.name, spec.split, spec.model, spec.task, spec.name)


def timed(table: SubnetTable, problem: Problem) -> SubnetTable:
    """Return a table with the latency of its units: processor time of one thread, which other load barely affects."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs = table.meta.costs | latency_costs(unit_latencies(problem, LATENCY_BATCH, time.thread_time))
    finally:
        torch.set_num_threads(threads)
    return replace(table, meta=replace(table.meta, costs=costs))


def _data(spec: SuiteModel, work: Path) -> Path:
    """Write a small data set of the task, drawn from the model's seed."""
    folder = work / f"{spec.name}-data"
    if not folder.is_dir():
        seed = spec.seed % 100_000
        if spec.task == "nlvr2":
            write_shapes_nlvr2(folder, seed, directories=3, directory_sets=30, test_sets=30)
        elif spec.task == "retrieval":
            write_shapes_captions(folder, seed, {"train": 200, "val": 60, "test": 60})
        else:
            write_shapes(folder, seed, train_scenes=300, val_scenes=200)
    return folder


def _bundled_table(entry: EnvEntry, tables: Path) -> SuiteTable:
    """Make the table of a bundled model, with the statistics that tables made from now on have."""
    model = entry.model
    task = entry.task
    path = tables / f"bundled-{model.lower()}-{task}.npz"
    if entry.table is not None and not path.is_file():
        table = SubnetTable.load(entry.table).without_groups()
        problem = build_problem(ProblemConfig(model=model, task=task))
        count = EXAMPLES.get(task, (BUNDLED_EXAMPLES, 0))[0]
        timed(with_statistics(table, problem, tuple(STATISTICS), count), problem).save(path)
        print(f"{path.stem}: its statistics measured on {count} examples", flush=True)
    return SuiteTable(path.name, "test", model, task, f"bundled {model}")


def _pretrained_table(id: str, name: str) -> SuiteTable:
    entry = env_entry(id)
    assert entry is not None
    return SuiteTable(id, "test", entry.model, entry.task, name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the suite."""
    parser = make_parser("make_suite", __doc__)
    parser.add_argument("--out", type=absolute_path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=SEED, help="of models and data")
    parser.add_argument("--only", default="", help="make only the models whose names start with this text, and no index")
    options = parser.parse_args(arguments)
    print(f"tables: {make_suite(options.out, options.seed, options.only)}")
