"""The self-contained HTML page of a report: one file with style, data and the libraries that draw the charts."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from das_gym.files import write_text

LIBRARIES = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
"""D3 and Observable Plot as published; their licences are in `pages/vendor/LICENSES.txt`."""


def write_page(path: str | os.PathLike[str], data: dict[str, Any], **context: Any) -> Path:
    """Write the page of `pages/report.html.jinja`. `data` is JSON for the script; `context` is escaped."""
    from markupsafe import Markup  # marks our own scripts and style, which are not escaped

    scripts = [Markup(_text(file)) for file in (*LIBRARIES, "shared.js", "report.js")]
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")  # no "</script>" in it
    page = (
        _templates()
        .get_template("report.html.jinja")
        .render(
            style=Markup(_text("style.css")),
            scripts=scripts,
            data=Markup(text),
            licences=_text("vendor/LICENSES.txt"),
            **context,
        )
    )
    write_text(path, page)
    return Path(path)


@lru_cache(maxsize=1)
def _templates() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@lru_cache(maxsize=16)
def _text(file: str) -> str:
    return resources.files("das_gym.drawing").joinpath("pages", file).read_text(encoding="utf-8")
