"""Settings: frozen dataclasses whose fields declare the types, ranges and names that are checked.

`build` makes them from plain mappings, as JSON or a command line has them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from das_gym.names import brief, check_arguments, check_names

Config = TypeVar("Config")

_TYPE_NAMES = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    type(None): "None",
    dict: "a mapping",
}


@dataclass(frozen=True)
class Range:
    """The numbers that a field takes, as in `Annotated[float, Range(0)]`; infinity is never one of them.

    Attributes:
        low, high: The smallest and the largest number.
        above: Whether a number has to be larger than `low`.
    """

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        at_least = value > self.low if self.above else value >= self.low
        return at_least and value <= self.high and value != math.inf

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"from {self.low} to {self.high}"
        return f"above {self.low}" if self.above else f"of at least {self.low}"


PositiveInt = Annotated[int, Range(1)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
PositiveFloat = Annotated[float, Range(0, above=True)]
NonNegativeInt = Annotated[int, Range(0)]
NonNegativeFloat = Annotated[float, Range(0)]


@dataclass(frozen=True)
class Settings:
    """Base class of settings: values become what the types of their fields say, or raise an error.

    Help texts list the fields of `class TrainingSettings(Settings, group="Training")` under that heading.

    Raises:
        TypeError: A value of another type.
        ValueError: A number out of its range, or a name outside the `choice`.
    """

    group: ClassVar[str]

    def __init_subclass__(cls, group: str = "Settings", **others: Any) -> None:
        super().__init_subclass__(**others)
        cls.group = group

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Check the names, since Python's own message about a wrong one does not have the nearest."""
        check_arguments(given, (field.name for field in dataclasses.fields(cast(Any, cls))))
        return super().__new__(cls)

    def __post_init__(self) -> None:
        kinds = field_types(cast(Any, type(self)))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if dataclasses.is_dataclass(kinds[field.name]) and isinstance(value, Mapping):
                value = build(kinds[field.name], value, f"setting of {field.name},", default_of(field))
            value = convert(field.name, value, kinds[field.name])
            if field.metadata.get("is_closed") and value is not None:
                names = (value,) if isinstance(value, str) else value
                check_names(names, field.metadata["choices"], field.name, own=field.metadata["own"])
            object.__setattr__(self, field.name, value)
        for field in dataclasses.fields(self):
            if field.metadata.get("shared"):
                own = {name: getattr(self, name) for name in field.metadata["shared"]}
                object.__setattr__(self, field.name, dataclasses.replace(getattr(self, field.name), **own))


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """Return the types of the fields of a dataclass, with their ranges."""
    return get_type_hints(cls, include_extras=True)


def choice(default: Any, names: Iterable[str], own: bool = False, others: bool = False) -> Any:
    """Return a dataclass field that accepts `names`, as its value or each entry of it.

    Help texts list them, those added to a registry too.

    Args:
        default: The field's default.
        names: Its allowed values.
        own: Whether a user's module may register more.
        others: Whether other values are allowed too.
    """
    return dataclasses.field(default=default, metadata={"choices": names, "own": own, "is_closed": not others})


def nested(
    cls: type,
    shared: Sequence[str] = (),
    without: Sequence[str] = (),
    listed: bool = True,
    default: Callable[[], Any] | None = None,
) -> Any:
    """Return a dataclass field for a group of further settings, given as `field.NAME=VALUE`.

    Args:
        cls: The dataclass of the group. `build` suggests `field.NAME` for a misplaced name.
        shared: Fields of `cls` that have the value of the command's own attribute of that name.
        without: Further fields of `cls` that cannot be given in the group.
        listed: Whether help texts list the group's settings.
        default: Makes the default; None makes a `cls`.
    """
    metadata = {"group": cls, "shared": tuple(shared), "without": (*shared, *without), "listed": listed}
    return dataclasses.field(default_factory=default or cls, metadata=metadata)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field; None for one without."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return None if field.default is MISSING else field.default


def group_fields(field: dataclasses.Field[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Return the settings inside a field made by `nested`; empty for other fields."""
    if "group" not in field.metadata:
        return {}
    fields = dataclasses.fields(field.metadata["group"])
    return {each.name: each for each in fields if each.init and each.name not in field.metadata["without"]}


def short_names(cls: type) -> dict[str, list[str]]:
    """Return the dotted names of the settings in groups of a command, by their last part.

    Those whose last part is also a setting outside of groups are left out.
    """
    fields = dataclasses.fields(cls)
    own = {field.name for field in fields}
    found: dict[str, list[str]] = {}
    for field in fields:
        for name in group_fields(field):
            if name not in own:
                found.setdefault(name, []).append(f"{field.name}.{name}")
    return found


def full_names(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a command, by dotted names, with the groups of short names: `rate` becomes `train.rate`.

    Raises:
        ValueError: Several groups have a setting of that name.
    """
    known = short_names(cls)
    full: dict[str, Any] = {}
    for name, value in settings.items():
        first, dot, rest = name.partition(".")
        places = known.get(first, [first])
        if len(places) > 1:
            both = " or ".join(f"`{each}`" for each in places)
            raise ValueError(f"`{first}` is a setting of several groups; give {both}")
        full[f"{places[0]}{dot}{rest}"] = value
    return full


def shortest_name(cls: type, name: str) -> str:
    """Return a dotted name of a command's setting without its group, if no other setting has that name."""
    group, _, rest = name.partition(".")
    first = rest.partition(".")[0]
    return rest if short_names(cls).get(first) == [f"{group}.{first}"] else name


def build(cls: type[Config], values: Any, what: str = "setting", default: Config | None = None) -> Config:
    """Return an instance of a dataclass from plain values, as JSON or a command line has them.

    Lists become tuples, ints become floats, and nested mappings become nested dataclasses, as the field types say. What is
    not given is that of `default`. Error messages call a key `what`.
    """
    if not isinstance(values, Mapping):
        raise TypeError(f"{values!r} ({type(values).__name__}) is not allowed; give {what}s by name")
    if issubclass(cls, Settings):
        values = nest_settings(full_names(cls, flatten_settings(values)))
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    for name, field in fields.items():
        for inner in field.metadata.get("without", ()):
            if isinstance(values.get(name), Mapping) and inner in values[name]:
                raise ValueError(f"unknown {what} '{name}.{inner}'. Did you mean `{inner}`?")
    check_names(values, [*fields, *(name for name in short_names(cls) if name not in values)], what)
    required = [name for name, field in fields.items() if field.default is MISSING and field.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ValueError(f"{what} {missing[0]!r} is missing: give {', '.join(missing)}")
    if not issubclass(cls, Settings):  # which converts its values itself
        kinds = field_types(cast(Any, cls))
        values = {name: convert(name, value, kinds[name]) for name, value in values.items()}
    return cls(**values) if default is None else dataclasses.replace(cast(Any, default), **values)


def convert(name: str, value: Any, kind: Any) -> Any:
    """Return a value as `build` gives it to a field of the type `kind`; error messages call it `name`."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or (origin is Literal and any(value == each and type(value) is type(each) for each in inner)):
        return value
    if origin is Annotated:
        return _convert_number(name, value, *inner)
    if origin in (Union, types.UnionType):
        return _convert_union(name, value, kind)
    if origin in (tuple, list):
        return _convert_sequence(name, value, kind)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return {convert(name, k, inner[0]): convert(f"{name}.{k}", each, inner[1]) for k, each in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(cast(type, kind), value, f"setting of {name},")
    if origin is not None:
        raise _type_error(name, value, kind)
    return _convert_plain(name, value, kind)


def _convert_number(name: str, value: Any, kind: Any, allowed: Range) -> Any:
    number = convert(name, value, kind)
    if number not in allowed:
        raise ValueError(f"`{name}` is out of range: got {value!r}, expected {_TYPE_NAMES[kind]} {allowed}")
    return number


def _convert_union(name: str, value: Any, kind: Any) -> Any:
    if type(value) in get_args(kind):  # a value that already has one of the types stays what it is
        return value
    for each in get_args(kind):
        try:
            return convert(name, value, each)
        except TypeError:
            continue
    raise _type_error(name, value, kind)


def _convert_sequence(name: str, value: Any, kind: Any) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if isinstance(value, str) and inner[0] is str:
        items = json.dumps([item.strip(" \"'") for item in value.strip("[]() ").split(",")])
        raise TypeError(f"{_type_error(name, value, kind)}, as in '{name}={items}'")
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise _type_error(name, value, kind)
    any_length = origin is list or inner[-1] is Ellipsis
    if not any_length and len(inner) != len(value):
        raise _type_error(name, value, kind)
    kinds = [inner[0]] * len(value) if any_length else inner
    return origin(convert(f"{name}[{i}]", item, kinds[i]) for i, item in enumerate(value))


def _convert_plain(name: str, value: Any, kind: Any) -> Any:
    is_bool = isinstance(value, (bool, np.bool_))
    if kind is bool and is_bool:
        return bool(value)
    if kind is int and isinstance(value, Integral) and not is_bool:
        return int(value)
    if kind is float and isinstance(value, Real) and not is_bool:
        try:
            return float(value)
        except OverflowError:  # JSON holds whole numbers of any length
            raise _type_error(name, value, kind) from None
    if kind in (Path, str) and isinstance(value, (str, Path)):
        return kind(value)
    if kind not in (bool, int, float, str, Path) and isinstance(value, kind):
        return value
    raise _type_error(name, value, kind)


def _type_error(name: str, value: Any, kind: Any) -> TypeError:
    return TypeError(f"{name}={brief(value)} ({type(value).__name__}) is not allowed; give {describe_type(kind)}")


def describe_type(kind: Any) -> str:
    """Return a field type in words, for messages and help texts."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return f"{_TYPE_NAMES[inner[0]]} {inner[1]}"
    if origin in (Union, types.UnionType):
        words = [describe_type(each) for each in inner]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is Literal:
        return f"{'one of ' if len(inner) > 1 else ''}{', '.join(map(str, inner))}"
    if origin in (tuple, list):
        if origin is list or inner[-1] is Ellipsis:
            return f"a list, each {describe_type(inner[0])}"
        return f"a list of {len(inner)}: " + ", ".join(map(describe_type, inner))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "values by name" if inner[1] is Any else f"values by name, each {describe_type(inner[1])}"
    if dataclasses.is_dataclass(kind):
        return "values by name"
    return "anything" if kind is Any else _TYPE_NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def tuples_to_lists(value: Any) -> Any:
    """Return a value with lists in place of tuples, at every depth, as JSON keeps it."""
    if isinstance(value, Mapping):
        return {key: tuples_to_lists(each) for key, each in value.items()}
    return [tuples_to_lists(each) for each in value] if isinstance(value, (list, tuple)) else value


def settings_dict(settings: Any) -> dict[str, Any]:
    """Return a dataclass of settings as plain values, from which `build` makes it again."""
    return {field.name: _plain_value(field, getattr(settings, field.name)) for field in dataclasses.fields(settings)}


def defaults_of(cls: type) -> dict[str, Any]:
    """Return the default of every field of a dataclass, as `settings_dict` holds it; None for those without."""
    return {field.name: _plain_value(field, default_of(field)) for field in dataclasses.fields(cls)}


def _plain_value(field: dataclasses.Field[Any], value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        value = {n: each for n, each in settings_dict(value).items() if n not in field.metadata.get("without", ())}
    return tuples_to_lists(value)


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted names: `{"search": {"seed": 1}}` becomes `{"search.seed": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        is_group = isinstance(value, Mapping) and value
        flat |= flatten_settings(value, f"{prefix}{name}.") if is_group else {f"{prefix}{name}": value}
    return flat


def nest_settings(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted names as nested mappings, sorted as in a run's record: what `flatten_settings` takes."""
    nested: dict[str, Any] = {}
    for name, value in sorted(flat.items(), key=lambda item: item[0]):
        *groups, last = name.split(".")
        if not all((*groups, last)):
            raise ValueError(f"{name}={value} has an empty name; give name=value")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
            if not isinstance(inner, dict):
                raise ValueError(f"`{group}` is given as {inner!r}, and {name}={value} too; give one of them")
        if value == {}:
            inner.setdefault(last, {})
        else:
            inner[last] = value
    return nested
