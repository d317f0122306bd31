"""Names, files and links in README and docs exist."""

import re
from pathlib import Path

import pytest
from das_gym.agents.sb3.algorithms import ALGORITHMS

from tests.docs.blocks import PAGES, ROOT

INSTALL = "python3 -m venv .venv && .venv/bin/pip install -e "


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_agents_page_lists_every_algorithm_with_its_action_space():
    rows = re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\|([^|]*)\|", read("docs/agents.md"), re.MULTILINE)
    listed = {name: action for action, cell in rows for name in re.findall(r"`(\w+)`", cell) if name in ALGORITHMS}
    assert listed == {name: algorithm.actions[0] for name, algorithm in ALGORITHMS.items()}


def test_readme_has_the_two_commands_that_ci_reads_from_it():
    (pattern,) = re.findall(r"sed -nE 's/(.*)/\\1/p'", read(".ci/run"))
    assert re.findall(pattern, read("README.md"), re.MULTILINE) == [
        f"{INSTALL}. && .venv/bin/python -m adapt",
        f'{INSTALL}".[test]" && .venv/bin/python -m pytest',
    ]


def test_pages_have_no_flops_and_no_todo():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"FLOPs(?!\")|TODO|XXX|VIEWERS|MAIN_JOB|HOUR_", text), path.name


FILES = sorted({*PAGES, *ROOT.glob("*.md"), *(ROOT / "das_gym").rglob("*.md"), *(ROOT / "examples").rglob("*.md")})


def anchors_of(path: Path) -> set[str]:
    """Return the anchors that GitHub makes of a file's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(path: Path) -> list[str]:
    """Return a file's relative links to files or headings that do not exist."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)", path.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if re.match(r"https?:|mailto:|LINK$", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_work_on_github(path):
    assert dead_links(path) == []
