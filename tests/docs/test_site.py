"""The site of the documentation, as `.ci/docs` built it: it loads nothing external, and can be read by everybody."""

import os
import re
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from das_gym import ENVIRONMENTS
from tests.browser import WIDTHS, needs_browser

SITE = os.environ.get("DAS_GYM_SITE")
pytestmark = pytest.mark.skipif(SITE is None, reason="`.ci/docs` builds the site and runs this")

LOOKED_AT = (
    *("index", "tutorial", "shrink", "commands", "data", "models", "runs", "visualization", "comparison", "finetuning"),
    *("agents", "performance", "cost", "glossary", "extending", "reference", "leaderboard", "changelog"),
    *("environments/index", "environments/tabular", "environments/DAS-METER-VQA-v0"),
)
"""What axe-core looks at, in light colours; how wide they are is asked of all pages."""

IN_DARK = ("index", "tutorial", "commands", "agents", "extending", "data")
"""Pages with code of every kind."""

WAYS = [*((name, "light", WIDTHS) for name in LOOKED_AT), *((name, "dark", WIDTHS[-1:]) for name in IN_DARK)]


CONTEXT = {"exclude": ["#__drawer"]}
"""What opens the list of pages: it stands before all landmarks, where the theme's style needs it."""


@pytest.fixture
def site() -> Path:
    return Path(str(SITE))


def test_environment_pages_have_gymnasiums_headings(site):
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


def test_relative_links_work_in_the_site(site):
    pages = {path.resolve(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    dead = []
    for path, text in pages.items():
        for link in re.findall(r'<(?:a|img|script|link)\b[^>]* (?:href|src)="([^"]+)"', text):
            name, _, anchor = unquote(unescape(link)).partition("#")
            if re.match(r"https?:|mailto:|data:|javascript:", name) or path.name == "404.html":
                continue
            target = (path.parent / name.partition("?")[0]).resolve() if name else path
            if not target.exists() or (anchor and target in pages and f'id="{anchor}"' not in pages[target]):
                dead.append(f"{path.name}: {link}")
    assert not dead


@needs_browser
@pytest.mark.parametrize(("name", "scheme", "widths"), WAYS)
def test_pages_are_accessible(site, chromium, name, scheme, widths):
    from axe_playwright_python.sync_playwright import Axe

    page, _ = opened(chromium, site / f"{name}.html", scheme)
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)  # tables are notified of the new width
        found = Axe().run(page, context=CONTEXT).response["violations"]
        told = "\n".join(f"{name} at {width}: {each['id']}: {each['nodes'][0]['html'][:200]}" for each in found)
        assert not found, told
    page.context.close()


def opened(chromium: Any, path: Path, scheme: str = "light") -> tuple[Any, list[str]]:
    """A page, and what it did wrong while it was opened: errors of scripts, and requests."""
    page = chromium.new_context(viewport={"width": WIDTHS[-1], "height": 900}, color_scheme=scheme).new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url))
    page.goto(path.absolute().as_uri())
    page.add_style_tag(content="* { transition: none !important }")  # what glides is wider than the page meanwhile
    page.wait_for_timeout(100)
    return page, wrong
