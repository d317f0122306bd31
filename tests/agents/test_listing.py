import ast
import re

from das_gym.agents.ask_tell.base import AGENTS
from das_gym.agents.commands import PROGRAM
from das_gym.agents.listing import tables
from das_gym.agents.sb3.algorithms import ALGORITHMS

from das_gym import ENVIRONMENTS
from das_gym.problem.rewards import REWARDS
from das_gym.problem.statistics import STATISTICS


def test_list_prints_all_names(capsys):
    names = {row[0] for table in tables() for row in table.rows}
    assert {*ENVIRONMENTS, *AGENTS, *ALGORITHMS, *REWARDS, *STATISTICS} <= names
    assert PROGRAM.run(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*names, "meter_vqa"))


def test_list_says_what_a_command_takes():
    """Settings of rewards and statistics with their group, and lists with quotes."""
    told = "\n".join(line for table in tables() for line in (table.title, *table.notes))
    named = set(re.findall(r"(\S+)=", told))
    assert named == {"reward", "env_kwargs.macs_price", "env_kwargs.statistics", "agent_kwargs.<setting>"}
    words = [word.replace(", ...", "") for word in re.findall(r"env_kwargs\.statistics='(.*)'", told)]
    assert [ast.literal_eval(word) for word in words] == [["<name>"]]


def test_list_names_registered_tables_of_bundled_data_alone():
    environments = next(iter(tables()))
    named = {row[0]: row[2] for row in environments.rows if row[0] in ENVIRONMENTS}
    assert named["DAS-ViLT-F30K-v0"] == "DAS-ViLT-F30K-Tabular-v0"
    assert named["DAS-VLM-Choices-v0"] == "-"
