from __future__ import annotations

import io
import subprocess
import sys

import pytest
from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.listing import NARROWEST, algorithms, environments, rewards, statistics
from das_gym.agents.listing import agents as agents_table
from das_gym.agents.sb3.algorithms import ALGORITHMS
from rich.console import Console

from das_gym import ENVIRONMENTS
from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import STATISTICS

ENTRIES = [
    (entry.id, entry.tabular_id if entry.table else "-", entry.short, entry.model, entry.task)
    for entry in ENVIRONMENTS.values()
]


def rows(text: str) -> list[list[str]]:
    """The cells of every line of a table."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


@pytest.fixture(scope="module")
def printed() -> str:
    return subprocess.run([sys.executable, "-m", "agents", "list"], check=True, capture_output=True, text=True).stdout


def test_listed_names_are_single_words(printed: str):
    cells = rows(printed)
    for entry in ENTRIES:
        assert any(row[:5] == list(entry) for row in cells)
    for name in (*AGENTS, *ALGORITHMS, *REWARDS, *STATISTICS):
        assert any(row[0] == name for row in cells)


@pytest.mark.parametrize("table", [environments, agents_table, algorithms, rewards, statistics])
def test_names_stay_whole_on_a_terminal(table, printed: str):
    console = Console(file=io.StringIO(), width=NARROWEST)
    console.print(table(NARROWEST) if table is environments else table())
    names = [row[0] for row in rows(console.file.getvalue()) if row[0]]
    assert names
    assert set(names) <= {row[0] for row in rows(printed)}
    assert max(map(len, console.file.getvalue().splitlines())) <= NARROWEST
    if table is environments:
        narrow = [(id, short) for id, _, short, _, _ in ENTRIES]
        assert narrow == [tuple(r[:2]) for r in rows(console.file.getvalue()) if r[0]]
        assert "block.0..11" in console.file.getvalue()


@pytest.mark.parametrize("columns", [80, 200])
def test_environments_lists_suite_and_multi_objective_ids(columns: int):
    text = io.StringIO()
    Console(file=text, width=columns).print(environments(columns))
    for id in ("DAS-Suite-v0", "DAS-Suite-Search-v0", "DAS-METER-VQA-MO-v0"):
        assert id in text.getvalue()
