"""Numbers in texts."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 mask`, `1,204 masks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
