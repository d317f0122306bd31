"""The site of the documentation, as `.ci/docs` built it: it asks nobody for anything, and can be read by everybody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from das_gym import ENVIRONMENTS
from tests.browser import WIDTHS, browser, needs_browser

SITE = os.environ.get("DAS_GYM_SITE")
pytestmark = pytest.mark.skipif(SITE is None, reason="`.ci/docs` builds the site and runs this")

LOOKED_AT = ("index.html", "first-hour.html", "agents.html", "environments/DAS-METER-VQA-v0.html")
THEMES_OWN = {"landmark-unique"}
"""What axe-core finds in the theme alone: every copy button of a page has the same name."""


@pytest.fixture
def site() -> Path:
    return Path(str(SITE))


def test_every_environment_has_a_page_in_gymnasiums_headings(site: Path):
    for entry in ENVIRONMENTS.values():
        page = (site / "environments" / f"{entry.id}.html").read_text(encoding="utf-8")
        wanted = (
            "description",
            "action-space",
            "observation-space",
            "rewards",
            "starting-state",
            "episode-end",
            "arguments",
        )
        assert not [heading for heading in (*wanted, "version-history") if f'id="{heading}"' not in page]
        if entry.table is not None:
            assert (site / "environments" / f"{entry.id}.png").read_bytes().startswith(b"\x89PNG")


@needs_browser
def test_pages_ask_nobody_fit_and_are_accessible(site: Path):
    with browser() as chromium:
        for name in LOOKED_AT:
            look_at(chromium, site / name)


def look_at(chromium: Any, path: Path) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = chromium.new_context(viewport={"width": WIDTHS[-1], "height": 900}).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url))
    page.goto(path.absolute().as_uri())
    assert not wrong, path.name
    found = [each for each in Axe().run(page).response["violations"] if each["id"] not in THEMES_OWN]
    assert not found, "\n".join(f"{path.name}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path.name} at {width}"
    page.context.close()
