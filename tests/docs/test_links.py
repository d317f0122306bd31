"""Relative links of the Markdown files work where they are read on GitHub; `test_site.py` follows those of the site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT

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
def test_relative_links_work_on_github(path: Path):
    assert dead_links(path) == []
