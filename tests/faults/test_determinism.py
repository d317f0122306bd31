"""Every command with the same seed and number of threads writes byte-equal results; with another seed, other ones."""

import re
from pathlib import Path
from typing import Any

import pytest
from das_gym.agents.run_commands import compare

from das_gym.files import read_json
from tests.faults.jobs import JOBS, Job, scrubbed

VOLATILE = re.compile(
    r"id|out|table|rows|command|runs_dir|search_run|spent|(.*_)?(seconds|milliseconds|ms|latency|speedup|memory|quartiles)(_.*)?"
)
"""Names of entries of records that hold times, ids, places, tables in words, and what remembered scores cost."""

NOT_RESULTS = re.compile(r"(config|run|metrics)\.json|cout\.txt|\.html|\.svg|\.png|\.md$|/\.|_sources")
"""Files that results do not include: records of Sacred, plots, reports and hidden files."""

COMPARED = {
    "env_id": "DAS-METER-VQA-Tabular-v0",
    "agents": ["random", "bandit"],
    "seeds": 2,
    "evaluations": 12,
    "skip_num": 4,
}
MAKERS = {**JOBS, "compare": lambda folder: Job(compare.run, (), COMPARED)}
QUICK = ("table_search", "search", "pareto", "compare", "table", "supernet")


def results(folder: Path) -> dict[str, Any]:
    """Return the files of a command: weights and tables as bytes, records without times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not NOT_RESULTS.search(name):
            found[name] = scrubbed(read_json(path), VOLATILE) if path.suffix == ".json" else path.read_bytes()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in MAKERS])
def test_command_is_deterministic(name, tmp_path):
    job = MAKERS[name](tmp_path / "world")

    def run(place: str, **settings: Any) -> dict[str, Any]:
        out = {} if job.out is None else {"out": str(tmp_path / place / job.out)}
        (tmp_path / place).mkdir()
        job.run({"runs_dir": str(tmp_path / place / "runs"), **job.settings, **out, **settings})
        return results(tmp_path / place)

    first, again = run("first"), run("again")
    assert first
    assert first.keys() == again.keys()
    assert [file for file in first if first[file] != again[file]] == []
    if name not in ("table", "export"):  # nothing is drawn there
        assert run("other", seed=7) != first
