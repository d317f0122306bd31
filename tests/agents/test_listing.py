from __future__ import annotations

from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.commands import PROGRAM
from das_gym.agents.listing import tables
from das_gym.agents.sb3.algorithms import ALGORITHMS

from das_gym import ENVIRONMENTS
from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import STATISTICS


def test_list_prints_all_names(capsys):
    names = {row[0] for table in tables() for row in table.rows}
    assert {*ENVIRONMENTS, *AGENTS, *ALGORITHMS, *REWARDS, *STATISTICS, "DAS-Suite-v0"} <= names
    assert PROGRAM.run(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*names, "meter_vqa", "DAS-METER-VQA-MO-v0"))
