"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[int] = (0,)) -> list[str]:
    """The lines of a table.

    Args:
        heads: Of the columns.
        rows: As many cells each.
        words: Columns of words, which stand on the left, by number (-1 = the last); the others stand on the right.
    """
    left = {column % len(heads) for column in words}
    rule = "".join("---|" if column in left else "---:|" for column in range(len(heads)))
    return [f"| {' | '.join(heads)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]
