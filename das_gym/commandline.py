"""Command lines: sub-commands, `with name=value`, what a mistyped word was meant to be, and modules of a person's own."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from das_gym.completion import SHELLS, script, setting_names
from das_gym.config import build, defaults_of, near_miss, settings_text
from das_gym.interrupts import exit_code, finish, raise_interrupts, stop_message
from das_gym.progress import waiting
from das_gym.runs import MISTAKES
from das_gym.streams import ready, shown, unread

Config = TypeVar("Config")
HELP = ("-h", "--help", "help")
SCRIPTS = ("das-agents", "das-adapt")
_used: list[str] = []
_words: list[str] = []  # of the running command, the program's name first


@dataclass(frozen=True, kw_only=True)
class CommandSettings:
    """What every command takes that is no experiment; `parse` imports the modules.

    Attributes:
        use: Python modules to import first, for the models, tasks and agents that they register. A text lists several,
            separated by commas.
    """

    group: ClassVar[str] = "Run"

    use: str | tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        target: "module:name" of a function that takes the words behind the sub-command and returns its exit code or
            None, or of a `das_gym.experiment.RunsExperiment`; it is imported when the command runs. Or what makes
            such an experiment.
        words: What may follow, as the help shows it.
        about: What it does.
        settings: "module:class" of the settings that stand behind `with`, where the target is a function; an experiment
            knows its own.
    """

    target: str | Callable[[], Any]
    words: str
    about: str
    settings: str | None = None

    def load(self) -> Any:
        """The function or experiment, ready to run."""
        with waiting("loading"):
            return pkgutil.resolve_name(self.target) if isinstance(self.target, str) else self.target()

    def known(self) -> list[str]:
        """What may stand behind `with`: named configs, and settings as `seed=`."""
        target = self.load()
        cls = getattr(target, "settings", None) or (self.settings and pkgutil.resolve_name(self.settings))
        return [*getattr(target, "named_configs", ()), *(setting_names(cls) if cls else ())]


@dataclass(frozen=True)
class Program:
    """`python -m <name>` and its sub-commands.

    Attributes:
        name: `agents` or `adapt`.
        commands: By the word that names them.
        main: The one that takes `with ...` behind the program's name; an experiment.
        alone: Whether the program's name alone runs `main`; else it shows the help.
        examples: What people type most: words behind the program's name, and what they do.
    """

    name: str
    commands: Mapping[str, Command]
    main: str
    alone: bool = False
    examples: tuple[tuple[str, str], ...] = ()

    def run(self, arguments: Sequence[str]) -> int:
        """Run the command that the words behind the program's name ask for; the exit code."""
        ready()
        _words[:] = [self.name, *arguments]
        try:
            words = [_at_home(word) for word in arguments]
            find_typed_modules(words)
            code = self._run(words)
            sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            print(stop_message(interrupt), file=sys.stderr)
            return exit_code(interrupt)
        except BrokenPipeError:
            return unread()
        finally:
            finish()
            _words.clear()
        return code

    def _run(self, arguments: Sequence[str]) -> int:
        word, rest = (arguments[0], list(arguments[1:])) if arguments else ("", [])
        if word in HELP or (not arguments and not self.alone):
            print(self.help(), end="")
            return 0
        if word == "completion":
            return self._complete(rest)
        if word in self.commands:
            return self._start(word, rest)
        experiment = self.commands[self.main].load()
        experiment.siblings = tuple(self.commands)
        raise_interrupts()
        experiment.run_commandline([self.name, *arguments])
        return 0

    def _start(self, name: str, words: list[str]) -> int:
        command = self.commands[name]
        target = command.load()
        raise_interrupts()
        if hasattr(target, "run_commandline"):
            target.run_commandline([self.name, *words])
            return 0
        names = setting_names(pkgutil.resolve_name(command.settings)) if command.settings else ()
        wrong = flag_mistake(words, f"{self.name} {name}", [each.removesuffix("=") for each in names])
        if wrong is not None:
            print(f"error: {wrong}", file=sys.stderr)
            return 2
        try:
            return target(words) or 0
        except BrokenPipeError:
            raise
        except MISTAKES as error:
            print(f"error: {shown(as_typed(str(error)))}", file=sys.stderr)
            return 1

    def _complete(self, words: list[str]) -> int:
        """Print the script that completes words in a shell; the exit code."""
        if words and words[0] not in SHELLS:
            print(f"error: no completion for {words[0]!r}; choose one of {', '.join(SHELLS)}", file=sys.stderr)
            return 1
        print(script(self.name, self.main, {name: command.known() for name, command in self.commands.items()}), end="")
        return 0

    def help(self) -> str:
        """All sub-commands and the examples, in 80 columns."""
        start, most = typed(self.name), 29
        lines = [f"{start} COMMAND", ""]
        for name, each in self.commands.items():
            words = f"  {name} {each.words}".rstrip()
            lines += [words] if len(words) > most else []
            first = "" if len(words) > most else words
            told = textwrap.wrap(each.about, 80 - most - 2)
            lines += [f"{first if not row else '':<{most}}  {line}" for row, line in enumerate(told)]
        if self.examples:
            lines += ["", "Examples:"]
        for words, about in self.examples:
            lines += [f"  {start} {words}".rstrip(), f"      {about}"]
        without = f"{start} {'[with ...]' if self.alone else 'with ...'}"
        lines += [
            "",
            f"Where no command is named, `{self.main}` is meant: {without}",
            "`with` takes name=value and named configs. `COMMAND --help` shows what a",
            "command does, its settings and its named configs, `COMMAND print_config` the",
            "settings as they would be. `use=my_module` imports your module first. In bash",
            f'and zsh, words are completed after `eval "$({start} completion)"`.',
        ]
        return "\n".join(lines) + "\n"


def _at_home(word: str) -> str:
    """A word whose value begins with the sign of the home folder, which bash leaves there: `runs_dir=~/runs`."""
    name, sign, value = word.partition("=")
    return name + sign + os.path.expanduser(value)  # noqa: PTH111  (which fails where nobody has a home)


def find_typed_modules(words: Iterable[str]) -> None:
    """Let `agent=mine:Agent` find mine.py in the working folder, which the path of a console script lacks.

    The folder is added only if a typed word names a module in it: what a record names is not looked up there.
    """
    for word in words:
        for module in re.findall(r"(?<![\w.:/])([A-Za-z_]\w*)(?:\.\w+)*:[A-Za-z_]\w*", word):
            if Path(f"{module}.py").is_file() or Path(module).is_dir():
                add_working_folder()


def add_working_folder() -> None:
    """Let imports find modules of the working folder first, as `python -m` does."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))


def is_ours(program: str) -> bool:
    """Whether `typed` gives a command of das_gym; a run folder may name any module."""
    return f"das-{program.partition(' ')[0]}" in SCRIPTS


def typed(program: str, *words: str, modules: Iterable[str] = ()) -> str:
    """A command as a person types it here: `python -m agents with resume=3 use=my_module`.

    Args:
        program: `agents`, `adapt`, with a sub-command where there is one: "agents table".
        words: Settings, quoted where a shell needs that; none leaves `with` out. Modules that came in by `use=` are added.
        modules: More that have to come in so.
    """
    name, *command = map(shlex.quote, program.split())  # a record may name it
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if Path(sys.argv[0]).stem in SCRIPTS:
        start = f"das-{name}"
    else:
        start = f"python -m {'das_gym.' if spec is not None and spec.name.startswith('das_gym.') else ''}{name}"
    given = [word for word in words if word]
    if given and (needed := dict.fromkeys((*_used, *modules))):
        given.append(shlex.quote(f"use={','.join(needed)}"))
    return shown(" ".join([start, *command, *(["with", *given] if given else [])]))


def repeat_command(settings: Mapping[str, Any]) -> str:
    """Return the running command with more settings, quoted for a shell; empty where Python runs no command of ours."""
    if not _words:
        return ""
    program, *words = _words
    given = {name: str(value) for name, value in settings.items()}
    if "use" in given:
        imported = [word.partition("=")[2] for word in words if word.startswith("use=")]
        words = [word for word in words if not word.startswith("use=")]
        given["use"] = ",".join([*imported, given["use"]])
    words += [] if "with" in words else ["with"]
    return " ".join([typed(program), *map(shlex.quote, [*words, *(f"{name}={value}" for name, value in given.items())])])


def setting_words(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Settings that are not the default as they are typed behind `with`, quoted where a shell needs that."""
    other = {name: value for name, value in settings.items() if name not in defaults or defaults[name] != value}
    return [shlex.quote(f"{name}={value}") for name, value in other.items()]


def use(modules: Iterable[str] | str | None) -> tuple[str, ...]:
    """Import modules of a person's own, so that their `register_model`, `register_task`, ... take effect.

    They are looked for in the working folder, too.

    Args:
        modules: Their names; a text holds several behind commas.

    Returns:
        The names.

    Raises:
        ValueError: a module that cannot be imported, or whose registrations are refused.
    """
    names = tuple(modules.split(",") if isinstance(modules, str) else modules or ())
    if names:
        add_working_folder()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ValueError(
                f"use={name} cannot be imported ({type(error).__name__}: {error}); name a module of the working folder or "
                "an installed one, without .py"
            ) from error
        if name not in _used:
            _used.append(name)
    return names


def used() -> tuple[str, ...]:
    """Modules that `use` brought in."""
    return tuple(_used)


def parse(cls: type[Config], words: Sequence[str], command: str) -> Config:
    """A `cls` from `with name=value ...`.

    Args:
        cls: A dataclass; of a `CommandSettings`, modules of a person's own are imported before anything is checked.
        words: What stands behind the command.
        command: The command, as in `typed`.

    Raises:
        ValueError: words that are no settings; the message says what was meant.
        TypeError: a value of the wrong type.
    """
    given = list(words)
    if given and given.pop(0) != "with":
        if "=" in words[0]:
            raise ValueError(f"settings stand behind `with`; did you mean `{typed(command, *words)}`?")
        raise ValueError(
            f"{words[0]!r} is no setting: give `{typed(command, 'name=value')}`; `{typed(command)} --help` lists them"
        )
    values: dict[str, Any] = {}
    for word in given:
        name, sign, value = word.partition("=")
        if not sign:
            example = typed(command, f"{word.lstrip('-')}=...")
            raise ValueError(f"{word!r} is no setting; give name=value, as in `{example}`")
        try:
            values[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[name] = value
    if issubclass(cls, CommandSettings) and "use" in values:
        use(build(CommandSettings, {"use": values["use"]}).use)
    return build(cls, values)


def parse_or_help(cls: type[Config], words: Sequence[str], command: str) -> Config | None:
    """As `parse`; print and return None for `--help` (what the command does, its settings) and `print_config` (settings)."""
    if words and words[0] in HELP:
        print(help_text(cls, sys.modules[cls.__module__].__doc__))
        return None
    if list(words) == ["print_config"]:
        print(settings_text(cls, defaults_of(cls)))
        return None
    return parse(cls, words, command)


def help_text(cls: type, about: str | None) -> str:
    """Return the help of a command: what it does and its settings with their defaults, in 80 columns.

    Args:
        cls: The dataclass of its settings.
        about: The docstring of its module.
    """
    return as_typed(f"{fit_docstring(inspect.cleandoc(about or ''))}\n\n{settings_text(cls, defaults_of(cls))}")


def as_typed(text: str) -> str:
    """Return a text with its commands as they are typed here: `das-agents list` for `python -m agents list`."""
    return re.sub(r"python -m (agents|adapt)\b", lambda match: typed(match[1]), text)


def fit_docstring(text: str) -> str:
    """Return a docstring in 80 columns: paragraphs are filled again, comments of commands get lines of their own."""
    lines: list[str] = []
    for block in text.split("\n\n"):
        if not block.lstrip().startswith(("python ", "accelerate ")):
            lines += ["", textwrap.fill(" ".join(block.split()), 80, break_on_hyphens=False)]
            continue
        lines.append("")
        for line in block.splitlines():
            start, _, comment = line.strip().partition("  ")
            if start.startswith(("python ", "accelerate ")):
                lines.append(f"  {start}")
            comment = comment.strip() if start.startswith(("python ", "accelerate ")) else line.strip()
            lines += textwrap.wrap(comment, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines[1:])


def flag_mistake(words: Sequence[str], command: str, settings: Iterable[str]) -> str | None:
    """Return what is wrong with settings typed as `--seed 3`, `--seed=3` or `seed = 3`; None if there are none.

    Args:
        words: What stands behind the command.
        command: The command, as in `typed`.
        settings: Names of its settings.
    """
    known = set(settings)
    for place, word in enumerate(words):
        flag, sign, value = word.partition("=")
        if not flag and sign and place:  # `seed = 3`, `seed =3`
            parts = words[place - 1], word, *(words[place + 1 : place + 2] if word == "=" else ())
            rest = words[place + len(parts) - 1 :]
            other = [each for each in (*words[: place - 1], "".join(parts), *rest) if each != "with"]
            return f"no spaces around `=`: got {' '.join(parts)}. Did you mean `{typed(command, *other)}`?"
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in known:
            continue
        after = words[place + 1] if not sign and place + 1 < len(words) else "..."
        rest = words[place + 1 if sign else place + 2 :]
        other = [each for each in (*words[:place], f"{name}={value if sign else after}", *rest) if each != "with"]
        fixed = typed(command, *other)
        return f"settings are not flags: got {word}, expected `{name}=VALUE` behind `with`. Did you mean `{fixed}`?"
    return None


def meant(words: Sequence[str], command: str, commands: Iterable[str], named_configs: Iterable[str]) -> str | None:
    """What is wrong with the words behind an experiment's name, and what was meant; None where they can be read.

    Args:
        words: The words.
        command: The experiment's command, as in `typed`.
        commands: Words that may stand first, beside `with` and options.
        named_configs: Words that may stand behind `with`.
    """
    commands, named_configs = list(commands), list(named_configs)
    word = words[0] if words else "with"
    if word == "with":
        if len(words) == 1:
            return f"nothing stands behind `with`: `{typed(command, 'name=value')} ...`"
        late = next((each for each in words if each in commands and each not in named_configs), None)
        if late is None:
            return None
        others = [each for each in words[1:] if each != late]
        return f"{late!r} stands before `with`; did you mean `{typed(f'{command} {late}', *others)}`?"
    if word.startswith("-") or word in HELP:
        return None
    if word in commands:
        return meant(words[1:], f"{command} {word}", (), named_configs)
    if "=" in word or word in named_configs:
        return f"settings stand behind `with`; did you mean `{typed(command, *words)}`?"
    near = near_miss(word, [*commands, "with"])
    if near is not None:
        return f"unknown sub-command {word!r}; did you mean `{' '.join([typed(command), near, *words[1:]])}`?"
    near = near_miss(word, named_configs)
    if near is not None:
        return f"unknown word {word!r}; did you mean `{typed(command, near, *words[1:])}`?"
    return f"unknown sub-command {word!r}; known: {', '.join([*commands, 'with'])}; `{typed(command)} --help` says more"
