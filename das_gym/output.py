"""Output of commands: standard streams and the wording of messages."""

from __future__ import annotations

import os
import sys

BROKEN_PIPE = 141
"""Exit code of a command whose standard output was closed, as in `... | head`; shells use the same."""

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def prepare_streams() -> None:
    """Open closed streams, and let standard output write line by line, with "?" for what its encoding lacks.

    Sacred ignores errors of a flush: without line buffering, a closed pipe would go unnoticed until the end.
    The next opened file would take the number of a closed stream, and a library's messages would be written into it.
    An encoding may lack letters of names and the lines of our tables, which come at the end of a long search.
    """
    for number, (name, mode) in enumerate(STREAMS):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123, SIM115  (as long as the process)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # not every stand-in of a stream has it
    if reconfigure is not None:
        reconfigure(errors="replace", line_buffering=True)


def silence_stdout() -> int:
    """Discard further standard output, so that Python reports no broken pipe when it ends; return the exit code."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return BROKEN_PIPE


def escape_control_chars(text: str) -> str:
    """Return a text with its control characters escaped, except line breaks: a file's content may be in it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 mask`, `1,204 masks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
