"""Runs with Sacred's observers next to the folder, and the files they write."""

import importlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from das_gym.agents.run_commands import search

from das_gym.commands.commandline import UsageError
from das_gym.commands.recorded import RecordedCommand, Run, RunError
from das_gym.commands.runs import RunSettings
from das_gym.commands.trust import check_record


@dataclass(frozen=True)
class Settings(RunSettings):
    seed: int = 0
    number: Any = 2.0
    search: dict[str, Any] = field(default_factory=dict)
    agents: tuple[str, ...] = ()


def count(settings: Settings, run: Run) -> float:
    for step in range(3):
        run.log_scalar("some.loss", 1 / (step + 1), step)
    return settings.number


@pytest.fixture
def command() -> RecordedCommand[Settings]:
    return RecordedCommand("trial", Settings, count)


@pytest.mark.parametrize(("settings", "options"), [({"estimate": True}, {}), ({}, {"--unobserved": True})])
def test_a_run_that_keeps_nothing_on_purpose_has_no_warning(command, settings, options, tmp_path, capsys):
    command.run({"runs_dir": str(tmp_path), **settings}, options=options)
    assert "observers" not in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [ImportError("tables need pyarrow"), ValueError("wrong")])
def test_missing_library_ends_a_run_with_one_line(tmp_path, error):
    def fail(settings: Settings, run: Run) -> float:
        raise error

    with pytest.raises(RunError, match=f"^{error}$"):
        RecordedCommand("trial", Settings, fail).run({"runs_dir": str(tmp_path / "runs")})
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def mongodb(monkeypatch) -> Any:
    """A MongoDB server that lives in this process, and the client that everybody gets."""
    mongomock, pymongo = pytest.importorskip("mongomock"), pytest.importorskip("pymongo")
    importlib.import_module("mongomock.gridfs").enable_gridfs_integration()
    client = mongomock.MongoClient()
    monkeypatch.setattr(pymongo, "MongoClient", lambda *args, **kwargs: client)
    return client


def test_search_is_read_back_from_mongodb(mongodb, tmp_path):
    settings = {"env_id": "DAS-METER-VQA-Tabular-v0", "agent": "bandit", "evaluations": 9, "runs_dir": str(tmp_path)}
    search.run(settings, options={"--mongo_db": "place:1:das"})
    database, folder = mongodb["das"], tmp_path / "1"
    (kept,) = database["runs"].find()
    assert (kept["status"], kept["experiment"]["name"]) == ("COMPLETED", "agents")
    assert kept["config"] == json.loads((folder / "config.json").read_text()) | {"seed": kept["config"]["seed"]}
    assert kept["result"] == json.loads((folder / "search.json").read_text())["reward"]
    logged = json.loads((folder / "metrics.json").read_text())
    found = {metric["name"]: metric["values"] for metric in database["metrics"].find({"run_id": kept["_id"]})}
    assert found == {name: metric["values"] for name, metric in logged.items()}
    files = importlib.import_module("gridfs").GridFS(database)
    kept_files = {each["name"]: files.get(each["file_id"]).read() for each in kept["artifacts"]}
    assert {"search.json", "search.png"} <= kept_files.keys()
    assert all((folder / name).read_bytes() == content for name, content in kept_files.items())


def test_check_record_keeps_the_plugins_that_were_given(monkeypatch):
    monkeypatch.setattr("das_gym.commands.trust.imported_plugins", lambda: ("given",))
    with pytest.raises(ValueError, match=r"plugins=given,of_file$"):
        check_record("settings.json", {"plugins": "of_file"})


def test_unsupported_option_is_rejected_before_the_run(command, tmp_path):
    with pytest.raises(UsageError, match="cannot read '-i 77"):
        command.run_words(["-i", "77", "with", f"runs_dir={tmp_path / 'runs'}"])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("bad.json", "{bad", "is not valid JSON"),
        ("list.json", "[1]", "expected an object"),
        ("bad.yaml", "number: 1\n---\nnumber: 2", "is not valid YAML"),
        ("long.yaml", f"number: 0x{'9' * 5000}", "4300 digits"),
        ("alias.yaml", "a: &a [x, x]\nb: [*a, *a]", "line 2 has an alias"),  # nested ones expand without bound
    ],
)
def test_file_without_settings_is_named(command, tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(RunError) as error:
        command.run_words(["with", str(tmp_path / name), f"runs_dir={tmp_path / 'runs'}"])
    assert name in str(error.value)
    assert says in str(error.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["settings.json", "settings.yaml"])  # every JSON is YAML
def test_settings_file_builds_no_object(command, tmp_path, name):
    harm = {"py/reduce": [{"py/function": "os.mkdir"}, {"py/tuple": [f"{tmp_path}/MARK"]}]}
    (tmp_path / name).write_text(json.dumps({"number": [harm]}))
    with pytest.raises(RunError, match="py/reduce"):
        command.run({"runs_dir": str(tmp_path / "runs")}, named_configs=[str(tmp_path / name)])
    assert not (tmp_path / "MARK").exists()


@pytest.mark.parametrize(
    "settings",
    [{"plugins": ["harm_me"]}, {"search": {"agent": "harm_me:"}}, {"search.agent": "harm_me:"}, {"agents": ["harm_me:"]}],
)
def test_settings_file_chooses_no_module(command, tmp_path, settings):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(RunError, match=r"settings\.json has .*harm_me.* adding: plugins=harm_me"):
        command.run({"runs_dir": str(tmp_path)}, named_configs=[str(path)])


def test_settings_file_may_name_a_device(command, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"problem": {"device": "cuda:0"}}))
    with pytest.raises(RunError, match="unknown setting 'problem'"):  # of this command, and not an unknown module
        command.run({"runs_dir": str(tmp_path)}, named_configs=[str(path)])


def test_files_of_settings_and_words_are_taken_in_their_order(command, tmp_path):
    paths = [str(tmp_path / f"{n}.json") for n in (1, 2)]
    for n, path in enumerate(paths, 1):
        Path(path).write_text(json.dumps({"number": float(n)}))
    for given, names, number in (({}, paths, 2.0), ({}, paths[::-1], 1.0), ({"number": 3.0}, paths, 3.0)):
        run = command.run({"runs_dir": str(tmp_path / "r"), **given}, named_configs=names)
        assert run.result == number
        assert run.meta_info["named_configs"] == names
