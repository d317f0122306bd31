"""Help texts of settings, in 80 columns: groups, values, what is allowed, defaults and descriptions."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import re
import sys
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from das_gym.commands.settings import (
    default_of,
    describe_type,
    field_types,
    group_fields,
    plain,
    settings_dict,
    shortest_name,
)

WIDTH = 80

GROUPS = (
    *("Search", "Budget", "Layers", "Model and data", "Reward", "Stable-Baselines3"),
    *("Recovery", "Training", "Evaluation", "Hardware", "Run"),
)
"""The order of headings. Those of a single command stand before them."""


def describe_fields(cls: type) -> dict[str, str]:
    """Return the description of each field, from the "Attributes" in the docstrings of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        part = inspect.cleandoc(each.__doc__ or "").partition("\nAttributes:\n")[2]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", part, re.MULTILINE):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return {field.name: texts[field.name] for field in dataclasses.fields(cls) if field.name in texts}


def group_headings(cls: type) -> dict[str, list[str]]:
    """Return the field names under each heading: the class variable `group` of the class that declares a field first."""
    owners: dict[str, type] = {}
    for base in reversed(cls.__mro__):
        for name in inspect.get_annotations(base) if dataclasses.is_dataclass(base) else ():
            owners.setdefault(name, base)
    headings: dict[str, list[str]] = {}
    for base in cls.__mro__:
        own = [field.name for field in dataclasses.fields(cls) if owners[field.name] is base]
        if own:
            headings.setdefault(vars(base).get("group", "Settings"), []).extend(own)
    return dict(sorted(headings.items(), key=lambda item: GROUPS.index(item[0]) if item[0] in GROUPS else -1))


def defaults_of(cls: type) -> dict[str, Any]:
    """Return the default of every field of a dataclass; None for those without."""
    return {field.name: default_of(field) for field in dataclasses.fields(cls)}


def settings_text(cls: type, values: Mapping[str, Any]) -> str:
    """Return settings under headings: value, what is allowed, default and description; * marks those that were changed."""
    fields, texts = {field.name: field for field in dataclasses.fields(cls)}, describe_fields(cls)
    lines: list[str] = []
    for heading, names in group_headings(cls).items():
        lines += ["", heading]
        for name in names:
            if not fields[name].metadata.get("listed"):
                lines += _setting_lines(cls, fields[name], name, values[name], default_of(fields[name]))
    for name, field in fields.items():
        if field.metadata.get("listed"):
            inner = field.metadata["group"]
            defaults = vars(default_of(field))
            given = values[name] if isinstance(values[name], Mapping) else vars(values[name])
            lines += ["", f"{name}.NAME=VALUE", *_wrap(texts.get(name, ""), "      ")]
            for each in group_fields(field).values():
                typed = shortest_name(cls, f"{name}.{each.name}")
                default = defaults[each.name]
                lines += _setting_lines(inner, each, typed, given.get(each.name, default), default)
    return "\n".join(lines[1:])


def _setting_lines(cls: type, field: dataclasses.Field[Any], name: str, value: Any, default: Any) -> list[str]:
    required = field.default is field.default_factory is dataclasses.MISSING
    if "group" in field.metadata:  # its settings are not listed: those that were changed are enough
        defaults = {} if default == {} else settings_dict(default)
        given = value if isinstance(value, Mapping) else settings_dict(value)
        value, default = {each: given[each] for each in given if given[each] != defaults.get(each)}, {}
    value, default = plain(value), plain(default)
    is_changed, is_missing = not required and value != default, required and value is None
    remark = "; required" if is_missing else f"; default {_format_value(default)}" if is_changed else ""
    allowed = _allowed_values(field_types(cls)[field.name], field.metadata.get("choices"))
    line = f"{name}={'...' if is_missing else _format_value(value)}  ({allowed}{remark})"
    mark = "* " if is_changed else "  "
    head = textwrap.wrap(line, WIDTH, break_on_hyphens=False, initial_indent=mark, subsequent_indent=" " * 10)
    return [*head, *_wrap(describe_fields(cls).get(field.name, ""), "      ")]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, break_on_hyphens=False, initial_indent=indent, subsequent_indent=indent)


def _format_value(value: Any) -> str:
    """Return a value as written after `=`: strings without quotes if they are parsed as strings."""
    if isinstance(value, str) and value:
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return repr(value)


def _allowed_values(kind: Any, choices: Iterable[str] | None) -> str:
    if choices is None:
        return describe_type(kind)
    inner = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    names = list(choices)
    several = "some of " if any(get_origin(each) is tuple for each in inner) else "one of " if len(names) > 1 else ""
    return f"{several}{', '.join(names)}{' or None' if type(None) in inner else ''}"


def module_docstring(name: str) -> str | None:
    """Return the docstring of a module, which is not imported for it: that could take seconds."""
    if name in sys.modules:
        return sys.modules[name].__doc__
    spec = importlib.util.find_spec(name)
    assert spec is not None
    source = Path(str(spec.origin)).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source), clean=False)


def help_text(cls: type, about: str | None) -> str:
    """Return the help of a command: the docstring of its module, rewrapped but for its commands, and its settings."""
    blocks = []
    for block in inspect.cleandoc(about or "").split("\n\n"):
        is_commands = block.lstrip().startswith(("python ", "accelerate "))
        blocks.append(block if is_commands else "\n".join(_wrap(" ".join(block.split()), "")))
    return "\n\n".join([*blocks, settings_text(cls, defaults_of(cls))])
