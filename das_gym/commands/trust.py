"""Plugins, and the one rule on records: a record never runs code and never names a place to write.

Plugins are modules of users, which register models, tasks, agents, ...; `plugins=MODULE` imports them. Who resumes a run or
replays a record gives the settings of `NOT_FROM_RECORDS`, and the modules that it names, again.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from das_gym.commands.settings import flatten_settings

IMPORTED_PLUGINS: list[str] = []
"""Names of all modules that `import_plugins` imported in this process."""

REMOTE_CODE = "trust_remote_code"
NOT_FROM_RECORDS = (REMOTE_CODE, "out", "encoder_cache", "tensorboard_log", "trackers", "workers")
"""Settings that run code, or say where to write, upload or compute."""

MODULE_SETTINGS = ("env_id", "agent", "agents", "baselines")
"""Settings of which Gymnasium or das_gym imports everything before a colon."""

DEVICE_SETTINGS = ("device", "device_map")
"""Settings with a colon that names no module: `cuda:0`."""


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
        if name not in IMPORTED_PLUGINS:
            IMPORTED_PLUGINS.append(name)
    return names


def imported_plugins() -> tuple[str, ...]:
    """Return the names of all modules that `import_plugins` imported."""
    return tuple(IMPORTED_PLUGINS)


def add_working_folder() -> None:
    """Put the working folder first on `sys.path`, as `python -m` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def named_modules(value: Any, name: str = "") -> list[str]:
    """Return the modules that the setting `name` of a record, or any setting within it, would import."""
    if isinstance(value, Mapping):
        return [module for key, each in value.items() for module in named_modules(each, str(key).rpartition(".")[2])]
    if isinstance(value, list | tuple):
        return [module for each in value for module in named_modules(each, name)]
    if not isinstance(value, str) or name in DEVICE_SETTINGS:
        return []
    if name == "plugins":
        return value.split(",")
    is_path = ":" in value and (name in MODULE_SETTINGS or re.fullmatch(r"[\w.]+:[\w.-]+", value))
    return [value.partition(":")[0]] if is_path else []


def settings_not_from_records(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, by dotted names, that are never read from a record."""
    flat = flatten_settings(settings)
    return {name: value for name, value in flat.items() if name.rpartition(".")[2] in NOT_FROM_RECORDS and value}


def check_record(source: object, settings: Mapping[str, Any], again: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError for settings of a record that name modules which were not imported here, and for those in `again`.

    The message, which begins with `source`, names the settings to give again.
    """
    given = imported_plugins()
    flat = flatten_settings(settings)
    named = {name: value for name, value in flat.items() if set(named_modules({name: value})) - {*given}}
    again = dict(again or {})
    if not named and not again:
        return
    words = ", ".join(f"`{name}={value}`" for name, value in {**named, **again}.items())
    if named:
        again["plugins"] = ",".join(dict.fromkeys([*given, *named_modules(named)]))
    added = " ".join(shlex.quote(f"{name}={value}") for name, value in again.items())
    message = f"{source} has {words}, but a record never runs code or names a place to write. Give it again, adding: {added}"
    raise ValueError(message.replace("\n", "\\n"))  # a value cannot add a line with another command


def trusted_settings(source: object, plugins: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record without those that are never read from one.

    Raises:
        ValueError: The record names modules, among them its `plugins`, or needs code of a checkpoint's folder, and the user
            gave neither.
    """
    again = {REMOTE_CODE: True} if settings.get(REMOTE_CODE) else None
    check_record(source, {"plugins": list(plugins), **settings}, again)
    return {name: value for name, value in settings.items() if name not in NOT_FROM_RECORDS}
