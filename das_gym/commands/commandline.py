"""Command lines of `python -m agents` and `python -m adapt`: sub-commands, settings, suggestions for mistyped words.

Help texts, in 80 columns, have the settings with groups, values, what is allowed, defaults and descriptions.
"""

from __future__ import annotations

import ast
import dataclasses
import errno
import importlib.util
import inspect
import os
import pkgutil
import re
import shlex
import sys
import textwrap
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import das_gym
from das_gym.commands.runs import USER_ERRORS, PluginSettings, run_settings
from das_gym.commands.settings import (
    build,
    defaults_of,
    describe_type,
    field_types,
    flatten_settings,
    group_fields,
    shortest_name,
)
from das_gym.commands.trust import add_working_folder, import_plugins, imported_plugins
from das_gym.names import check_names, escape_control_chars
from das_gym.processes import (
    end_on_signals,
    exit_code,
    ignore_signals,
    is_main_process,
    keep_freed_memory,
    prepare_streams,
    raise_interrupts,
    silence_stdout,
    stop_message,
)

Config = TypeVar("Config")
HELP = ("-h", "--help", "help")
SCRIPTS = ("das-agents", "das-adapt")

NOT_REPEATED = ("runs_dir", "resume", "plugins", "save_every")
"""Settings that do not change the result of a run, or that `format_command` adds."""

WIDTH = 80

GROUPS = (
    *("Search", "Budget", "Layers", "Model and data", "Reward", "Stable-Baselines3"),
    *("Recovery", "Training", "Search and evaluation", "Hardware", "Run"),
)
"""The order of headings. Those of a single command stand before them."""


class UsageError(ValueError):
    """Words of a command line that cannot be read; the exit code is 2."""


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        target: "module:name" of a function that takes the settings and may return an exit code, or, without `settings`, of
            a `RecordedCommand`. It is imported when the command runs, once its settings are checked.
        words: What may follow, as the help shows it.
        about: What it does.
        settings: "module:class" of the settings after `with`, where the target is a function.
        positional: A setting whose values may also stand before `with`, as in `report 1 2`.
    """

    target: str
    words: str
    about: str
    settings: str | None = None
    positional: str | None = None

    @property
    def settings_class(self) -> type:
        """The class of its settings. The function itself is not imported for it."""
        return pkgutil.resolve_name(self.settings or f"{self.target}.settings_class")

    def run(self, name: str, words: Sequence[str], siblings: Sequence[str] = ()) -> int:
        """Run the command and return its exit code; messages call it `name` and suggest `siblings` as first words."""
        raise_interrupts()
        if self.settings is None:
            pkgutil.resolve_name(self.target).run_words(words, siblings)
            return 0
        cls = self.settings_class
        words = words_to_setting(words, self.positional) if self.positional else words
        if words and words[0] in HELP:
            print(localize_commands(help_text(cls, module_docstring(self.target.partition(":")[0]))))
            return 0
        if list(words) == ["print_config"]:
            print(settings_text(cls, defaults_of(cls)))
            return 0
        settings: Any = parse(cls, words, name)
        return pkgutil.resolve_name(self.target)(settings) or 0  # imported once the settings are checked


@dataclass(frozen=True)
class Program:
    """`python -m <name>` and its sub-commands.

    Attributes:
        name: `agents` or `adapt`.
        commands: By the word that names them.
        default_command: The command that `with ...` directly after the program's name runs.
        runs_alone: Whether the program's name alone runs `default_command`; otherwise it shows the help.
        examples: Frequent commands: the words after the program's name, and what they do.
    """

    name: str
    commands: Mapping[str, Command]
    default_command: str
    runs_alone: bool = False
    examples: tuple[tuple[str, str], ...] = ()

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Run the command that the arguments, by default `sys.argv`, name, and end with its exit code."""
        end_on_signals()
        keep_freed_memory()
        sys.exit(self.run((sys.argv if argv is None else argv)[1:]))

    def run(self, arguments: Sequence[str]) -> int:
        """Run the command that the arguments name; return the exit code. User errors are printed in one paragraph."""
        prepare_streams()
        add_working_folder()  # the path of a console script lacks it
        usual = warnings.formatwarning
        warnings.formatwarning = _format_warning
        try:
            code = self._dispatch([_expand_home(word) for word in arguments])
            sys.stdout.flush()
            return code
        except KeyboardInterrupt as interrupt:
            if is_main_process():
                print(stop_message(interrupt), file=sys.stderr)
            return exit_code(interrupt)
        except BrokenPipeError:
            return silence_stdout()
        except USER_ERRORS as error:
            print(f"error: {escape_control_chars(localize_commands(describe_error(error)))}", file=sys.stderr)
            if isinstance(error.__cause__, BrokenPipeError):
                return silence_stdout()
            return 2 if isinstance(error, UsageError) else 1
        finally:
            warnings.formatwarning = usual
            ignore_signals()

    def _dispatch(self, words: list[str]) -> int:
        first = words[0] if words else ""
        if first in HELP or (not words and not self.runs_alone):
            print(self.help(), end="")
            return 0
        if first == "--version":
            print(f"das-{self.name} {das_gym.__version__}")
            return 0
        if first in self.commands:
            return self.commands[first].run(f"{self.name} {first}", words[1:])
        return self.commands[self.default_command].run(self.name, words, tuple(self.commands))

    def help(self) -> str:
        """Return all sub-commands and the examples, in 80 columns."""
        start = format_command(self.name)
        column = 31  # of the descriptions
        lines = [f"{start} COMMAND", ""]
        for name, each in self.commands.items():
            words = f"  {name} {each.words}".rstrip()
            if len(words) > column - 2:
                lines.append(words)
                words = ""
            lines += textwrap.wrap(each.about, WIDTH, initial_indent=f"{words:<{column}}", subsequent_indent=column * " ")
        lines += ["", "Examples:"] if self.examples else []
        for words, about in self.examples:
            lines += [f"  {start} {words}".rstrip(), f"      {about}"]
        lines += [
            "",
            f"Without a command, `{self.default_command}` runs: {start} {'[with ...]' if self.runs_alone else 'with ...'}",
            "`with` takes name=value and named configs. `COMMAND --help` shows what a",
            "command does, its settings and its named configs, `COMMAND print_config` the",
            "settings as they would be. `plugins=my_module` imports your module first.",
        ]
        return "\n".join(lines) + "\n"


def _format_warning(message: Warning | str, category: type[Warning], *place: object, **line: object) -> str:
    """Return a warning as commands print it: without the line of source code that Python adds."""
    del place, line
    return f"{category.__name__}: {escape_control_chars(localize_commands(str(message)))}\n"


def _expand_home(word: str) -> str:
    """Expand a leading ~ of a word or of its value, which bash leaves in `runs_dir=~/runs`."""
    name, sign, value = word.rpartition("=")
    return name + sign + os.path.expanduser(value)  # noqa: PTH111 - Path.expanduser fails where there is no home


def is_our_program(program: str) -> bool:
    """Return True for a command of `agents` or `adapt`; the record of a run may name any other."""
    return f"das-{program.partition(' ')[0]}" in SCRIPTS


def format_command(program: str, *words: str) -> str:
    """Return a command as a user types it here: `das-agents table with resume=3 plugins=my_module`.

    In a command that was started by `python -m agents` or `python -m das_gym.agents`, others begin so, too. The words are
    settings, quoted for a shell; empty ones are left out. Imported plugins are added.
    """
    name, *command = map(shlex.quote, program.split())  # a record may name it
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    package = "" if spec is None else spec.name.removesuffix(".__main__")
    if package in ("agents", "adapt", "das_gym.agents", "das_gym.adapt"):
        start = f"python -m {'das_gym.' if package.startswith('das_gym.') else ''}{name}"
    else:  # a script of ours, or another program: only das_gym's scripts work in every folder
        start = f"das-{name}"
    given = [word for word in words if word]
    if given and imported_plugins():
        given.append(shlex.quote(f"plugins={','.join(imported_plugins())}"))
    return escape_control_chars(" ".join([start, *command, *(["with", *given] if given else [])]))


def format_settings(
    settings: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, cls: type | None = None
) -> list[str]:
    """Return settings as they are typed after `with`, quoted for a shell; those that equal a default are left out.

    With the class of a command's settings, names are the shortest ones.
    """
    flat = flatten_settings(settings)
    known = flatten_settings(defaults or {})
    words = []
    for name, value in flat.items():
        if name not in known or known[name] != value:
            text = str(value)
            if not isinstance(value, str) and '"' not in text:
                text = text.replace("'", '"')  # a shell's quotes go around it
            words.append(shlex.quote(f"{name if cls is None else shortest_name(cls, name)}={text}"))
    return words


def rerun_command(folder: Path, command: str, cls: type, defaults: Mapping[str, Any], **changes: Any) -> str:
    """Return the command with settings `cls` that repeats the run in `folder`, without settings that equal `defaults`.

    `changes` replace the run's settings; None leaves one out.
    """
    known = {**run_settings(folder), **changes}
    chosen = {name: value for name, value in known.items() if name not in NOT_REPEATED and value is not None}
    return format_command(command, *format_settings(chosen, defaults, cls))


def read_settings(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings, by dotted names, and the named configs after `with`."""
    values: dict[str, Any] = {}
    named = []
    for word in words:
        name, sign, text = word.partition("=")
        if not sign:
            named.append(word)
            continue
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            value = text.strip()
        values |= flatten_settings({name.strip(): value})
    return values, named


def parse(cls: type[Config], words: Sequence[str], command: str) -> Config:
    """Return the settings of a command from `with name=value ...`, after importing plugins; UsageError for other words."""
    check_words(words, command, [each.name for each in dataclasses.fields(cls)])  # type: ignore[arg-type]
    values, named = read_settings(words[1:])
    if named:
        example = format_command(command, f"{named[0].lstrip('-')}=...")
        raise UsageError(f"{named[0]!r} is not a setting; give name=value, as in `{example}`")
    if issubclass(cls, PluginSettings) and "plugins" in values:
        import_plugins(build(PluginSettings, {"plugins": values["plugins"]}).plugins)
    return build(cls, values)


def words_to_setting(words: Sequence[str], name: str) -> list[str]:
    """Return the words of a command with the ones before `with` as values of the setting `name`: `report 1 2 with x=3`."""
    if not words or words[0] in (*HELP, "print_config", "with"):
        return list(words)
    if "=" in words[0] and not Path(words[0]).exists():  # a setting without `with`
        return list(words)
    end = list(words).index("with") if "with" in words else len(words)
    for word in words[:end]:
        if "=" in word and not Path(word).exists():
            raise UsageError(f"settings follow `with`: got {word} before it")
    return ["with", f"{name}={tuple(words[:end])}", *words[end + 1 :]]


def describe_error(error: BaseException, resume: str | None = None) -> str:
    """Return an error's message, with advice for a full disk and a closed standard output."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EPIPE):
        return str(error)
    then = "" if resume is None else f", then resume with `{resume}`"
    if error.errno == errno.EPIPE:
        return f"standard output was closed: redirect it to a file{then}"
    return f"{error.filename or 'a file'} cannot be written ({error.strerror}): make room{then}"


def localize_commands(text: str) -> str:
    """Return a text with its commands as they are typed here: `das-agents list` or `python -m agents list`."""
    return re.sub(r"(?:python -m |(?<=`)das-)(agents|adapt)\b", lambda match: format_command(match[1]), text)


def check_words(
    words: Sequence[str], command: str, settings: Iterable[str], commands: Iterable[str] = (), named: Iterable[str] = ()
) -> None:
    """Raise UsageError for words of `command` that cannot be parsed: first `with`, an option or one of `commands`."""
    commands = list(commands)
    flags = {f"--{name}".replace("_", "-") for name in settings}
    for word in words:
        if word == "=" or word.partition("=")[0].replace("_", "-") in flags:
            raise UsageError(f"settings follow `with` as name=value, without spaces and dashes: got {word}")
    word = words[0] if words else "with"
    if list(words) == ["with"]:
        raise UsageError(f"nothing follows `with`: `{format_command(command, 'name=value')} ...`")
    if word == "with" or word.startswith("-") or word in commands:
        return
    if "=" in word or word in named:
        raise UsageError(f"settings follow `with`; did you mean `{format_command(command, *words)}`?")
    if not commands:
        raise UsageError(f"settings follow `with`: got {word} before it; `{format_command(command)} --help` lists them")
    try:
        check_names([word], [*commands, "with"], "sub-command", listing=f"{format_command(command)} --help")
    except ValueError as error:
        raise UsageError(str(error)) from None


def describe_fields(cls: type) -> dict[str, str]:
    """Return the description of each field, from the "Attributes" in the docstrings of a dataclass and its bases."""
    texts: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        part = inspect.cleandoc(each.__doc__ or "").partition("\nAttributes:\n")[2]
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", part, re.MULTILINE):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return {field.name: texts[field.name] for field in dataclasses.fields(cls) if field.name in texts}


def group_headings(cls: type) -> dict[str, list[str]]:
    """Return the field names under each heading: the `group` of the class that declares a field first."""
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


def settings_text(cls: type, values: Mapping[str, Any]) -> str:
    """Return settings under headings: value, what is allowed, default and description; * marks those that were changed."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    texts = describe_fields(cls)
    defaults = defaults_of(cls)
    lines: list[str] = []
    for heading, names in group_headings(cls).items():
        lines += ["", heading]
        for name in names:
            if not fields[name].metadata.get("listed"):
                lines += _setting_lines(cls, fields[name], name, values[name], defaults[name])
    for name, field in fields.items():
        if field.metadata.get("listed"):
            inner = field.metadata["group"]
            lines += ["", f"{name}.NAME=VALUE", *_wrap(texts.get(name, ""), "      ")]
            known = group_fields(field)
            order = [each for part in group_headings(inner).values() for each in part]  # that of a command of its own
            for each in (known[own] for own in order if own in known):
                typed = shortest_name(cls, f"{name}.{each.name}")
                default = defaults[name][each.name]
                lines += _setting_lines(inner, each, typed, values[name].get(each.name, default), default)
    return "\n".join(lines[1:])


def _setting_lines(cls: type, field: dataclasses.Field[Any], name: str, value: Any, default: Any) -> list[str]:
    required = field.default is MISSING and field.default_factory is MISSING
    if "group" in field.metadata:  # its settings are not listed: those that were changed are enough
        value = {each: value[each] for each in value if value[each] != default.get(each)}
        default = {}
    is_changed = not required and value != default
    is_missing = required and value is None
    changed = f"; default {_format_value(default)}" if is_changed else ""
    remark = "; required" if is_missing else changed
    allowed = _allowed_values(field_types(cls)[field.name], field.metadata.get("choices"))
    line = f"{name}={'...' if is_missing else _format_value(value)}  ({allowed}{remark})"
    mark = "* " if is_changed else "  "
    head = textwrap.wrap(line, WIDTH, break_on_hyphens=False, initial_indent=mark, subsequent_indent=" " * 10)
    return [*head, *_wrap(describe_fields(cls).get(field.name, ""), "      ")]


def _wrap(text: str, indent: str) -> list[str]:
    text = localize_commands(text)  # before a line break comes into a command
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
    names = list(choices or ())
    if not names:  # nothing is registered yet, or any value is allowed
        return describe_type(kind)
    inner = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    count = "one of " if len(names) > 1 else ""
    if any(get_origin(each) is tuple for each in inner):
        count = "some of "
    return f"{count}{', '.join(names)}{' or None' if type(None) in inner else ''}"


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
