import copy
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from das_gym.commands.commandline import defaults_of, settings_text
from das_gym.commands.settings import (
    PositiveFloat,
    PositiveInt,
    Range,
    Seed,
    Settings,
    build,
    choice,
    flatten_settings,
    full_names,
    nest_settings,
    nested,
    settings_dict,
    shortest_name,
)
from das_gym.files import read_array
from das_gym.names import check_names


@dataclass(frozen=True)
class Inner:
    rate: float = 1.0


@dataclass(frozen=True)
class Outer:
    count: int
    rate: float = 0.5
    name: str = "a"
    on: bool = False
    size: str | int | None = None
    root: Path | None = None
    betas: tuple[float, float] = (0.9, 0.98)
    mask: list[int] | None = None
    names: tuple[str, ...] = ()
    mode: Literal["fixed", "cycle"] = "fixed"
    kwargs: dict[str, Any] = field(default_factory=dict)
    inner: Inner = Inner()


def test_values_become_what_the_fields_are():
    values: dict[str, Any] = {"count": np.int64(3), "rate": 1, "root": "a/b", "betas": [1, 0.5], "mask": (0, 1)}
    config = build(Outer, {**values, "names": ["x"], "kwargs": {"a": None}, "inner": {"rate": 2}})
    mine = Outer(3, 1.0, root=Path("a/b"), betas=(1.0, 0.5), mask=[0, 1], names=("x",), kwargs={"a": None}, inner=Inner(2.0))
    assert config == mine
    assert type(config.count) is int
    assert type(config.rate) is float
    assert type(config.betas) is tuple
    assert [build(Outer, {"count": 1, "size": size}).size for size in (None, "mini", 96)] == [None, "mini", 96]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"count": True}, "count=True (bool) is not allowed; give a whole number"),
        ({"size": 1.5}, "size=1.5 (float) is not allowed; give a text, a whole number or None"),
        ({"betas": [1.0]}, "betas=[1.0] (list) is not allowed; give a list of 2: a number, a number"),
        ({"names": "a"}, "names='a' (str) is not allowed; give a list, each a text, as in 'names=[\"a\"]'"),
        ({"names": "[a,b]"}, 'give a list, each a text, as in \'names=["a", "b"]\''),
        ({"names": ["a", 1]}, "names[1]=1 (int) is not allowed; give a text"),
        ({"betas": [10**400, 1]}, "(int) is not allowed; give a number"),  # JSON holds whole numbers of any length
    ],
)
def test_wrong_type_is_rejected_with_allowed_types(values, text):
    with pytest.raises(TypeError) as error:
        build(Outer, {"count": 1, **values})
    assert str(error.value).endswith(text)


@dataclass(frozen=True)
class Checked(Settings):
    """Checked.

    Attributes:
        rates: Learning rates.
    """

    seed: Seed = 0
    size: PositiveInt | None = None
    share: Annotated[float, Range(0, 1)] = 0.5
    rates: tuple[PositiveFloat, ...] = ()
    mode: str = choice("a", ("a", "b"))
    parts: tuple[str, ...] = choice((), ("left", "right"), own=True)


def test_python_users_get_the_conversions_and_checks_of_the_command_line():
    settings = Checked(size=np.int64(3), share=1, rates=[1, 0.5], parts=["left"])  # type: ignore[arg-type]
    assert settings == Checked(0, 3, 1.0, (1.0, 0.5), "a", ("left",))
    assert (type(settings.size), type(settings.share)) == (int, float)
    assert "rates=[]  (a list, each a number above 0)\n      Learning rates." in settings_text(Checked, defaults_of(Checked))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "`seed` is out of range: got -1, expected a whole number from 0 to 4294967295"),
        ({"seed": 2**32}, "`seed` is out of range"),
        ({"size": 0}, "`size` is out of range: got 0, expected a whole number of at least 1"),
        ({"share": 1.1}, "`share` is out of range: got 1.1, expected a number from 0 to 1"),
        ({"share": float("nan")}, "`share` is out of range"),
        ({"rates": (1.0, 0.0)}, r"`rates\[1\]` is out of range: got 0.0, expected a number above 0"),
        ({"rates": (float("inf"),)}, r"`rates\[0\]` is out of range"),
        ({"mode": "c"}, "unknown mode 'c'; known: a, b"),
        ({"parts": ("left", "rigth")}, "unknown parts 'rigth'; did you mean 'right'"),
    ],
)
def test_number_out_of_range_and_unknown_choice_are_rejected(values, message):
    with pytest.raises(ValueError, match=message):
        Checked(**values)
    with pytest.raises(ValueError, match=message):
        build(Checked, values)


def test_unknown_argument_is_rejected_with_the_nearest_known_one():
    with pytest.raises(TypeError, match=r"'shrae'; did you mean 'share'\?"):
        Checked(shrae=1)
    assert copy.deepcopy(Checked(3)) == pickle.loads(pickle.dumps(Checked(3))) == Checked(3)


def test_unknown_key_is_rejected_with_the_nearest_known_one():
    with pytest.raises(ValueError, match=r"unknown setting 'cuont'; did you mean 'count'\? known: count, rate, name"):
        build(Outer, {"cuont": 1})
    with pytest.raises(ValueError, match="unknown setting of inner, 'rat'; did you mean 'rate'"):
        build(Outer, {"count": 1, "inner": {"rat": 1}})
    with pytest.raises(ValueError, match=r"^unknown agent 'zzz'; known: bandit$"):
        check_names(["zzz"], ["bandit"], "agent")
    with pytest.raises(ValueError, match="unknown model 'meter'; did you mean 'METER'"):
        check_names(["meter"], ["METER", "ViLT"], "model")


@dataclass(frozen=True)
class Training(Settings):
    """Training.

    Attributes:
        seed: Random seed.
        rate: Learning rate.
    """

    seed: int = 0
    rate: float = 0.5


@dataclass(frozen=True)
class Grouped(Settings):
    """Grouped.

    Attributes:
        seed: Random seed.
        train: Settings of training.
        search: Settings of the search.
    """

    seed: int = 0
    train: Training = nested(Training, shared=("seed",))
    search: Training = nested(Training, listed=False)


def test_nested_settings_are_built_listed_and_suggested():
    settings = build(Grouped, {"seed": 3, "train": {"rate": 1}, "search": {"rate": 2}})
    assert (settings.train, settings.search) == (Training(3, 1.0), Training(0, 2.0))
    assert settings_dict(settings) == {"seed": 3, "train": {"rate": 1.0}, "search": {"seed": 0, "rate": 2.0}}
    assert build(Grouped, settings_dict(settings)) == settings
    text = settings_text(Grouped, settings_dict(settings))
    assert "train.NAME=VALUE\n      Settings of training.\n* train.rate=1.0  (a number; default 0.5)" in text
    assert "train.seed" not in text
    assert "* search={'rate': 2.0}  (values by name; default {})" in text
    assert "train.rate=0.5" in settings_text(Grouped, defaults_of(Grouped))
    with pytest.raises(ValueError, match=r"`rate` is a setting of several groups; give `train\.rate` or `search\.rate`"):
        build(Grouped, {"rate": 1})
    with pytest.raises(ValueError, match=r"'train\.seed'\. Did you mean `seed`"):
        build(Grouped, {"train": {"seed": 1}})
    with pytest.raises(ValueError, match="unknown setting of train, 'rat'; did you mean 'rate'"):
        build(Grouped, {"train": {"rat": 1}})


@dataclass(frozen=True)
class Command(Settings):
    """A command.

    Attributes:
        seed: Random seed.
        train: Settings of training.
    """

    seed: int = 0
    train: Training = nested(Training, default=lambda: Training(rate=0.25))


def test_short_name_is_the_setting_of_its_group():
    assert build(Command, {"rate": 1, "seed": 3}) == Command(3, Training(rate=1.0))  # the command's own seed
    assert build(Command, {"train": {"seed": 3}}) == Command(0, Training(3, 0.25))  # the rest is the group's default
    assert full_names(Command, {"rate": 1, "train.seed": 2}) == {"train.rate": 1, "train.seed": 2}
    assert [shortest_name(Command, name) for name in ("train.rate", "train.seed", "seed")] == ["rate", "train.seed", "seed"]
    assert "* rate=1.0  (a number; default 0.25)" in settings_text(Command, {"seed": 0, "train": {"rate": 1.0}})
    with pytest.raises(ValueError, match="unknown setting 'rat'; did you mean 'rate'"):
        build(Command, {"rat": 1})


def test_nested_settings_are_flat_ones():
    flat = {"a.b": 1, "a.c.d": 2, "e": [1], "f": {}}
    assert flatten_settings(nest_settings(flat)) == flat
    for wrong in ({"a..b": 1}, {"a": 1, "a.b": 2}):
        with pytest.raises(ValueError, match=r"`a`|empty name"):
            nest_settings(wrong)


@pytest.mark.parametrize("values", [[1, 2], [1, 2, "x"], [1, 2, 10**400], [1, [2], 3], None])
def test_array_of_wrong_type_is_rejected(values):
    assert read_array("it", [1, 0.5, True], (3,)).tolist() == [1.0, 0.5, 1.0]
    assert read_array("it", [1, 0, True], (3,), bool).tolist() == [True, False, True]
    with pytest.raises(ValueError, match=r"it has the wrong shape|it holds values other|inhomogeneous"):
        read_array("it", values, (3,))
    with pytest.raises(ValueError, match="it holds values other than 0 and 1"):
        read_array("it", [0, 1, 2], (3,), bool)


def test_class_arguments_of_other_bases_reach_them():
    class Versioned:
        version = 0

        def __init_subclass__(cls, version: int = 0, **others: Any) -> None:
            super().__init_subclass__(**others)
            cls.version = version

    class Mine(Settings, Versioned, group="Mine", version=2):
        pass

    assert (Mine.group, Mine.version) == ("Mine", 2)
