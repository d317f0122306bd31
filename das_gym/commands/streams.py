"""The standard streams of a command."""

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
