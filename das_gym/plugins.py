"""Plugins: modules of users that register models, tasks, agents, ...; `plugins=MODULE` imports them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

_imported: list[str] = []


def import_plugins(modules: Iterable[str] | str | None) -> tuple[str, ...]:
    """Import modules, also of the working folder, so that what they register takes effect; return their names.

    `modules` lists them, or separates them by commas.
    """
    names = tuple(modules.split(",") if isinstance(modules, str) else modules or ())
    if names:
        add_working_folder()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ValueError(
                f"plugins={name} cannot be imported ({type(error).__name__}: {error}); name a module of the working folder "
                "or an installed one, without .py"
            ) from error
        if name not in _imported:
            _imported.append(name)
    return names


def imported_plugins() -> tuple[str, ...]:
    """Return the names of all modules that `import_plugins` imported."""
    return tuple(_imported)


def add_working_folder() -> None:
    """Put the working folder first on `sys.path`, as `python -m` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
