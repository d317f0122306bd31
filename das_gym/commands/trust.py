"""Modules of users that are imported, and what untrusted records may name.

Plugins register models, tasks, agents, ...; `plugins=MODULE` imports them. What a run folder or a record names runs, uploads
and writes nothing unless the user repeats it.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from das_gym.commands.settings import flatten_settings

IMPORTED_PLUGINS: list[str] = []
"""Names of all modules that `import_plugins` imported in this process."""

KNOWN_PACKAGES = ("das_gym", "gymnasium", "stable_baselines3", "sb3_contrib")
"""Packages whose modules the settings of `MODULE_SETTINGS` and `plugins` of every record may name."""

REMOTE_CODE = "trust_remote_code"
WRITING_SETTINGS = ("out", "encoder_cache", "tensorboard_log", "trackers", "workers")
"""Settings that say where to write, upload or compute."""

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


def unknown_modules(value: Any, name: str = "", known: Container[str] = sys.modules) -> list[str]:
    """Return the modules that a setting names, also within it, and that the user has not confirmed.

    Modules in `known` are confirmed. Settings of `MODULE_SETTINGS` and `plugins` may also name modules of `KNOWN_PACKAGES`.
    """
    if name in DEVICE_SETTINGS:
        return []
    if isinstance(value, Mapping):
        return [
            module for key, each in value.items() for module in unknown_modules(each, str(key).rpartition(".")[2], known)
        ]
    if isinstance(value, list | tuple):
        return [module for each in value for module in unknown_modules(each, name, known)]
    if not isinstance(value, str):
        return []
    named = value.split(",") if name == "plugins" else []
    if ":" in value and (name in MODULE_SETTINGS or re.fullmatch(r"[\w.]+:[\w.-]+", value)):
        named.append(value.partition(":")[0])
    return [module for module in named if module and _is_unknown(module, name, known)]


def _is_unknown(module: str, name: str, known: Container[str]) -> bool:
    """Return True if the user has to confirm a module that the setting `name` of a record names."""
    package = module.partition(".")[0]
    if name in (*MODULE_SETTINGS, "plugins"):
        return module not in known and (package not in KNOWN_PACKAGES or "__main__" in module.split("."))
    # No other setting has a reason to name a class of a library, all of whose classes could be called.
    return module not in known or package in (*KNOWN_PACKAGES, *sys.stdlib_module_names)


def sensitive_settings(settings: Mapping[str, Any], known: Container[str] = sys.modules) -> dict[str, Any]:
    """Return settings, by dotted name, that run code, upload or write outside the run folder.

    Of `plugins`, these are the unknown modules.
    """
    found: dict[str, Any] = {}
    for name, value in flatten_settings(settings).items():
        last = name.rpartition(".")[2]
        if last in DEVICE_SETTINGS:
            continue
        if last in (REMOTE_CODE, *WRITING_SETTINGS):  # whatever the type: `SkipEnv` only asks whether it is true
            is_sensitive = bool(value)
        elif isinstance(value, list | tuple) and last != "plugins":
            is_sensitive = any(sensitive_settings({last: each}, known) for each in value)
        else:
            is_sensitive = bool(unknown_modules(value, last, known))
        if is_sensitive:
            found[name] = ",".join(unknown_modules(value, last, known)) if last == "plugins" else value
    return found


def ask_to_repeat(what: str, settings: Mapping[str, Any], modules: Iterable[str] = ()) -> None:
    """Raise ValueError for settings, by dotted name, and modules to import that were not confirmed.

    `what` has them, as in "run 3 was started".
    """
    plugins = ",".join(dict.fromkeys(modules))
    settings = {"plugins": plugins, **settings} if plugins else settings
    if not settings:
        return
    words = ", ".join(f"`{name}={value}`" for name, value in settings.items())
    writes = [name.rpartition(".")[2] in WRITING_SETTINGS for name in settings]
    effects = [] if all(writes) else ["runs code"]
    if any(writes):
        effects.append("writes outside the run folder or uploads")
    if "plugins" in settings:  # of two `plugins=` on a command line, the last counts
        settings = {**settings, "plugins": ",".join(dict.fromkeys([*imported_plugins(), *settings["plugins"].split(",")]))}
    confirm = " ".join(shlex.quote(f"{name}={value}") for name, value in settings.items())
    message = f"{what} with {words}, which {' and '.join(effects)}. To confirm, add to the command: {confirm}"
    raise ValueError(message.replace("\n", "\\n"))  # a value cannot add a line with another command


def trusted_settings(source: object, plugins: Iterable[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a record without `WRITING_SETTINGS`, once the code that it names is confirmed.

    `settings` lack those that the user gave; `plugins` are the modules that the record was made with.
    """
    kept: dict[str, Any] = _without_writes(settings)
    missing: dict[str, Any] = {}
    for name, value in sensitive_settings(kept).items():
        if not unknown_modules(value, name.rpartition(".")[2]):
            missing[REMOTE_CODE] = True
    ask_to_repeat(f"{source} was made", missing, unknown_modules({"plugins": list(plugins), **kept}))
    import_plugins(plugins)  # so that printed commands name them
    return kept


def _without_writes(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_writes(each) for name, each in value.items() if name not in WRITING_SETTINGS}
    return [_without_writes(each) for each in value] if isinstance(value, list | tuple) else value
