"""Make the problems of `DAS-Suite-v0`: models, their supernets, and a table of each.

python -m benchmarks.make_suite with out=FOLDER                 all of them; resumes from the content of FOLDER
python -m benchmarks.make_suite with out=FOLDER only=train-03   those models whose names begin so
python -m benchmarks.make_suite with out=FOLDER seed=7          another suite
python -m benchmarks.make_suite with out=FOLDER retime=TABLES   time the units of a suite's models here, and nothing else

FOLDER/work holds models and data, FOLDER/tables what `DAS-Suite-v0` reads: pass it `suite=FOLDER/tables`.

Every table knows the latency of its units: of one example at a time, by the processor time of one thread, so that other work
on the machine barely changes it; tables record the processor. It does not depend on weights: `retime` makes models of
the same shape without training them, and one shape is timed once (the cache folder keeps it).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.make_suite.models import SuiteModel, make_model
from benchmarks.make_suite.plan import SEED, suite_models
from das_gym.commandline import parse_or_help
from das_gym.config import check_names
from das_gym.files import absolute, write_json
from das_gym.problem.config import ProblemConfig
from das_gym.problem.latency import latency_of
from das_gym.problem.loading import Problem, build_problem
from das_gym.problem.statistics import STATISTICS
from das_gym.registration import ENVIRONMENTS, EnvEntry, find_environment
from das_gym.runs import PluginSettings, lock_folder
from das_gym.shapes.captions import write_shapes_captions
from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.build import build_table, latency_costs, with_statistics
from das_gym.tables.suite import SUITE_FILE, SuiteTable, read_suite, suite_record
from das_gym.tables.table import SubnetTable

EXAMPLES = {"retrieval": (32, 16)}
USUAL_EXAMPLES = (256, 128)
"""Reward and test examples of a table, by task."""

LATENCY_BATCH = 1
"""Batch size of the latencies in tables."""

BUNDLED_EXAMPLES = 256
"""Number of reward examples for the statistics of a bundled model."""


@dataclass(frozen=True)
class SuiteSettings(PluginSettings):
    """The settings of `python -m benchmarks.make_suite`.

    Attributes:
        out: Folder to write to. A stopped command continues there.
        seed: Random seed of models and data.
        only: Make only the models whose names start with this text, and no index.
        bundled: Whether the tables of the bundled models are part of the `test` split.
        retime: Folder of the tables of a suite made with the same seed: only measure the latency of their layers on this
            machine and write it into them. `only` chooses among them.
    """

    out: str
    seed: int = SEED
    only: str = ""
    bundled: bool = True
    retime: str | None = None


def make_suite(settings: SuiteSettings) -> Path:
    """Make what is missing, or measure latencies again; return the folder of tables."""
    out = absolute(settings.out)
    work, tables = out / "work", out / "tables"
    work.mkdir(parents=True, exist_ok=True)
    lock = lock_folder(out)
    try:
        if settings.retime is not None:
            return _retime(settings, work)
        tables.mkdir(exist_ok=True)
        models = [spec for spec in suite_models(settings.seed) if spec.name.startswith(settings.only)]
        listed = [_make_one(spec, work, tables) for spec in models]
        if settings.bundled and not settings.only:
            listed += [_bundled_table(entry, tables) for entry in ENVIRONMENTS.values() if entry.table is not None]
        if not settings.only:
            write_json(tables / SUITE_FILE, suite_record(listed, settings.seed))
        return tables
    finally:
        lock.release()


def _make_one(spec: SuiteModel, work: Path, tables: Path) -> SuiteTable:
    """Make the table of a model if it does not exist."""
    path = tables / f"{spec.name}.npz"
    if not path.is_file():
        started, used = time.perf_counter(), time.process_time()
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
    """Return a table with the latency of its units: processor time of one thread, which other load barely affects.

    It does not depend on weights, so that an untrained model of the same shape serves.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        costs = table.meta.costs | latency_costs(latency_of(problem, LATENCY_BATCH, time.thread_time))
    finally:
        torch.set_num_threads(threads)
    return replace(table, meta=replace(table.meta, costs=costs))


def _retime(settings: SuiteSettings, work: Path) -> Path:
    """Time the units of all tables of a suite, on models that were not trained."""
    folder, entries = read_suite(settings.retime)
    specs = {spec.name: spec for spec in suite_models(settings.seed)}
    for entry in entries:
        if not Path(entry.file).stem.startswith(settings.only):
            continue
        started, path = time.perf_counter(), folder / entry.file
        if entry.name == f"bundled {entry.model}":
            config = ProblemConfig(model=entry.model, task=entry.task)
        else:
            check_names([entry.name], specs, f"model of seed={settings.seed}")
            spec = replace(specs[entry.name], steps=0)
            config = make_model(spec, _data(spec, work), work / f"{spec.name}-untrained")
        table = timed(SubnetTable.load(path), build_problem(config))
        table.save(path)
        cost = table.costs["latency_saved"]
        print(
            f"{entry.file}: {cost.full:.2f} ms, skipping all saves {100 * cost.range[1]:.0f} %, "
            f"in {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return folder


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
    model, task = entry.model, entry.task
    path = tables / f"bundled-{model.lower()}-{task}.npz"
    if entry.table is not None and not path.is_file():
        table = SubnetTable.load(entry.table).of_all_examples()
        problem = build_problem(ProblemConfig(model=model, task=task))
        count = EXAMPLES.get(task, (BUNDLED_EXAMPLES, 0))[0]
        timed(with_statistics(table, problem, tuple(STATISTICS), count), problem).save(path)
        print(f"{path.stem}: its statistics measured on {count} examples", flush=True)
    return SuiteTable(path.name, "test", model, task, f"bundled {model}")


def main(words: Sequence[str]) -> None:
    """Make the suite as the words behind `python -m benchmarks.make_suite` say."""
    settings = parse_or_help(SuiteSettings, words, "benchmarks.make_suite")
    if settings is not None:
        print(f"tables: {make_suite(settings)}")
