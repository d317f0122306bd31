"""The console that commands print tables with."""

from __future__ import annotations

from typing import Any

from rich.console import Console as RichConsole
from rich.text import Text

from das_gym.streams import escape_control_chars


class Console(RichConsole):
    """A console of rich that raises BrokenPipeError as `print` does, where rich would end the process."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Render a text literally: without markup, emoji codes and control characters, since it may come from a file."""
        return super().render_str(escape_control_chars(text), **{**kwargs, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        """Raise the error again."""
        raise
