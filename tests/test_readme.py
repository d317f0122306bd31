"""What the README says of names that the code knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from das_gym.agents.sb3.algorithms import ALGORITHMS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ACTIONS = ("mask", "sequence", "scores")


def test_table_of_action_spaces_is_that_of_the_algorithms():
    said = {}
    for line in README.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", cells[0]):
            if line.startswith("|") and len(cells) == 1 + len(ACTIONS) and name in ALGORITHMS:
                said[name] = cells[1:]
    assert said.keys() == ALGORITHMS.keys()
    for name, cells in said.items():
        taken = ALGORITHMS[name].actions
        assert {action for action, cell in zip(ACTIONS, cells, strict=True) if cell != "-"} == set(taken)
        assert [action for action, cell in zip(ACTIONS, cells, strict=True) if cell.startswith("**")] == [taken[0]]


@pytest.mark.parametrize("line", sorted(set(re.findall(r"^from das_gym.* import .*$", README, re.MULTILINE))))
def test_what_the_readme_imports_is_there(line: str):
    exec(line)
