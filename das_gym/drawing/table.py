"""Tables of text cells: printed, written as Markdown, and shown in reports."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console as RichConsole
from rich.table import Table as RichTable
from rich.text import Text

from das_gym.names import escape_control_chars

WIDTH = 80
"""Columns of a terminal that printed tables and sentences fit in."""


@dataclass(frozen=True)
class Table:
    """A table of text cells.

    Attributes:
        columns: Headings. The first column names the rows.
        rows: The cells of each row.
        title: One line above the table.
        notes: Sentences below the table.
        text_columns: Numbers of the columns that are aligned left, -1 is the last; all others are aligned right.

    Example:
        >>> table = Table(("model", "score"), (("full", "0.9"), ("subnet", "0.8")))
        >>> print(table.markdown())
        | model | score |
        |---|---:|
        | full | 0.9 |
        | subnet | 0.8 |
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    text_columns: tuple[int, ...] = (0,)

    def markdown(self) -> str:
        """Return the table and its notes, without the title, as Markdown."""
        lines = markdown_table(self.columns, self.rows, self.text_columns)
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines)

    def print(self, width: int = WIDTH, heading_width: int = 14) -> None:
        """Print the table and its notes.

        Args:
            width: Columns of the terminal. Wide tables need more than 80.
            heading_width: Headings are wrapped at this width.
        """
        table = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
        left = {column % len(self.columns) for column in self.text_columns}
        for number, heading in enumerate(self.columns):
            wrapped = "\n".join(textwrap.wrap(heading, heading_width)) if number else heading
            table.add_column(wrapped, justify="left" if number in left else "right", no_wrap=number == 0)
        for row in self.rows:
            table.add_row(*row)
        Console(width=width).print(table)
        for note in self.notes:
            print(textwrap.fill(note, WIDTH))


class Console(RichConsole):
    """A console of rich that raises BrokenPipeError as `print` does, where rich would end the process."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        """Render a text literally: without markup, emoji codes and control characters, since it may come from a file."""
        return super().render_str(escape_control_chars(text), **{**kwargs, "markup": False, "emoji": False})

    def on_broken_pipe(self) -> None:
        """Raise the error again."""
        raise


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = (0,)) -> list[str]:
    """Return the lines of a Markdown table."""
    left = {column % len(headings) for column in text_columns}
    rule = "".join("---|" if column in left else "---:|" for column in range(len(headings)))
    return [f"| {' | '.join(headings)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]
