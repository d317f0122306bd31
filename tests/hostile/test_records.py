"""Every record that a command reads, with each of its values replaced: it is read, or what is wrong is told."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from das_gym.adapt.choosing import read_front
from das_gym.adapt.run_report import run_report
from das_gym.agents import past_runs
from das_gym.agents.pareto.record import Scored
from das_gym.agents.pareto.searcher import FrontSearch
from das_gym.agents.pareto_experiment import restore
from das_gym.agents.searching.blocks import beside, file_beside

from das_gym.drawing.architecture import Architecture
from das_gym.drawing.report import write_report
from das_gym.files import write_text
from das_gym.problem.mask_cost import given_costs
from das_gym.tables.table import SubnetTable
from tests.tables.test_table import make_table

OTHERS: tuple[Any, ...] = (
    None,
    True,
    -1,
    0.5,
    1e308,
    10**400,
    "",
    "x",
    "[/x]\x1b[2J<script>",
    [],
    {},
    [[1]],
    {"a": 1},
    float("nan"),
)

MASK = [1, 0, 1, 0]
UNITS = Architecture.of(["text.0", "text.1", "image.0", "image.1"], [0, 1, 0, 1]).record()
EVALUATION = {"metric_name": "accuracy", "metric": 0.5, "loss": 1.0, "examples": 8, "numbers": {}}
MODEL = {
    "name": "subnet",
    "mask": MASK,
    "skipped_layers": ["text.0"],
    "macs_saved": 0.1,
    "macs": 8.0,
    "parameters": 10,
    "trainable_parameters": 4,
    "latency_ms": 2.0,
    "latency_quartiles_ms": [1.0, 3.0],
    "speedup": None,
    "speedup_interval": None,
    "from_package": False,
    "evaluation": EVALUATION,
}
PROBLEM = {"model": "METER", "task": "vqa"}
TURNS = [{"rewards": [0.1, 0.2], "preferences": [0.0, 1.0, 0.0, -1.0]}]
ADAPTED = {"problem": PROBLEM, "settings": {"search_run": 3}, "models": [MODEL], "units": UNITS, "versions": {"torch": "2"}}
SHRUNK_MODEL: dict[str, Any] = dict.fromkeys(("score", "low", "high", "loss", "macs_saved"), 0.5)
SHRUNK_MODEL |= {"name": "full", "parameters": 3, "bytes": 12, "macs": 8, "peak_bytes": None}
SHRUNK_MODEL |= {f"{part}_{unit}": [1.0, 0.5, 2.0] for part in ("prefill", "decode") for unit in ("ms", "speedup")}
RECORDS: dict[str, tuple[str, Any]] = {
    "front": (
        "front.json",
        {
            "points": [{"mask": MASK, "saved": 0.1, "loss": 1.0, "skipped_layers": ["text.0"]}],
            "env_id": "X-v0",
            "env_kwargs": {},
        },
    ),
    "pareto checkpoint": (
        "checkpoint.json",
        {
            "scored": {"masks": ["1010"], "saved": [0.5], "losses": [None], "metrics": [0.5]},
            "searcher": FrontSearch(4, lambda masks: masks.mean(axis=1), np.random.default_rng(0)).state_dict(),
        },
    ),
    "run": (
        "run.json",
        {"experiment": {"name": "agents"}, "status": "COMPLETED", "result": 0.5, "start_time": "2026-11-25T22:00"},
    ),
    "blocks": (
        "a_blocks.json",
        {
            "hashes": {},
            "blocks": {"stages": [[0], [1], [2], [3]], "streams": ["a"] * 4, "angular": [[0.1]] * 4, "cosine": [[None]] * 4},
        },
    ),
    "adapt": ("adapt.json", ADAPTED),
    "das": ("das.json", {**ADAPTED, "search": {"turns": TURNS}}),
    "shrink": (
        "shrink.json",
        {
            "settings": {},
            "source": "a/b",
            "out": "c",
            "mask": MASK,
            "layers": ["a", "b", "c", "d"],
            "models": [SHRUNK_MODEL, {**SHRUNK_MODEL, "name": "shrunk"}],
            "metric": "accuracy",
            "difference": {"score": 0.0, "low": -0.1, "high": 0.1},
            "units": UNITS,
            "problem": PROBLEM,
            "versions": {},
        },
    ),
    "costs": ("costs.json", {"costs": {"latency_saved": {"full": 2.0, "unskipped": 2.0, "savings": [0.5, 0.5]}}}),
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "a_table.npz"
    make_table().save(path)
    return path


def reader_of(name: str, table: Path) -> Callable[[Path], Any]:
    def blocks(path: Path) -> Any:
        file_beside(table).write_bytes(path.read_bytes())
        return beside(table)

    def checkpoint(path: Path) -> Scored:
        return restore(FrontSearch(4, lambda masks: masks.mean(axis=1), np.random.default_rng(0)), path)

    number = itertools.count()

    def report(path: Path) -> None:
        told = run_report(path.parent)
        if next(number) % 20 == 0:  # which takes longer
            write_report(path.with_name("report.html"), [told])

    readers: dict[str, Callable[[Path], Any]] = {"front": read_front, "run": past_runs._read, "blocks": blocks}
    readers |= {"pareto checkpoint": checkpoint, "costs": lambda path: given_costs(str(path))}
    return readers.get(name, report)


def replaced(value: Any) -> Iterator[Any]:
    """Copies of a record, in each of which one value is another, or gone."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        for other in (*OTHERS, *replaced(entry)):
            changed = copy.copy(value)
            changed[key] = other
            yield changed
        if isinstance(value, dict):
            yield {name: item for name, item in value.items() if name != key}
    yield from ([], None, 3, "x", {}) if isinstance(value, dict) else ()


def whole(name: str, table: Path) -> Any:
    record = copy.deepcopy(RECORDS[name][1])
    if name == "blocks":
        meta = SubnetTable.load(table).meta
        n = len(meta.layer_names)
        record["hashes"] = dict(meta.hashes)
        record["blocks"] = {"stages": [[i] for i in range(n)], "streams": ["a"] * n}
        record["blocks"] |= {"angular": [[0.1]] * n, "cosine": [[0.1]] * n}
    return record


LONG = ("adapt", "shrink")
"""Those of which the most values are tried."""


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in RECORDS])
def test_a_record_with_another_value_is_read_or_named(name: str, table: Path, tmp_path: Path):
    folder = tmp_path / "7"
    folder.mkdir()
    file, record = RECORDS[name][0], whole(name, table)
    path, read = folder / file, reader_of(name, table)
    path.write_text(json.dumps(record))
    read(path)
    variants = replaced(record)
    if name == "das":  # the rest is that of `adapt`
        variants = ({**record, "search": search} for search in replaced(record["search"]))
    for changed in variants:
        text = json.dumps(changed)
        path.write_text(text)
        try:
            read(path)
        except (ValueError, FileNotFoundError):
            continue
        except Exception as error:
            raise AssertionError(f"{error!r} of {text[:3000]}") from error


def test_a_damaged_run_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number, text in enumerate(["{", "[]", '{"experiment": {"name": "[/x]\\u001b[2J"}, "result": 1.0}'], start=1):
        write_text(tmp_path / str(number) / "run.json", text)
    past_runs.main(["with", f"runs_dir={tmp_path}"])
    told = capsys.readouterr().out
    assert told.count("damaged") == 2
    assert "[/x]?[2J" in told
