"""rich's console, whose output may find no reader."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from das_gym.streams import escape_control_chars


class Console(RichConsole):
    """As rich's; where nobody reads the output any more, the command that writes is told, as `print` does, and not ended."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """As rich's, without markup and what a terminal would obey: a file's words may be in it."""
        return super().render_str(escape_control_chars(text), **{**kwargs, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        """Raise the error on."""
        raise
