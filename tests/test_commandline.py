from __future__ import annotations

import dataclasses
import json
import os
import pkgutil
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from das_gym.adapt import commands as adapt_commands
from das_gym.adapt.commands import main as adapt
from das_gym.agents import commands as agents_commands
from das_gym.agents.commands import main as agents

from das_gym.commandline import Command, Program, flag_mistake, format_command, parse
from das_gym.config import described
from das_gym.plugins import import_plugins

REPOSITORY = Path(__file__).parents[1]
MODULE = """
import dataclasses
import das_gym
from das_gym.registration import MODELS

das_gym.register_model(dataclasses.replace(MODELS["METER"], name="Mine"))
"""


@dataclass(frozen=True)
class Numbers:
    one: int = 1
    two: float | None = None


def command(folder, *words):
    """Runs `python -m ...` in a folder; returns its exit code and all that it printed."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_settings_behind_with():
    assert parse(Numbers, [], "adapt costs") == Numbers()
    assert parse(Numbers, ["with", "one=3", "two=0.5"], "adapt costs") == Numbers(3, 0.5)
    with pytest.raises(TypeError, match=r"one='x' .str. is not allowed; give a whole number"):
        parse(Numbers, ["with", "one=x"], "adapt costs")
    with pytest.raises(ValueError, match=r"did you mean `python -m adapt costs with one=3`\?"):
        parse(Numbers, ["one=3"], "adapt costs")
    with pytest.raises(
        ValueError, match=r"'3' is no setting: give `python -m adapt costs with name=value`; .* --help` lists"
    ):
        parse(Numbers, ["3"], "adapt costs")


def test_a_command_as_it_is_typed(monkeypatch):
    assert format_command("agents table") == "python -m agents table"
    assert format_command("agents", "resume=3", "") == "python -m agents with resume=3"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/das-agents"])
    assert format_command("agents table", "resume=3") == "das-agents table with resume=3"
    assert format_command("adapt") == "das-adapt"


def test_a_module_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fails_here.py").write_text("1 / 0")
    with pytest.raises(ValueError, match=r"use=fails_here cannot be imported \(ZeroDivisionError: division by zero\)"):
        import_plugins("fails_here")
    assert import_plugins(None) == import_plugins(()) == ()


def test_a_program_without_words_shows_its_help_and_returns_exit_codes(capsys):
    commands = {"parse": Command("test_commandline_target:main", "[with ...]", "as told")}
    commands["longer"] = Command("test_commandline_target:main", "with something=... else=...", "told below, " * 8)
    program = Program("agents", commands, main="parse", examples=(("parse with x=3", "three"),))
    assert program.run([]) == program.run(["--help"]) == program.run(["help", "parse"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  parse [with ...]             as told" in lines
    assert lines[lines.index("Examples:") + 1 :][:2] == ["  python -m agents parse with x=3", "      three"]
    assert max(map(len, lines)) <= 80


def test_the_home_folder_by_its_sign(monkeypatch: pytest.MonkeyPatch):
    """bash leaves it in the middle of a word; folders of that name would come to lie in the working one."""
    monkeypatch.setenv("HOME", "/home/me")
    seen: list[str] = []
    program = Program("agents", {"see": Command(lambda: seen.extend, "", "")}, main="see")
    assert program.run(["see", "with", "runs_dir=~/runs", "out=~", "seed=3", "task=a~b"]) == 0
    assert seen == ["with", "runs_dir=/home/me/runs", "out=/home/me", "seed=3", "task=a~b"]


@pytest.mark.parametrize("program", [agents_commands.PROGRAM, adapt_commands.PROGRAM])
def test_the_help_fits_80_columns_and_its_examples_name_commands(program):
    assert max(map(len, program.help().splitlines())) <= 80
    assert {words.split()[0] for words, _ in program.examples if words} <= {"with", *program.commands}


@pytest.mark.parametrize(
    ("program", "name"), [(p, name) for p in (agents_commands.PROGRAM, adapt_commands.PROGRAM) for name in p.commands]
)
def test_the_help_of_a_command_says_what_it_does(program, name, capsys):
    command = program.commands[name]
    assert program.run([name, "--help"]) == 0
    target, settings = command.load(), command.settings
    if hasattr(target, "run_commandline"):
        target = target.commands[target.default_command]
    module = sys.modules[settings.partition(":")[0] if settings else target.__module__]
    printed = capsys.readouterr().out
    assert module.__doc__.split()[:4] == printed.split()[:4]
    assert "Attributes" not in printed
    wide = [line for line in printed.splitlines() if len(line) > 80]
    assert all(line.startswith("  python -m ") for line in wide)  # commands are there to be copied


def settings_classes():
    """Command to the dataclass of its settings, of both programs."""
    for program in (agents_commands.PROGRAM, adapt_commands.PROGRAM):
        for name, command in program.commands.items():
            target = command.load()
            cls = getattr(target, "settings", None) or (command.settings and pkgutil.resolve_name(command.settings))
            if cls:
                yield f"{program.name} {name}", cls
            if name == "shrink":
                yield "adapt shrink compare", target.compare().settings


def test_every_setting_is_described_by_itself():
    for command, cls in settings_classes():
        texts = described(cls)
        for field in dataclasses.fields(cls):
            text = texts[field.name]
            assert text[0].isupper() or text[0] == "`", (command, field.name, text)
            assert text.endswith((".", "...")), (command, field.name, text)
            assert not re.search(r"^Of |likewise|the same of|the next \w+ are|here and below", text, re.IGNORECASE), text


def test_a_console_script_finds_a_typed_module_of_the_working_folder(tmp_path, monkeypatch):
    """And no other: what records name is not looked up there."""
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each not in ("", str(Path.cwd()))])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "typed_here.py").write_text("class Agent: pass")
    seen: list[str] = []
    program = Program("agents", {"see": Command(lambda: seen.extend, "", "")}, main="see")
    assert program.run(["see", "with", "agent=elsewhere:Agent", "path=a/typed_here:x", "out=x"]) == 0
    assert str(tmp_path) not in sys.path
    assert program.run(["see", "with", 'agents=["bayes","typed_here:Agent"]']) == 0
    assert sys.path[0] == str(tmp_path)


def test_flag_mistake_suggests_name_and_value():
    def told(*words):
        return flag_mistake(words, "agents", ["seed", "data_root"])

    assert "`python -m agents with bayes seed=3 skip_num=4`" in told("with", "bayes", "--seed", "3", "skip_num=4")
    assert "`python -m agents with data_root=x`" in told("--data-root=x")
    assert "got seed = 3" in told("with", "seed", "=", "3", "bayes")
    assert "`python -m agents with seed=3 bayes`" in told("with", "seed", "=3", "bayes")
    assert told("with", "seed=3", "--unobserved", "--name=x") is None


def test_function_commands_refuse_flags(capsys):
    assert agents_commands.PROGRAM.run(["policy", "--out", "x"]) == 2
    assert "`python -m agents policy with out=x`" in capsys.readouterr().err


TAKING_SETTINGS = [
    (program, name)
    for program in (agents_commands.PROGRAM, adapt_commands.PROGRAM)
    for name, each in program.commands.items()
    if each.settings is not None
]


@pytest.mark.parametrize(("program", "name"), TAKING_SETTINGS, ids=[f"{p.name} {name}" for p, name in TAKING_SETTINGS])
def test_every_command_imports_modules_of_ones_own_first(program, name, capsys):
    """Before anything else is looked at, such as an agent's name."""
    assert program.run([name, "with", "use=no_such_module", "agents=[1]"]) == 1
    assert "error: use=no_such_module cannot be imported (ModuleNotFoundError" in capsys.readouterr().err
    assert program.run([name, "--help"]) == 0
    assert "\nRun\n  use=[]  (a text or a list, each a text)\n      Python modules to import" in capsys.readouterr().out
    assert program.run([name, "print_config"]) == 0
    assert "\nRun\n  use=[]" in f"\n{capsys.readouterr().out}"
    assert "use=" in program.commands[name].known()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["agents"], 0, "  search [with ...]"),
        (["adapt", "--help"], 0, "  costs [with ...]"),
        (["agents", "meter_vqa", "bandit"], 2, "did you mean `python -m agents with meter_vqa bandit`?"),
        (["adapt", "supernt"], 2, "did you mean `python -m adapt supernet`?"),
        (["adapt", "with", "model=meter"], 1, "unknown model 'meter'; did you mean 'METER'?"),
        (["adapt", "with", "search_run=99"], 1, "no run 99 in"),
        (["adapt", "costs", "with", "answers=-1"], 1, "error: answers=-1 is not allowed"),
    ],
)
def test_what_a_person_types_first(tmp_path, monkeypatch, capsys, words, code, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        {"agents": agents, "adapt": adapt}[words[0]](words)
    printed = "".join(capsys.readouterr())
    assert end.value.code == code, printed
    assert says in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_mistake_from_a_shell(tmp_path):
    code, printed = command(tmp_path, "adapt", "with", "search_run=99")
    assert code == 1
    assert "no run 99 in" in printed
    assert "Traceback" not in printed


@pytest.mark.slow
def test_modules_of_ones_own_are_used_and_remembered(tmp_path, small_kwargs):
    (tmp_path / "my_module.py").write_text(MODULE)
    words = ["random", "evaluations=3", "reward_examples=8", *(f"{name}={value}" for name, value in small_kwargs.items())]
    code, printed = command(tmp_path, "agents", "search", "with", "use=my_module", "mine_vqa", *words)
    assert code == 0, printed
    assert "Next: python -m adapt with search_run=1 use=my_module\n" in printed
    assert json.loads((tmp_path / "runs/1/search.json").read_text())["use"] == ["my_module"]
    code, printed = command(tmp_path, "agents", "validate", "runs/1")
    assert code == 1
    assert "python -m agents validate runs/1 with use=my_module" in printed
    code, printed = command(tmp_path, "agents", "validate", "runs/1", "with", "use=my_module")
    assert code == 0, printed
    code, printed = command(tmp_path, "adapt", "print_config", "with", "use=my_module", "mine_vqa")
    assert code == 0, printed
    code, printed = command(tmp_path, "agents", "list", "with", "use=my_module")
    assert code == 0, printed
    assert "DAS-Mine-VQA-v0" in printed
