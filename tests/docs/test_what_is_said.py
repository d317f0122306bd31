"""What README and docs say of names and files that the code knows."""

from __future__ import annotations

import re

from das_gym.agents.sb3.algorithms import ALGORITHMS

from tests.docs.blocks import ROOT

ACTIONS = ("mask", "sequence", "scores")
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -e "


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_table_of_action_spaces_is_that_of_the_algorithms():
    said = {}
    for line in read("docs/agents.md").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", cells[0]):
            if line.startswith("|") and len(cells) == 1 + len(ACTIONS) and name in ALGORITHMS:
                said[name] = cells[1:]
    assert said.keys() == ALGORITHMS.keys()
    for name, cells in said.items():
        taken = ALGORITHMS[name].actions
        assert {action for action, cell in zip(ACTIONS, cells, strict=True) if cell != "-"} == set(taken)
        assert [action for action, cell in zip(ACTIONS, cells, strict=True) if cell.startswith("**")] == [taken[0]]


def test_readme_has_the_two_commands_that_ci_reads_from_it():
    (pattern,) = re.findall(r"sed -nE 's/(.*)/\\1/p'", read(".ci/run"))
    assert re.findall(pattern, read("README.md"), re.MULTILINE) == [
        f"{INSTALL}. && .venv/bin/python -m adapt",
        f'{INSTALL}".[test]" && .venv/bin/python -m pytest',
    ]


def test_no_page_says_flops_or_leaves_something_open():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"FLOPs(?!\")|TODO|XXX|VIEWERS|MAIN_JOB|HOUR_", text), path.name
