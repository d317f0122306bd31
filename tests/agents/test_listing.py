from __future__ import annotations

import io

import pytest
from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.listing import NARROWEST, WIDE, tables
from das_gym.agents.sb3.algorithms import ALGORITHMS
from rich.console import Console

from das_gym import ENVIRONMENTS
from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import STATISTICS


@pytest.mark.parametrize("columns", [NARROWEST, WIDE])
def test_listed_names_are_whole(columns: int):
    console = Console(file=io.StringIO(), width=columns)
    for table in tables():
        console.print(table)
    printed = console.file.getvalue()
    names = [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]
    assert {name for name in names if name} == {*ENVIRONMENTS, *AGENTS, *ALGORITHMS, *REWARDS, *STATISTICS}
    assert max(map(len, printed.splitlines())) <= columns
    for text in ("block.0..11", "meter_vqa", "DAS-Suite-v0", "DAS-Suite-Search-v0", "DAS-METER-VQA-MO-v0"):
        assert text in printed
