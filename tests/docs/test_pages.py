"""Blocks of README and docs are run, or only read where a comment gives the reason."""

import importlib.util
import re
from dataclasses import fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest
from das_gym.adapt import commands as adapt_commands
from das_gym.agents import commands as agents_commands
from das_gym.agents.ask_tell.base import AGENTS

from das_gym.commands.settings import group_fields, short_names
from das_gym.registration import METRICS
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, commands_of
from tests.registered import as_before

PROGRAMS = {"agents": agents_commands.PROGRAM, "adapt": adapt_commands.PROGRAM}
BLOCKS = {path: blocks_of(path.read_text(encoding="utf-8")) for path in PAGES}
RUN = [path for path, blocks in BLOCKS.items() if any(b.mark != "skip" and b.language in ("python", "bash") for b in blocks)]
LONG = {"tutorial.md": pytest.mark.long}


def fail(path: Path, block: Block, why: str) -> None:
    pytest.fail(f"{path.relative_to(ROOT)}:{block.line}: {why}")


@cache
def known(program: str, command: str) -> frozenset[str]:
    """Return what may stand behind a command's `with`; settings in groups as `train.steps=`."""
    found = PROGRAMS[program].commands[command]
    cls = found.settings_class
    named = () if found.settings else resolve_name(found.target).named_configs()
    groups = {each.name: group_fields(each) for each in fields(cls)}
    grouped = [f"{name}.{inner}=" for name, group in groups.items() for inner in group]
    return frozenset([*named, *(f"{name}=" for name in [*groups, *short_names(cls)]), *grouped])


def wrong_words(words: list[str]) -> str | None:
    """Return the error in a command that parsing finds, or None."""
    name, rest = words[0], [word for word in words[1:] if word != "..." and not word.startswith("-")]
    if len(words) > 1 and words[1] in ("-m", "-s", "-F"):  # with a value
        rest = rest[1:]
    if name not in PROGRAMS:
        return None if importlib.util.find_spec(name) else f"there is no {name}"
    if not rest or rest[0] in ("print_config", "COMMAND"):
        return None
    program = PROGRAMS[name]
    if rest[0] != "with" and rest[0] not in program.commands:
        return rest[0]
    command = rest.pop(0) if rest[0] in program.commands else program.default_command
    if "with" not in rest:
        return (
            None if not rest or "[" in program.commands[command].words or "." in program.commands[command].words else rest[0]
        )
    settings = rest[rest.index("with") + 1 :]
    may = known(name, command)
    for word in settings:
        setting, sign, _ = word.partition("=")
        own = any(other.startswith("plugins=") for other in settings)
        name_is_known = (
            f"{setting.partition('.')[0]}=" in may if sign else word in may or own or re.fullmatch(r"<\w+>", word)
        )
        group = {each for each in may if each.startswith(f"{setting.partition('.')[0]}.")} if "." in setting else set()
        if not name_is_known or (group and f"{'.'.join(setting.split('.')[:2])}=" not in group):
            return f"{name} {command} knows no {word!r}"
    return None


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_that_are_named_are_there(path):
    text = path.read_text(encoding="utf-8")
    inline = re.findall(r"`(python -m [^`]+)`", text)
    blocks = [command for block in BLOCKS[path] if block.language == "bash" for command in block.commands()]
    for words in [*blocks, *(command for line in inline for command in commands_of(re.sub(r"\s+", " ", line)))]:
        wrong = wrong_words(words)
        assert wrong is None, f"{path.name}: {' '.join(words)}: {wrong}"


def test_commands_of_the_wheel_check_are_there():
    text = (ROOT / ".ci" / "wheel").read_text(encoding="utf-8").replace(" > /dev/null", "")
    commands = commands_of(re.sub(r'"\$bin/das-(\w+)"', r"python -m \1", text))
    assert commands
    assert {" ".join(words): wrong for words in commands if (wrong := wrong_words(words)) is not None} == {}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_blocks_that_are_not_run_can_be_read(path):
    for block in BLOCKS[path]:
        if block.language == "python":
            compile(block.code, str(path), "exec")
            for line in re.findall(r"^from das_gym.* import .*$", block.code, re.MULTILINE):
                exec(line)
        elif block.language == "bash" and block.mark != "skip" and len(block.commands()) != len(block.lines()):
            fail(path, block, "holds lines that no test runs: give the reason in a comment, <!-- skip: why -->")
        elif block.language not in ("bash", "json", "text"):
            fail(path, block, f"{block.language!r} is nothing that is run or read")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*declarative_base")  # sacred 0.8.7 asks SQLAlchemy the old way
@pytest.mark.parametrize("path", [pytest.param(path, marks=LONG.get(path.name, ()), id=path.name) for path in RUN])
def test_blocks_run_and_print_what_the_page_shows(path, tmp_path, monkeypatch, capsys):
    """From top to bottom in one folder, blocks of Python in one namespace."""
    monkeypatch.chdir(tmp_path)
    names = {"__name__": path.stem}
    printed = ""
    is_whole = True
    with as_before(AGENTS, METRICS):
        for block in BLOCKS[path]:
            if block.mark == "skip":
                continue
            if block.language == "text":
                missing = not_printed(block.code, printed) if is_whole else None
                assert missing is None, f"{path.name}:{block.line} shows {missing!r}, printed was:\n{printed}"
                continue
            if block.language == "python":
                old, _, new = block.words.partition(" => ")
                code = block.code.replace(old, new) if old else block.code
                exec(compile(code, f"{path.name}:{block.line}", "exec"), names)
            elif block.language == "bash":
                for command in block.commands():
                    run(path, block, shortened(command, block.words))
            # pages name commands as typed in a clone
            printed = re.sub(r"\bdas-(agents|adapt)\b", r"python -m \1", "".join(capsys.readouterr()))
            is_whole = not block.words
            assert "Traceback" not in printed
            if block.language == "python" and is_whole:
                missing = not_printed("\n".join(block.results()), printed)
                assert missing is None, f"{path.name}:{block.line} shows {missing!r}, printed was:\n{printed}"


def not_printed(shown: str, printed: str) -> str | None:
    """The first line of what a page shows that the output lacks, in this order; None if it has them all.

    A line `...` stands for any lines; spaces and rules may differ, as they do with the width of a terminal.
    """
    left = iter([" ".join(line.split()) for line in printed.splitlines()])
    for line in shown.splitlines():
        words = " ".join(line.split())
        if words.strip("─") not in ("", "...") and not any(words == other for other in left):
            return line
    return None


@pytest.mark.parametrize(
    ("shown", "missing"),
    [
        ("a  1\n...\nc 3", None),
        ("c 3\na 1", "a 1"),
        ("a 1\nb 3", "b 3"),
        ("a", "a"),
    ],
)
def test_lines_that_were_not_printed_are_found(shown, missing):
    assert not_printed(shown, "a 1\nb   2\nc 3\n") == missing


def shortened(command: list[str], words: str) -> list[str]:
    """A command with those of the settings that it knows."""
    name, sub = command[0], command[1] if len(command) > 1 else ""
    may = known(name, sub if sub in PROGRAMS[name].commands else PROGRAMS[name].default_command)
    more = [word for word in words.split() if f"{re.split('[.=]', word)[0]}=" in may]
    return [*command, *([] if "with" in command or not more else ["with"]), *more]


def run(path: Path, block: Block, command: list[str]) -> None:
    """Run a command in this process."""
    try:
        code = PROGRAMS[command[0]].run(command[1:])
    except SystemExit as end:
        code = end.code
    if code not in (0, None):
        fail(path, block, f"{' '.join(command)} ended with {code}")
