"""The standard streams of a command: open, and able to say all that there is to say."""

from __future__ import annotations

import os
import sys

UNREAD = 141
"""Exit code of a command whose output nobody reads any more, as in `... | head`; as shells have it."""

STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def ready() -> None:
    """Open the streams that are closed, and have standard output write line by line, and "?" for what its encoding lacks.

    Sacred ignores errors of a flush, so a pipe that nobody reads would go unnoticed until the end, and a log would lag.

    Were one left closed, the next file that is opened would be it, and a library's words would be written into that. An
    encoding may lack letters of names, and what our tables are drawn with: the end of a long search is no time to find out.
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


def unread() -> int:
    """Let standard output go nowhere, where nobody reads it any more, so that Python's end says nothing of it; `UNREAD`."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
    return UNREAD


def shown(text: str) -> str:
    """A text without what a terminal would obey, and a reader not see: a file's words may be in it. Lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
