"""Frozen dataclass configs from plain mappings: unknown keys and wrong types are refused, with the way out."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

Config = TypeVar("Config")
Entry = TypeVar("Entry")

_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    type(None): "None",
    dict: "a mapping",
}


def build(cls: type[Config], values: Mapping[str, Any], what: str = "setting") -> Config:
    """A `cls` from `values`; fields that are not given keep their defaults.

    Whole numbers become floats where a float is wanted, lists tuples, texts paths, and mappings nested dataclasses.

    Args:
        cls: The dataclass. Fields may be bool, int, float, str, Path, None, Any, Literal, unions, tuple, list, dict
            and dataclasses of these.
        values: Field name to value.
        what: The word for a field in error messages.

    Raises:
        ValueError: a key that is no field (the message names the nearest field), a missing field, or what the
            dataclass itself refuses.
        TypeError: a value of the wrong type, or no mapping.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r} ({type(values).__name__}) is not allowed; give {what}s by name")
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    check_names(values, fields, what)
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{what} {missing[0]!r} is missing: give {', '.join(missing)}")
    kinds = get_type_hints(cls)
    return cls(**{name: _convert(name, value, kinds[name]) for name, value in values.items()})


def convert(name: str, value: Any, kind: Any) -> Any:
    """A value as a field of that type is given it by `build`.

    Args:
        name: What it is called in errors.
        value: The value.
        kind: The type, as for a field.

    Raises:
        TypeError: it is none.
    """
    return _convert(name, value, kind)


def read_array(name: str, values: Any, shape: tuple[int, ...], kind: type[bool] | type[float] = float) -> np.ndarray:
    """The array that lists of plain values stand for.

    Args:
        name: What it is called in errors.
        values: The lists.
        shape: What it must have.
        kind: `float`: finite numbers, float64; `bool`: True and False, or 1 and 0.

    Raises:
        ValueError: it is another.
    """
    found = np.array(values)  # whose error for lists of different lengths is a ValueError
    if found.shape != shape:
        raise ValueError(f"{name} has the shape {found.shape}, not {shape}")
    if found.dtype.kind not in "bfiu" or not np.isfinite(found).all() or (kind is bool and not np.isin(found, (0, 1)).all()):
        raise ValueError(f"{name} holds something else than {'0 and 1' if kind is bool else 'finite numbers'}")
    return found.astype(kind)


GROUPS = (
    *("Search", "Budget", "Layers", "Model and data", "Reward", "Stable-Baselines3"),
    *("Recovery", "Training", "Evaluation", "Hardware", "Run"),
)
"""Headings of settings in the order of `settings_text`; those of a single command stand before them."""


def choice(default: Any, names: Iterable[str]) -> Any:
    """Return a dataclass field whose value, or each of whose values, is one of `names`: what `settings_text` lists.

    Args:
        default: The default.
        names: A registry or a tuple. A registry is read when the settings are printed, so that additions are listed too.
    """
    return dataclasses.field(default=default, metadata={"choices": names})


def described(cls: type) -> dict[str, str]:
    """Return the description of each field: the "Attributes" of the docstrings of a dataclass and of its bases."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        part = inspect.cleandoc(each.__doc__ or "").partition("\nAttributes:\n")[2]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", part, re.MULTILINE):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return {field.name: texts[field.name] for field in dataclasses.fields(cls) if field.name in texts}


def grouped(cls: type) -> dict[str, list[str]]:
    """Return heading to field names: each field under the `group` of the class that declares it first.

    `group` is a class variable; without one the heading is "Settings". A command's own settings come before `GROUPS`.
    """
    owners: dict[str, type] = {}
    for base in reversed(cls.__mro__):
        for name in inspect.get_annotations(base) if dataclasses.is_dataclass(base) else ():
            owners.setdefault(name, base)
    groups: dict[str, list[str]] = {}
    for base in cls.__mro__:
        own = [field.name for field in dataclasses.fields(cls) if owners[field.name] is base]
        if own:
            groups.setdefault(vars(base).get("group", "Settings"), []).extend(own)
    return dict(sorted(groups.items(), key=lambda item: GROUPS.index(item[0]) if item[0] in GROUPS else -1))


def settings_text(cls: type, values: Mapping[str, Any]) -> str:
    """Return the settings of a dataclass in groups, in 80 columns: value, what is allowed, default and description.

    Args:
        cls: The dataclass.
        values: Values of its fields. `*` marks those that are not the default.
    """
    texts, defaults, kinds = described(cls), defaults_of(cls), get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    lines: list[str] = []
    for heading, names in grouped(cls).items():
        lines += ["", heading]
        for name in names:
            field, value = fields[name], plain(values[name])
            required = field.default is field.default_factory is dataclasses.MISSING
            changed = not required and value != plain(defaults[name])
            default = f"; default {_typed_value(plain(defaults[name]))}" if changed else ""
            missing = required and value is None
            head = f"{name}=..." if missing else f"{name}={_typed_value(value)}"
            allowed = f"({_allowed(kinds[name], field.metadata.get('choices'))}{'; required' if missing else default})"
            mark = f"{'*' if changed else ' '} "
            lines += textwrap.wrap(
                f"{head}  {allowed}", 80, break_on_hyphens=False, initial_indent=mark, subsequent_indent=" " * 10
            )
            lines += textwrap.wrap(
                texts.get(name, ""), 80, break_on_hyphens=False, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    return "\n".join(lines[1:])


def _typed_value(value: Any) -> str:
    """A value as it stands behind `=`: texts without quotes where they are read back as texts."""
    if isinstance(value, str) and value:
        try:
            ast.literal_eval(value)
        except (ValueError, SyntaxError):
            return value
    return repr(value)


def _allowed(kind: Any, choices: Iterable[str] | None) -> str:
    """What a field may hold, in words."""
    if choices is None:
        return _describe(kind)
    inner = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    names = list(choices)
    several = "some of " if any(get_origin(each) is tuple for each in inner) else "one of " if len(names) > 1 else ""
    return f"{several}{', '.join(names)}{' or None' if type(None) in inner else ''}"


def defaults_of(cls: type) -> dict[str, Any]:
    """The default of every field of a dataclass; None for one that has to be given."""
    made = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(cls)
    }
    return {name: None if value is dataclasses.MISSING else value for name, value in made.items()}


def plain(value: Any) -> Any:
    """A value with lists where it has tuples, all the way down: as JSON keeps it."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def add_entry(registry: dict[str, Entry], name: Any, entry: Entry, what: str, taken: Iterable[str] = ()) -> None:
    """Add a person's own entry to a table of names.

    Args:
        registry: The table.
        name: As which it is asked for: letters, digits and _.
        entry: What it stands for.
        what: The word for an entry in error messages.
        taken: More names that are somebody else's.

    Raises:
        ValueError: no such name, or one that is taken.
    """
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII)):
        raise ValueError(f"{what} name {name!r} is not allowed; use letters, digits and _, a letter first")
    if name in registry or name in set(taken):
        raise ValueError(f"{what} {name!r} is there already; give yours another name")
    registry[name] = entry


def part_of(cls: type[Config], whole: Any) -> Config:
    """A `cls` with its fields' values in `whole`, which has them among others."""
    return cls(**{field.name: getattr(whole, field.name) for field in dataclasses.fields(cast(Any, cls))})


def near_miss(name: str, known: Iterable[str]) -> str | None:
    """The name in `known` that `name` is most like, upper and lower case being the same; None if it is like none."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return by_lower[near[0]] if near else None


LISTINGS = dict.fromkeys(("agent", "model", "task", "reward", "statistic"), "python -m agents list")
"""Where names of a kind are listed, for messages."""


def check_names(
    given: Iterable[str], known: Iterable[str], what: str = "setting", own: bool = False, listing: str | None = None
) -> None:
    """Refuse a name in `given` that is not `known`.

    Args:
        given: Names.
        known: Those that there are.
        what: The word for one in the error.
        own: Whether a module of a person's own may register more of them.
        listing: The command that lists them all; None = that of `LISTINGS`.

    Raises:
        ValueError: names the first such name and the nearest known ones; all of them if they are few.
    """
    known = list(known)
    for name in given:
        if name not in known:
            mine = "; your own needs the module that registers it: use=MODULE, or import it" if own else ""
            raise ValueError(f"unknown {what} {name!r}; {_hint(name, known, listing or LISTINGS.get(what))}{mine}")


class UnexpectedArgumentError(TypeError, ValueError):
    """An argument that an environment does not have: an error of Python's kind, which libraries catch, and of ours."""


def check_arguments(given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an argument in `given` that an environment does not have, in Python's words.

    TorchRL gives every environment a `frameskip`, and takes it back where those words say that there is none.

    Raises:
        UnexpectedArgumentError: as `check_names`.
    """
    known = list(known)
    for name in given:
        if name not in known:
            raise UnexpectedArgumentError(f"unexpected keyword argument {name!r}; {_hint(name, known)}")


FEW = 12
"""So many names are listed in a message."""


def _hint(name: Any, known: Sequence[str], listing: str | None = None) -> str:
    by_lower = {each.lower(): each for each in known}
    near = [repr(by_lower[each]) for each in difflib.get_close_matches(str(name).lower(), by_lower, n=3)]
    if len(known) <= FEW:
        return f"{f'did you mean {near[0]}? ' if near else ''}known: {', '.join(known) or 'none'}"
    listed = f"`{listing}` lists all {len(known)}" if listing else ""
    if near:
        return f"did you mean {' or '.join([', '.join(near[:-1]), near[-1]] if near[1:] else near)}? {listed}".rstrip()
    return listed or f"known: {', '.join(known[:FEW])} and {len(known) - FEW} more"


def _convert(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, or a TypeError that says what `name` may be."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(name, value, kind)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in inner):
            raise _refusal(name, value, kind)
        return value
    if origin in (tuple, list):
        return _convert_sequence(name, value, kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _refusal(name, value, kind)
        return {_convert(name, key, inner[0]): _convert(f"{name}.{key}", item, inner[1]) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(cast(type, kind), value, f"setting of {name},")
    return _convert_plain(name, value, kind)


def _convert_union(name: str, value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    for choice in choices:  # a value that already has one of the types stays what it is
        if isinstance(choice, type) and type(value) is choice:
            return value
    for choice in choices:
        try:
            return _convert(name, value, choice)
        except TypeError:
            continue
    raise _refusal(name, value, kind)


def _convert_sequence(name: str, value: Any, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise _refusal(name, value, kind)
    if origin is list or inner[-1] is Ellipsis:
        kinds = [inner[0]] * len(value)
    elif len(inner) == len(value):
        kinds = list(inner)
    else:
        raise _refusal(name, value, kind)
    return origin(_convert(f"{name}[{i}]", item, kinds[i]) for i, item in enumerate(value))


def _convert_plain(name: str, value: Any, kind: Any) -> Any:
    truth = isinstance(value, (bool, np.bool_))
    if kind is bool and truth:
        return bool(value)
    if kind is int and isinstance(value, Integral) and not truth:
        return int(value)
    if kind is float and isinstance(value, Real) and not truth:
        try:
            return float(value)
        except OverflowError:
            raise _refusal(name, value, kind) from None
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind not in (bool, int, float, Path) and isinstance(value, kind):
        return value
    raise _refusal(name, value, kind)


def _refusal(name: str, value: Any, kind: Any) -> TypeError:
    return TypeError(f"{name}={value!r} ({type(value).__name__}) is not allowed; give {_describe(kind)}")


def _describe(kind: Any) -> str:
    """`kind` in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        words = [_describe(choice) for choice in inner]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return f"{'one of ' if len(inner) > 1 else ''}{', '.join(map(str, inner))}"
    if origin in (tuple, list):
        if origin is list or inner[-1] is Ellipsis:
            return f"a list, each {_describe(inner[0])}"
        return f"a list of {len(inner)}: " + ", ".join(map(_describe, inner))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "values by name" if inner[1] is Any else f"values by name, each {_describe(inner[1])}"
    if kind is Any:
        return "anything"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))
