"""rich's console, whose output may find no reader."""

from __future__ import annotations

from rich.console import Console as RichConsole


class Console(RichConsole):
    """As rich's; where nobody reads the output any more, the command that writes is told, as `print` does, and not ended."""

    def on_broken_pipe(self) -> None:
        """Raise the error on."""
        raise
