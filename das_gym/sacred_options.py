"""Sacred's own options, and settings files after `with`."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from das_gym.config import merge, nest

DATABASES = {"--mongo_db": ("-m", "pymongo", "mongo"), "--sql": ("-s", "sqlalchemy", "sql")}
"""Sacred's options for databases: the flag, the library that it needs, and the extra that installs it."""

NOT_SUPPORTED = {"--queue": "-q", "--id": "-i", "--tiny_db": "-t", "--s3": "-S", "--enforce_clean": "-e"}
"""Options of Sacred that do not apply: runs are numbered by their folder, kept there, and do not look at git."""

CONFIG_FILES = (".json", ".yaml", ".yml")


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values. Nested aliases would expand a few hundred bytes to billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*): write the value itself")
        return super().compose_node(parent, index)


def read_config_file(path: str) -> dict[str, Any]:
    """Read the settings in a JSON or YAML file."""
    if Path(path).suffix not in CONFIG_FILES:
        raise ValueError(f"{path} is not a file of settings. Give one that ends in {' or '.join(CONFIG_FILES)}")
    read: Callable[[bytes], Any] = json.loads if Path(path).suffix == ".json" else partial(yaml.load, Loader=_PlainLoader)
    try:
        content = read(Path(path).read_bytes())
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} does not hold settings by name; give name: value")
    return content


def nest_settings(settings: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Return the settings of a file with dotted names taken apart, so that what is checked is what a run gets."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(name, str):
            raise ValueError(f"{source} names a setting by {name!r}; give a text")
        nested = merge(nested, nest(name, nest_settings(value, source) if isinstance(value, Mapping) else value))
    return nested


def check_options(options: Mapping[str, Any]) -> None:
    """Raise a ValueError for options of Sacred that are not supported, or whose library is missing."""
    for option, flag in NOT_SUPPORTED.items():
        if options.get(option):
            raise ValueError(f"{flag} ({option}) is not supported. Leave it out")
    for option, (flag, library, extra) in DATABASES.items():
        if options.get(option) and importlib.util.find_spec(library) is None:
            raise ValueError(f"{flag} needs {library}: pip install 'das_gym[{extra}]'")
