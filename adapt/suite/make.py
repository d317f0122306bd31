"""Make the problems of `DAS-Suite-v0`: models, their supernets, and a table of each.

python -m adapt suite with out=FOLDER                 all of them; what lies in FOLDER already is gone on from
python -m adapt suite with out=FOLDER only=train-03   those models whose names begin so
python -m adapt suite with out=FOLDER seed=7          another suite

FOLDER/work holds models and data, FOLDER/tables what `DAS-Suite-v0` reads: pass it `suite=FOLDER/tables`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from das_gym.adapt.suite.models import SuiteModel, make_model
from das_gym.adapt.suite.plan import SEED, suite_models

from das_gym.commandline import CommandSettings, parse_or_help
from das_gym.files import write_json
from das_gym.problem.loading import build_problem
from das_gym.registration import ENVIRONMENTS, EnvEntry, find_environment
from das_gym.shapes.captions import write_shapes_captions
from das_gym.shapes.nlvr2 import write_shapes_nlvr2
from das_gym.shapes.vqa import write_shapes
from das_gym.tables.build import build_table, with_statistics
from das_gym.tables.suite import SUITE_FILE, SuiteTable, suite_record
from das_gym.tables.table import SubnetTable

EXAMPLES = {"retrieval": (32, 16)}
USUAL_EXAMPLES = (256, 128)
"""Reward and test examples of a table, by task."""

BUNDLED_EXAMPLES = 256
"""So many reward examples tell the statistics of a bundled model."""


@dataclass(frozen=True)
class SuiteSettings(CommandSettings):
    """The settings of `python -m adapt suite`.

    Attributes:
        out: Folder to write to, and to go on in.
        seed: Draws models and data.
        only: Make the models alone whose names begin so, and no index.
        bundled: Whether the bundled models' tables are in `test` as well.
    """

    out: str
    seed: int = SEED
    only: str = ""
    bundled: bool = True


def make_suite(settings: SuiteSettings) -> Path:
    """Make what is not there yet; returns the folder of tables."""
    out = Path(settings.out).expanduser().absolute()
    tables, work = out / "tables", out / "work"
    for folder in (tables, work):
        folder.mkdir(parents=True, exist_ok=True)
    models = [spec for spec in suite_models(settings.seed) if spec.name.startswith(settings.only)]
    listed = [_make_one(spec, work, tables) for spec in models]
    if settings.bundled and not settings.only:
        listed += [_bundled_table(entry, tables) for entry in ENVIRONMENTS.values() if entry.table is not None]
    if not settings.only:
        write_json(tables / SUITE_FILE, suite_record(listed, settings.seed))
    return tables


def _make_one(spec: SuiteModel, work: Path, tables: Path) -> SuiteTable:
    """The model's table, made or found."""
    path = tables / f"{spec.name}.npz"
    if not path.is_file():
        started, used = time.perf_counter(), time.process_time()
        config = make_model(spec, _data(spec, work), work / spec.name)
        env_id = find_environment(spec.model, spec.task).id
        counts = EXAMPLES.get(spec.task, USUAL_EXAMPLES)
        checkpoint = work / f"{spec.name}-table.npz"
        table, _ = build_table(build_problem(config), env_id, *counts, checkpoint=checkpoint, each=True)
        table.save(path)
        checkpoint.unlink(missing_ok=True)
        spent = f"{time.process_time() - used:.0f} s of computing in {time.perf_counter() - started:.0f} s"
        print(f"{spec.name}: {table.n_layers} units, {path.stat().st_size / 1e3:.0f} kB, {spent}", flush=True)
    return SuiteTable(path.name, spec.split, spec.model, spec.task, spec.name)


def _data(spec: SuiteModel, work: Path) -> Path:
    """A small data set of the task, drawn from the model's seed."""
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
    """The table of a bundled model, with the statistics that tables made from now on have."""
    from das_gym.problem.config import ProblemConfig
    from das_gym.problem.statistics import STATISTICS

    model, task = entry.model, entry.task
    path = tables / f"bundled-{model.lower()}-{task}.npz"
    if entry.table is not None and not path.is_file():
        table = SubnetTable.load(entry.table).of_all_examples()
        problem = build_problem(ProblemConfig(model=model, task=task))
        count = EXAMPLES.get(task, (BUNDLED_EXAMPLES, 0))[0]
        with_statistics(table, problem, tuple(STATISTICS), count).save(path)
        print(f"{path.stem}: its statistics measured on {count} examples", flush=True)
    return SuiteTable(path.name, "test", model, task, f"bundled {model}")


def main(words: Sequence[str]) -> None:
    """Make the suite as the words behind `python -m adapt suite` say."""
    settings = parse_or_help(SuiteSettings, words, "adapt suite")
    if settings is not None:
        print(f"tables: {make_suite(settings)}")
