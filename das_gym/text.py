"""Wording of messages and tables."""

from __future__ import annotations


def escape_control_chars(text: str) -> str:
    """Return a text with its control characters escaped, except line breaks: a file's content may be in it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 mask`, `1,204 masks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
