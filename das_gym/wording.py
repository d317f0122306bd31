"""How numbers of things are told."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 mask`, `1,204 masks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
