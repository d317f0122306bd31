"""Every command does the same again: same seed and number of threads, byte-equal results; another seed, others.

Only times, ids and places may differ, see SECURITY.md. The commands are those of `python -m tests.faults`, and some more.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from das_gym.agents.compare_experiment import ex as compare
from das_gym.agents.pareto_experiment import ex as pareto

from das_gym.files import read_json
from tests.faults.jobs import JOBS, Job, _run, scrubbed

VOLATILE = re.compile(
    r"id|out|table|command|runs_dir|search_run|spent|(.*_)?(seconds|ms|latency|speedup|memory|quartiles)(_.*)?"
)
"""Names of entries of records that hold times, ids, places, and what was spent where scores were remembered."""

NOT_RESULTS = re.compile(r"(config|run|metrics)\.json|cout\.txt|\.html|\.svg|\.png|\.md$|/\.|_sources")
"""Files that results do not include: records of Sacred, pictures, reports and hidden files."""

TABULAR = {"env_id": "DAS-METER-VQA-Tabular-v0"}


def _compare(folder: Path) -> Job:
    del folder
    settings = {"agents": ["random", "bandit"], "seeds": 2, "evaluations": 12, "skip_num": 4}
    return Job(_run(lambda: compare), (), {**TABULAR, **settings})


def _pareto(folder: Path) -> Job:
    del folder
    return Job(_run(lambda: pareto), (), {**TABULAR, "evaluations": 40})


def results(folder: Path) -> dict[str, Any]:
    """Return the files of a command without Sacred's: weights and tables as bytes, records scrubbed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not NOT_RESULTS.search(name):
            found[name] = scrubbed(read_json(path), VOLATILE) if path.suffix == ".json" else path.read_bytes()
    return found


MAKERS: dict[str, Callable[[Path], Job]] = {**JOBS, "compare": _compare, "pareto": _pareto}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model, the supernet and the data of all commands lie."""
    return tmp_path_factory.mktemp("world")


SHORT = ("search", "table")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.long) for name in MAKERS])
def test_command_is_deterministic(name: str, world: Path, tmp_path: Path):
    job = MAKERS[name](world)

    def run(place: str, **settings: Any) -> dict[str, Any]:
        out = {} if job.out is None else {"out": str(tmp_path / place / job.out)}
        (tmp_path / place).mkdir()
        job.run({"runs_dir": str(tmp_path / place / "runs"), **job.settings, **out, **settings})
        return results(tmp_path / place)

    first, again = run("first"), run("again")
    assert first.keys() == again.keys()
    assert [name for name in first if first[name] != again[name]] == []
    assert first
    if name not in ("table", "export"):  # nothing is drawn there
        assert run("other", seed=7) != first
