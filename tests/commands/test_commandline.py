"""Programs, sub-commands, words behind `with`, and the settings of every command."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec

import pytest
from das_gym.adapt import run_commands
from das_gym.adapt.commands import PROGRAM as ADAPT
from das_gym.agents.commands import PROGRAM as AGENTS

from das_gym.commands.commandline import (
    Command,
    Program,
    UsageError,
    format_command,
    format_settings,
    parse,
    read_settings,
    settings_text,
)
from das_gym.commands.runs import PluginSettings
from tests.registered import as_before

MODULE = """
import dataclasses
import das_gym
from das_gym.registration import MODELS

das_gym.register_model(dataclasses.replace(MODELS["METER"], name="Mine"))
"""
COMMANDS = [(program, name) for program in (AGENTS, ADAPT) for name in program.commands]
SETTINGS = {
    f"{program.name} {name}": command.settings_class
    for program in (AGENTS, ADAPT)
    for name, command in program.commands.items()
}


@dataclass(frozen=True)
class Numbers(PluginSettings):
    """Settings of a test."""

    one: int = 1
    two: float | None = None
    paths: tuple[str, ...] = ()


seen: list[Numbers] = []


def record(settings: Numbers) -> None:
    seen.append(settings)


def program_of(function: str) -> Program:
    """Return a program with one function of this module."""
    command = Command(f"{__name__}:{function}", "", "", settings=f"{__name__}:Numbers", positional="paths")
    return Program("agents", {"see": command}, default_command="see")


@dataclass(frozen=True)
class Described(PluginSettings):
    """Settings of a test.

    Attributes:
        one: A description that is as long as a line is wide: `python -m agents list` prints names.
    """

    one: int = 1


def test_commands_in_descriptions_are_as_typed_here_across_line_breaks():
    text = " ".join(settings_text(Described, {"one": 1, "plugins": ()}).split())
    assert f"`{format_command('agents list')}` prints names" in text


def test_parse_builds_settings():
    assert parse(Numbers, [], "agents see") == Numbers()
    assert parse(Numbers, ["with", "one=3", "two=0.5"], "agents see") == Numbers(one=3, two=0.5)
    with pytest.raises(TypeError, match="one='x'"):
        parse(Numbers, ["with", "one=x"], "agents see")
    with pytest.raises(UsageError, match=r"did you mean `das-agents see with one=3`\?"):
        parse(Numbers, ["one=3"], "agents see")
    with pytest.raises(UsageError, match=r"'one' is not a setting; .*`das-agents see with one=\.\.\.`"):
        parse(Numbers, ["with", "one"], "agents see")


def test_read_settings_returns_dotted_names():
    words = ["a.b=1", "paper", "a.c=x", "a={'d': 2}", "e=[1,2]", "f=1e-3"]
    assert read_settings(words) == ({"a.b": 1, "a.c": "x", "a.d": 2, "e": [1, 2], "f": 1e-3}, ["paper"])
    values = {"a": {"b": 1, "c": "x y"}, "e": [1, 2], "f": {}}
    assert format_settings(values, {"a": {"b": 1}, "f": {}}) == ["'a.c=x y'", "'e=[1, 2]'"]


def test_settings_are_quoted_readably():
    assert format_settings({"methods": ["head", "das"], "name": "it's"}) == [
        '\'methods=["head", "das"]\'',
        "'name=it'\"'\"'s'",
    ]
    values = {"quotes": ["it's", 'a "b"'], "texts": ["a b", "c"], "settings": {"x": {"y": ["z"]}}}
    words = [word for quoted in format_settings(values) for word in shlex.split(quoted)]
    assert read_settings(words)[0] == {"quotes": values["quotes"], "texts": values["texts"], "settings.x.y": ["z"]}


def test_format_command(monkeypatch):
    assert format_command("agents table") == "das-agents table"
    assert format_command("agents", "resume=3", "") == "das-agents with resume=3"
    for package in ("agents", "das_gym.adapt"):
        monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec(f"{package}.__main__", None))
        start = f"python -m {package.replace('adapt', 'agents')}"
        assert format_command("agents table", "resume=3") == f"{start} table with resume=3"


def test_console_script_finds_an_agent_of_the_working_folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from das_gym.agents import Agent\nclass Mine(Agent):\n    def ask(self, n):\n        return self.space.masks[:n]\n"
    )
    # A console script has its own folder in front of the path, not the working folder.
    script = "import sys; sys.path[0] = '/'; from das_gym.agents.commands import main; main()"
    words = ["compare", "with", "agents=['mine:Mine']", "evaluations=3", "env_id=DAS-METER-VQA-Tabular-v0"]
    run = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "mine:Mine" in run.stdout


def test_program_expands_home_and_reads_words_before_with(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    seen.clear()
    assert program_of("record").run(["see", "a", "~", "with", "one=2"]) == 0
    assert program_of("record").run(["see", "with", "paths=['x']"]) == 0
    assert [each.paths for each in seen] == [("a", "/home/me"), ("x",)]


def test_setting_after_words_before_with_is_rejected(capsys):
    assert program_of("record").run(["see", "a", "one=2"]) != 0
    assert "one=2" in capsys.readouterr().err


@pytest.mark.parametrize("program", [AGENTS, ADAPT])
def test_program_help_fits_80_columns_and_its_examples_name_commands(program):
    assert max(map(len, program.help().splitlines())) <= 80
    assert {words.split()[0] for words, _ in program.examples if words} <= {"with", *program.commands}


def test_programs_have_at_most_18_commands_of_30_settings():
    assert len(COMMANDS) <= 18
    shared = {"plugins", "runs_dir", "resume", "estimate"}  # of every command that keeps runs
    numbers = {name: len({field.name for field in dataclasses.fields(cls)} - shared) for name, cls in SETTINGS.items()}
    assert {name: number for name, number in numbers.items() if number > 30} == {}


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_command_help_describes_the_command_and_every_setting(program, name, capsys):
    assert program.run([name, "--help"]) == 0
    printed = capsys.readouterr().out
    assert "Attributes" not in printed
    assert not re.search(r"\((one of|some of)? (or None|\))", printed)  # choices of which none is listed
    cls = SETTINGS[f"{program.name} {name}"]
    for field in dataclasses.fields(cls):
        assert re.search(rf"^  {field.name}[=.]", printed, re.MULTILINE) or f"{field.name}.NAME=VALUE" in printed
    assert program.run([name, "print_config"]) in (0, 1)  # 1 where a setting is required


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_command_imports_plugins_first(program, name, capsys):
    assert program.run([name, "with", "plugins=no_such_module", "agents=[1]"]) == 1
    assert "error: plugins=no_such_module cannot be imported (ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "words", "code", "says"),
    [
        (AGENTS, [], 0, "  search [with ...]"),
        (ADAPT, ["--help"], 0, "  predict with run=..."),
        (ADAPT, ["--version"], 0, "das-adapt 0."),
        (AGENTS, ["--version"], 0, "das-agents 0."),
        (AGENTS, ["meter_vqa", "bandit"], 2, "did you mean `das-agents with meter_vqa bandit`?"),
        (ADAPT, ["supernt"], 2, "did you mean 'supernet'?"),
        (AGENTS, ["with", "bayes", "--seed", "3"], 2, "name=value, without spaces and dashes: got --seed"),
        (AGENTS, ["with", "seed", "=", "3"], 2, "got ="),
        (ADAPT, ["evaluate", "1"], 2, "settings follow `with`: got 1 before it; `das-adapt evaluate --help` lists them"),
        (ADAPT, ["with", "model=meter"], 1, "unknown model 'meter'; did you mean 'METER'?"),
        (ADAPT, ["with", "save_every=3"], 1, "`save_every` is a setting of several groups; give `search.save_every` or"),
        (ADAPT, ["with", "stepps=3"], 1, "unknown setting 'stepps'; did you mean 'steps'?"),
        (ADAPT, ["with", "train.seed=3"], 1, "Did you mean `seed`?"),
        (AGENTS, ["with", "precison=x"], 1, "did you mean 'precision'?"),
        (AGENTS, ["runs"], 2, "unknown sub-command 'runs'"),
    ],
)
def test_program_reports_mistakes_in_a_paragraph(tmp_path, monkeypatch, capsys, program, words, code, says):
    monkeypatch.chdir(tmp_path)
    assert program.run(words) == code
    printed = "".join(capsys.readouterr())
    assert says in printed
    assert "Traceback" not in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_plugins_are_used_and_recorded(tmp_path, monkeypatch, capsys, small_kwargs):
    (tmp_path / "my_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    words = ["random", "evaluations=3", "reward_examples=8", *(f"{name}={value}" for name, value in small_kwargs.items())]
    with as_before():
        assert AGENTS.run(["search", "with", "plugins=my_module", "mine_vqa", *words]) == 0
    assert "Next: das-adapt with search_run=1 plugins=my_module\n" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/1/search.json").read_text())["plugins"] == ["my_module"]


def test_warnings_are_printed_without_a_line_of_source(tmp_path):
    (tmp_path / "loud.py").write_text("import warnings\nwarnings.warn('two \\x1b[2J are left out: python -m adapt')\n")
    words = [sys.executable, "-m", "das_gym.agents", "print_config", "with", "plugins=loud"]
    printed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert printed.stderr == "UserWarning: two \\x1b[2J are left out: python -m das_gym.adapt\n"


def test_named_configs_of_shrink_are_models_that_answer():
    configs = run_commands.shrink.named_configs()
    assert {"vlm_text", "vlm_choices"} <= configs.keys()
    assert not {"meter_vqa", "vilt_nlvr2"} & configs.keys()
