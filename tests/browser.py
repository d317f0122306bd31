"""A headless Chromium that blocks all requests, and axe-core, which checks what it shows for accessibility."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (360, 768, 1280)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no browser here: apt-get install chromium")


def open_page(chromium: Any, path: Path, width: int = 1280, scheme: str = "light") -> Any:
    """The page of a file, when its scripts are done; it fails for errors in scripts and for requests."""
    page = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda message: page.wrong.append(message.text) if message.type in ("error", "warning") else None)
    page.on(
        "request", lambda request: page.wrong.append(request.url) if not request.url.startswith(("file:", "data:")) else None
    )
    page.goto(path.absolute().as_uri())
    page.wait_for_selector("figure svg")
    if page.wrong:
        pytest.fail("\n".join(page.wrong))
    return page


def check_accessible(page: Any, but: Collection[str] = ()) -> None:
    """axe-core finds no violations, in a narrow window or a wide one: contrast, names, roles, order.

    Args:
        page: What is looked at.
        but: Rules that are left out.
    """
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe()
    for width in (WIDTHS[0], WIDTHS[-1]):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)  # charts are drawn again
        found = [each for each in axe.run(page).response["violations"] if each["id"] not in but]
        if found:
            told = (f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"][:3])
            pytest.fail("\n".join([f"{page.url}, {width} pixels wide", *told]))


def check_fits(page: Any) -> None:
    """Nothing is wider than the window, however narrow."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(100)  # charts are drawn again
        found = page.evaluate("document.documentElement.scrollWidth")
        if found > width:
            pytest.fail(f"{page.url} is {found} pixels wide in a window of {width}")
