"""Run folders and records that name code, uploads and places to write: nothing happens unless the user confirms it."""

import dataclasses
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from das_gym.adapt.commands import PROGRAM as ADAPT
from das_gym.adapt.subnets import load_subnet
from das_gym.agents import SearchConfig, search
from das_gym.agents.commands import PROGRAM as AGENTS
from das_gym.agents.sb3.train import train_sb3

from das_gym.commands.settings import settings_dict
from das_gym.files import write_json
from das_gym.problem.adaptation import Adaptation
from das_gym.registration import ASSETS
from tests.evil import Evil

PROGRAMS = {"agents": AGENTS, "adapt": ADAPT}
RESUMABLE = (
    *(("agents", name) for name in ("search", "pareto", "table")),
    *(("adapt", name) for name in ("run", "das", "compare", "shrink", "supernet")),
)
REMOTE_CODE = {"trust_remote_code": True}
MASK = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Iterator[Path]:
    """A file that exists once the module `evilmod`, or the code of the model folder `runs/1/model`, has run."""
    path = tmp_path / "EXECUTED"
    code = f"open({str(path)!r}, 'w').close()\nraise ValueError('which ends a command that was confirmed')\n"
    for name in ("evilmod.py", "evil-mod.py"):
        (tmp_path / name).write_text(code)
    model = tmp_path / "runs/1/model"
    model.mkdir(parents=True)
    (model / "evil_code.py").write_text(code)
    write_json(model / "config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil_code.Evil"}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield path
    for name in ("evilmod", "evil-mod"):
        sys.modules.pop(name, None)


def call(program: str, *words: str) -> int:
    """The exit code of a command, in this process."""
    try:
        return PROGRAMS[program].run(words)
    except SystemExit as end:
        return int(end.code or 0)


def confirming(printed: str) -> list[str]:
    """The words that a message asks for."""
    return shlex.split(printed.partition("Give it again, adding: ")[2].splitlines()[0])


def stopped_run(program: str, command: str, **settings: Any) -> None:
    """Write `runs/1`, a stopped run of a command with these settings."""
    target = resolve_name(PROGRAMS[program].commands[command].target)
    write_json(Path("runs/1/config.json"), {**settings_dict(target.settings_class()), **settings})
    run = {"experiment": {"name": target.name}, "command": target.name, "status": "FAILED"}
    write_json(Path("runs/1/run.json"), run)


def record_of_search(**changes: Any) -> dict[str, Any]:
    """A search record of METER on the bundled data; changes of its `env_kwargs` are added to them."""
    scores = {"loss": 1.0, "metric": 0.5, "macs": 80, "macs_saved": 0.2}
    names = [f"{stream}.{n}" for stream in ("text", "image") for n in range(6)]
    answer = {"mask": MASK, "reward": 0.5, **scores, "skipped_layers": names[:2]}
    about = {"env_id": "DAS-METER-VQA-v0", "agent": "random", "agent_kwargs": {}, "seed": 0, "masks_per_turn": 1}
    rest = {"macs_full": 100, "evaluations": 0, "versions": {}}
    known = {"format": 1, **about, **answer, **rest, "n_skipped": 2, "layer_names": names, "plugins": []}
    env_kwargs = {"skip_num": 2, **changes.pop("env_kwargs", {})}
    return {**known, "env_kwargs": env_kwargs, **changes}


def finished_run(**changes: Any) -> None:
    """Write the records of a search, a front and a fine-tuned subnet into `runs/1`; `settings` change model and data."""
    folder, settings = Path("runs/1"), changes.pop("settings", {})
    write_json(folder / "run.json", {"experiment": {"name": "agents"}, "status": "COMPLETED"})
    write_json(folder / "search.json", record_of_search(**changes, env_kwargs=settings))
    point = {"mask": MASK, "skipped_layers": [], "saved": 0.2, "loss": 1.0, "metric": 0.5}
    write_json(
        folder / "front.json", {**record_of_search(**changes, env_kwargs=settings), "cost": "MACs", "points": [point]}
    )
    vlm = {"model": "VLM", "task": "answering"} if settings else {"model": "METER", "task": "vqa"}
    problem = {**vlm, **settings}
    write_json(folder / "adapt.json", {"format": "das_gym adapt 1", "problem": problem, "model_settings": {}, **changes})
    supernet = Adaptation.load(ASSETS / "meter_mini" / "vqa_supernet.safetensors")
    dataclasses.replace(supernet, mask=tuple(MASK)).save(folder / "adapter.safetensors")


@pytest.mark.parametrize(("program", "command"), RESUMABLE)
def test_resume_imports_no_recorded_module(canary, capsys, program, command):
    stopped_run(program, command, plugins=["evilmod"])
    words = () if command in ("search", "run") else (command,)
    assert call(program, *words, "with", "resume=1") == 1
    told = capsys.readouterr().err
    assert not canary.exists()
    assert "`plugins=['evilmod']`" in told
    call(program, *words, "with", "resume=1", *confirming(told))
    assert canary.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"env_id": "evilmod:X-v0"},
        {"agent": "evilmod:Agent"},
        {"agent": "evilmod:"},
        {"agents": ["random", "evilmod:Agent"]},
        {"search": {"agent": "evilmod:Agent"}},
        {"reward": "evilmod:attribute"},
        {"env_kwargs": {"statistics": ["evilmod:attribute"]}},
        {"env_kwargs": {"env": "gymnasium.vector:AsyncEnv"}},
        {"env_id": "gymnasium.utils.play:X-v0"},
        {"env_kwargs": {"env": "subprocess:Popen", "args": "touch EXECUTED", "shell": True}},
        {"env_kwargs": {"trust_remote_code": True}},
        {"trust_remote_code": True},
        {"out": "/anywhere"},
        {"encoder_cache": "/anywhere"},
        {"agent_kwargs": {"tensorboard_log": "/anywhere"}},
        {"trackers": ["wandb"]},
        {"workers": "ray"},
    ],
    ids=str,
)
def test_resume_rejects_recorded_settings(canary, capsys, settings):
    stopped_run("agents", "search", **settings)
    before = sorted(Path().rglob("*"))
    assert call("agents", "with", "resume=1") == 1
    told = capsys.readouterr().err
    assert not canary.exists()
    assert [path for path in Path().rglob("*") if path not in before and path.name != ".lock"] == []
    assert f"`{next(iter(settings))}" in told
    assert confirming(told)


@pytest.mark.parametrize("value", ["x;touch EXECUTED", "$(touch EXECUTED)", "{'py/reduce': [{'py/function': 'os.mkdir'}]}"])
def test_words_that_confirm_are_quoted(canary, capsys, value):
    stopped_run("agents", "search", out=value)
    assert call("agents", "with", "resume=1") == 1
    assert confirming(capsys.readouterr().err) == [f"out={value}"]
    stopped_run("agents", "search", plugins=[value])
    assert call("agents", "with", "resume=1") == 1
    [plugins] = confirming(capsys.readouterr().err)  # other tests of this process may have imported some, too
    assert plugins.startswith("plugins=")
    assert plugins.endswith(value)


def test_report_escapes_its_commands(canary):
    del canary
    finished_run()
    Path("runs/1/front.json").unlink()
    write_json(Path("runs/1/config.json"), {"data_root": "a\x1b]0;b\x07", "agent": "</script><img src=x>"})
    assert call("adapt", "report", "runs/1") == 0
    page = Path("runs/1/report.html").read_text()
    assert "\x1b" not in page
    assert "<img src=x>" not in page


READERS = {
    "report": ("adapt", "report", "runs/1"),
    "search_run": ("adapt", "with", "search_run=1"),
    "front": ("adapt", "with", "search_run=1", "point=0"),
    "shrink search_run": ("adapt", "shrink", "with", "search_run=1"),
    "shrink front": ("adapt", "shrink", "with", "search_run=1", "point=0"),
    "evaluate": ("adapt", "evaluate", "with", "run=1"),
    "predict": ("adapt", "predict", "with", "run=1", "out=answers.json"),
    "export": ("adapt", "export", "with", "run=1", "out=exported"),
}
WITHOUT_FRONT = ("report",)
"""Commands that take a folder with a front for the run of `agents pareto` that it is."""


CODE = [(reader, "`plugins=['evilmod']`") for reader in READERS]
CODE += [(reader, "`trust_remote_code=True`") for reader in READERS if reader not in WITHOUT_FRONT]


@pytest.mark.parametrize(("reader", "setting"), CODE)
def test_record_runs_no_code(canary, capsys, reader, setting):
    if "plugins" in setting:
        finished_run(plugins=["evilmod"])
    else:
        model = {"checkpoint": str(Path("runs/1/model").absolute()), "trust_remote_code": True}
        finished_run(env_id="DAS-VLM-Answering-v0", settings=model)
    if reader in WITHOUT_FRONT:
        Path("runs/1/front.json").unlink()
    assert call(*READERS[reader]) == 1
    told = capsys.readouterr().err
    assert not canary.exists()
    assert setting in told
    words = READERS[reader]
    call(*words, *(() if "with" in words else ("with",)), *confirming(told))
    assert canary.exists()


def test_resuming_by_another_command_imports_nothing(canary):
    finished_run(plugins=["evilmod"], env_id="evilmod:X-v0", agent="evilmod:Agent")
    call("agents", "compare", "with", "resume=1")
    assert not canary.exists()


@pytest.mark.parametrize("changes", [{"plugins": ["evilmod"]}, {"settings": {"checkpoint": "runs/1/model", **REMOTE_CODE}}])
def test_load_subnet_executes_nothing(canary, changes):
    finished_run(**changes)
    with pytest.raises(ValueError, match=r"`plugins=\['evilmod'\]`|`trust_remote_code=True`"):
        load_subnet("runs/1")
    assert not canary.exists()
    confirmed: dict[str, Any] = {"plugins": "evilmod"} if "plugins" in changes else REMOTE_CODE
    with pytest.raises(ValueError, match="which ends a command that was confirmed"):
        load_subnet("runs/1", **confirmed)
    assert canary.exists()


@pytest.fixture
def hostile_agent(canary) -> dict[str, Any]:
    """The settings of a search by PPO in `runs/2`, whose `agent.zip` writes the canary when it is unpickled."""
    settings: dict[str, Any] = {"env_id": "DAS-METER-VQA-Tabular-v0", "evaluations": 24, "masks_per_turn": 2}
    settings |= {"agent": "ppo", "agent_kwargs": {"n_steps": 4}, "save_every": 1}
    trained = train_sb3(SearchConfig(**settings), "runs/2")
    trained.model.harm = Evil(canary)  # type: ignore[attr-defined]
    trained.model.save("runs/2/agent.zip")
    return settings


def test_search_does_not_unpickle_an_agent(canary, hostile_agent):
    assert search(SearchConfig(**hostile_agent), folder="runs/2").masks_asked == 24
    assert not canary.exists()
