"""Names that users give, where the nearest known one answers an unknown one; lazy names of packages; wording of messages."""

from __future__ import annotations

import difflib
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

Entry = TypeVar("Entry")

LISTINGS = dict.fromkeys(("agent", "model", "task", "reward", "statistic"), "das-agents list")
"""The command that lists the names of a kind, for messages."""

MAX_LISTED = 12
"""Messages list all known names up to this number."""

MAX_SHOWN = 80
"""Messages show this many characters of a value."""

PARTS = ("train", "reward", "test")
"""Names of the parts of every data set."""


def brief(value: Any) -> str:
    """Return a value on one short line, for messages: its `repr`, or the name of its class if that is no plain value."""
    if not isinstance(value, str | int | float | list | tuple | dict | Path | np.generic | type(None)):
        return type(value).__name__
    text = " ".join((reprlib.repr(value) if isinstance(value, list | tuple | dict) else repr(value)).split())
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def add_entry(registry: dict[str, Entry], name: Any, entry: Entry, what: str, taken: Iterable[str] = ()) -> None:
    """Add a user's entry to a registry; error messages call it `what`, and names `taken` cannot be used either."""
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)):
        raise ValueError(f"{what} name {name!r} is not allowed; use letters, digits and _, a letter first")
    if name in registry or name in set(taken):
        raise ValueError(f"{what} {name!r} is already registered; give yours another name")
    registry[name] = entry


def nearest_name(name: Any, known: Iterable[str]) -> str | None:
    """Return the known name that is most like `name`, or None; upper and lower case count as equal."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return by_lower[close[0]] if close else None


def check_names(
    given: Iterable[str], known: Iterable[str], what: str = "setting", own: bool = False, listing: str | None = None
) -> None:
    """Raise ValueError for a name that is not known; the message calls it `what` and has the nearest known one.

    `own`: a user's module may register more. `listing` is a command that lists all; None takes the one in `LISTINGS`.
    """
    known = list(known)
    for name in given:
        if name not in known:
            hint = _hint(name, known, listing or LISTINGS.get(what))
            plugin = "; for a custom one, pass the module that registers it as plugins=MODULE, or import it" if own else ""
            raise ValueError(f"unknown {what} {name!r}; {hint}{plugin}")


def check_distinct(name: str, values: Sequence[Any]) -> None:
    """Raise ValueError for values of the setting `name` that are not distinct."""
    if len(set(values)) < len(values):
        raise ValueError(f"`{name}` has duplicates: got {list(values)}. Give each once")


class UnexpectedArgumentError(TypeError, ValueError):
    """An environment got an argument that it does not have: a TypeError for libraries, a ValueError as ours are."""


def check_arguments(given: Iterable[str], known: Iterable[str]) -> None:
    """Raise for arguments that an environment does not have, with the wording of Python's own TypeError.

    TorchRL passes `frameskip` to every environment, and retries without it if the message matches Python's.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise UnexpectedArgumentError(f"unexpected keyword argument {name!r}; {_hint(name, known)}")


def _hint(name: Any, known: Sequence[str], listing: str | None = None) -> str:
    """Return a hint for an unknown name: the nearest known name, and all of them if they are few."""
    nearest = nearest_name(name, known)
    near = f"did you mean {nearest!r}? " if nearest else ""
    if len(known) > MAX_LISTED and listing:
        return f"{near}`{listing}` lists all {len(known)}"
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return f"{near}known: {', '.join(known[:MAX_LISTED])}{more}" if known else "no name is registered"


def lazy_attributes(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's `__getattr__` and `__dir__`, given its names and the module that defines each."""

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        value = getattr(import_module(places[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted({*vars(sys.modules[package]), *places})


def escape_control_chars(text: str) -> str:
    """Return a text with its control characters escaped, except line breaks: a file's content may be in it."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def format_count(number: int, noun: str) -> str:
    """Return a number with its noun: `1 mask`, `1,204 masks`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its class if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
