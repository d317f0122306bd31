"""Files of settings behind `with`: JSON or YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from das_gym.files import read_bytes
from das_gym.runs import read_config


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values. Aliases are rejected: nested ones expand a few hundred bytes to billions of values."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"line {self.peek_event().start_mark.line + 1} has an alias (*): write the value itself")
        return super().compose_node(parent, index)


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return the settings in a JSON or YAML file given after `with`, as plain values."""
    if path.suffix == ".json":
        return read_config(path)
    try:
        settings = yaml.load(read_bytes(path), Loader=_PlainLoader)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds a {type(settings).__name__}, expected settings by name")
    return json.loads(json.dumps(settings, default=str))  # names that are numbers, and dates, become texts
